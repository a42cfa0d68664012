"""The sum of a step's gradients in the tree of `elastic`, made while backward passes run.

A hook takes the gradient of a parameter as soon as it is complete, and adds it while it is in the
caches. Several processes keep their sums next to each other in one buffer. In the last micro-batch
they become complete one after the other: each bucket is exchanged as soon as it is, while the
backward pass makes the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from slm.training.elastic import Node, TreeSum, nodes_of, share_of

BUCKET_BYTES = 8 << 20  # that are exchanged at a time
ALIGNMENT = 16  # elements: a tensor begins where the CPU's allocator might let it begin


class StepSum:
    """Sums the gradients of a step's micro-batches, and their losses, over all processes."""

    def __init__(
        self, parameters: Sequence[Tensor], count: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Hook into the parameters.

        Args:
            count: the micro-batches of a step, of all processes.
        """
        self._leaf: int | None = None  # the micro-batch that the next backward pass completes
        self._share = share_of(count, rank, world_size)
        tensors = [*reversed(parameters), torch.empty(())]  # as they are made; then the loss
        self._trees = [TreeSum() for _ in tensors]
        self._exchange: Exchange | None = None
        self._targets: dict[int, list[Tensor]] = {}  # of a leaf, if its node is to be exchanged
        if world_size > 1:
            sizes = [math.ceil(tensor.numel() / ALIGNMENT) * ALIGNMENT for tensor in tensors]
            self._exchange = Exchange(sizes, count, parameters[0].device)
            views = [
                [part[: t.numel()].view(t.shape) for part, t in zip(parts, tensors, strict=True)]
                for parts in self._exchange.parts
            ]
            firsts = [start for start, _ in nodes_of(self._share)]
            self._targets = dict(zip(firsts, views, strict=False))
            self._sums = views[0]
        for place, parameter in enumerate(reversed(parameters)):
            hook = partial(self._take, place)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def expect(self, leaf: int) -> None:
        """The next backward pass completes the gradients of a micro-batch."""
        self._leaf = leaf

    def add_loss(self, loss: Tensor) -> None:
        """Add the loss of that micro-batch, when the backward pass has ended."""
        self._add(len(self._trees) - 1, loss)
        self._leaf = None

    def finish(self) -> tuple[list[Tensor], Tensor]:
        """The sums: of gradients, in the order of the parameters, and the loss.

        The next step overwrites them.
        """
        trees, self._trees = self._trees, [TreeSum() for _ in self._trees]
        if self._exchange:
            self._exchange.finish()
            sums = self._sums
        else:
            sums = [tree.total() for tree in trees]
        return sums[-2::-1], sums[-1]

    def _take(self, place: int, parameter: Tensor) -> None:
        """Take a parameter's gradient away, where it is that of a whole micro-batch."""
        if self._leaf is not None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            self._add(place, gradient)

    def _add(self, place: int, tensor: Tensor) -> None:
        leaf = self._leaf
        assert leaf is not None
        if leaf in self._targets:  # a node's sum is in the tensor of its first leaf
            tensor = self._targets[leaf][place].copy_(tensor)
        self._trees[place].add(Node(leaf, 1, tensor))
        if self._exchange and leaf == self._share[-1]:
            self._exchange.ready(place)


@dataclass
class Sent:
    """A bucket whose nodes are under way to the processes that add them up."""

    bucket: range
    received: list[Tensor]  # of each process its nodes, in the slice of this one
    works: list[dist.Work]


class Exchange:
    """Sums the nodes that all processes have of the tree, bucket by bucket.

    Every process gets a slice of all nodes of a bucket, adds them up in the tree, and sends the sum
    to the others: what is sent is the least that any all-reduce sends. All make the same exchanges
    in the same order, each sum while the nodes of the next bucket are under way.
    """

    def __init__(self, sizes: Sequence[int], count: int, device: torch.device) -> None:
        """
        Args:
            sizes: of the parts of a node, in the order in which they become complete.
            count: the leaves of the tree.
        """
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._nodes = [
            nodes_of(share_of(count, rank, self._world_size)) for rank in range(self._world_size)
        ]
        own, total, bucket = len(self._nodes[self._rank]), sum(sizes), BUCKET_BYTES // 4
        self._rows = torch.zeros(max(1, own), total, device=device)  # its nodes, then the sum
        self.parts = [row.split(list(sizes)) for row in self._rows]  # of each node
        self._ends = torch.tensor(sizes).cumsum(0).tolist()
        self._buckets = [
            range(start, min(start + bucket, total)) for start in range(0, total, bucket)
        ]
        self._begin()

    def _begin(self) -> None:
        self._ready: set[int] = set()
        self._parts_sent = self._buckets_sent = 0
        self._sent: Sent | None = None
        self._returns: list[dist.Work] = []

    def ready(self, part: int) -> None:
        """A part of all nodes of this process is complete: send the buckets that are whole now."""
        self._ready.add(part)
        while self._parts_sent in self._ready:
            self._parts_sent += 1
        self._send_up_to(self._ends[self._parts_sent - 1] if self._parts_sent else 0)

    def finish(self) -> None:
        """Wait for the sum of all; it is in the parts of the first node."""
        self._send_up_to(self._ends[-1])
        self._add_up()
        for work in self._returns:
            work.wait()
        self._begin()

    def _send_up_to(self, end: int) -> None:
        while self._buckets_sent < len(self._buckets):
            bucket = self._buckets[self._buckets_sent]
            if bucket.stop > end:
                return
            sent = self._send(bucket)
            self._add_up()
            self._sent = sent
            self._buckets_sent += 1

    def _send(self, bucket: range) -> Sent:
        """Send the slices of the other processes, and receive this one's of their nodes."""
        own = self._nodes[self._rank]
        mine, received, operations = self._slice(bucket, self._rank), [], []
        for rank, nodes in enumerate(self._nodes):
            if rank == self._rank:
                received.append(self._rows[:, mine])
                continue
            theirs = self._slice(bucket, rank)
            parts = self._rows.new_empty(len(nodes), mine.stop - mine.start)
            received.append(parts)
            operations += [
                dist.P2POp(dist.isend, row[theirs], rank) for row in self._rows[: len(own)]
            ]
            operations += [dist.P2POp(dist.irecv, part, rank) for part in parts]
        return Sent(bucket, received, started(operations))

    def _add_up(self) -> None:
        """Sum the slice of the bucket that was sent last; send it, and receive the others'."""
        sent, self._sent = self._sent, None
        if sent is None:
            return
        for work in sent.works:
            work.wait()
        tree = TreeSum()
        for nodes, parts in zip(self._nodes, sent.received, strict=True):
            for (start, size), part in zip(nodes, parts, strict=False):
                tree.add(Node(start, size, part))
        result, operations = self._rows[0], []
        mine = result[self._slice(sent.bucket, self._rank)]
        if (total := tree.total()).data_ptr() != mine.data_ptr():
            mine.copy_(total)
        for rank in range(self._world_size):
            if rank != self._rank:
                theirs = result[self._slice(sent.bucket, rank)]
                operations.append(dist.P2POp(dist.isend, mine, rank))
                operations.append(dist.P2POp(dist.irecv, theirs, rank))
        self._returns += started(operations)

    def _slice(self, bucket: range, rank: int) -> slice:
        part = share_of(len(bucket), rank, self._world_size)
        return slice(bucket.start + part.start, bucket.start + part.stop)


def started(operations: Sequence[dist.P2POp]) -> list[dist.Work]:
    """Start sending and receiving; of nothing nothing is sent."""
    some = [each for each in operations if each.tensor.numel()]
    return dist.batch_isend_irecv(some) if some else []
