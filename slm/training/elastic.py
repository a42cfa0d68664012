"""Gradients that do not depend on the number of processes: sums in one fixed binary tree.

A step's rows are `train.micro_batches` micro-batches, whatever the number of processes. The
gradient of each is a function of (weights, rows, seed, step, its index). They are the leaves of a
tree, and each of its nodes is the sum of its two children. Float addition is commutative, but not
associative: as long as the tree is the same the sum has the same bits, whoever adds. A process has
consecutive leaves, and adds what it can of the tree alone; the rest is added after an exchange.

The tree of six leaves, and what three and two processes have of it before they exchange anything:

    ((0 + 1) + (2 + 3)) + (4 + 5)        (0 + 1) | (2 + 3) | (4 + 5)        (0 + 1), 2 | 3, (4 + 5)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 32 << 20  # that are exchanged at a time, so that the copies take little memory


@dataclass
class Node:
    """A node of the tree: the sum of the leaves `start`, `start` + 1, … of which it has `size`."""

    start: int
    size: int
    tensors: list[Tensor]


class TreeSum:
    """Sums lists of tensors in the tree, over leaves or nodes that are added in their order.

    As many lists are held as the tree is deep, and one more. A list that is added is taken over,
    and added to in place.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []  # in order; none of them is the sibling of the next

    def add(self, node: Node) -> None:
        """Add a node; siblings become their parent.

        Those are of one size, which is a power of two, and the first of them starts at a multiple
        of their parent's: 2 and 3 are siblings, 3 and 4 are not.
        """
        while self.nodes:
            left = self.nodes[-1]
            if left.size != node.size or left.start % (2 * node.size):
                break
            node = self._sum(self.nodes.pop(), node)
        self.nodes.append(node)

    def total(self) -> list[Tensor]:
        """The root. Where the leaves are not a power of two, their last nodes are added first."""
        while len(self.nodes) > 1:
            right = self.nodes.pop()
            self.nodes.append(self._sum(self.nodes.pop(), right))
        [root] = self.nodes
        return root.tensors

    @staticmethod
    def _sum(left: Node, right: Node) -> Node:
        for tensor, other in zip(left.tensors, right.tensors, strict=True):
            tensor += other
        return Node(left.start, left.size + right.size, left.tensors)


def share_of(count: int, rank: int, world_size: int) -> range:
    """The micro-batches of a process; none where there are more processes.

    >>> [share_of(8, rank, 3) for rank in range(3)]
    [range(0, 2), range(2, 5), range(5, 8)]
    """
    return range(rank * count // world_size, (rank + 1) * count // world_size)


def nodes_of(share: range) -> list[tuple[int, int]]:
    """Start and size of the nodes that `TreeSum` makes of a process's leaves.

    >>> nodes_of(range(3, 8))
    [(3, 1), (4, 4)]
    """
    tree = TreeSum()
    for leaf in share:
        tree.add(Node(leaf, 1, []))
    return [(node.start, node.size) for node in tree.nodes]


def max_nodes(count: int, world_size: int = 1) -> int:
    """The most lists of tensors that a process holds at a time, the one that it makes included."""
    most = 1
    for rank in range(world_size):
        tree = TreeSum()
        for leaf in share_of(count, rank, world_size):
            most = max(most, len(tree.nodes) + 1)
            tree.add(Node(leaf, 1, []))
    return most


def sum_over_processes(tree: TreeSum, count: int, like: Sequence[Tensor]) -> list[Tensor]:
    """The root of the tree of `count` leaves, in all processes; each has those of its share.

    Every process gets a slice of all nodes, adds them up, and the slices are collected again: what
    is sent is the least that any all-reduce sends. `like`: tensors of the shapes of a node's.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    nodes = [nodes_of(share_of(count, r, world_size)) for r in range(world_size)]
    own, everyone = tree.nodes, [node for of_rank in nodes for node in of_rank]
    assert [(node.start, node.size) for node in own] == nodes[rank], "leaves of another share"
    result = own[0].tensors if own else [torch.empty_like(tensor) for tensor in like]
    sizes = [tensor.numel() for tensor in like]
    for bucket in buckets(sizes, BUCKET_BYTES // 4):
        width = math.ceil(sum(sizes[i] for i in bucket) / world_size)  # W, of a slice
        device = like[bucket.start].device
        sent = torch.zeros(world_size, len(own), width, device=device)
        for number, node in enumerate(own):
            flat = torch.cat([node.tensors[i].flatten() for i in bucket])
            flat = torch.nn.functional.pad(flat, (0, world_size * width - len(flat)))
            sent[:, number] = flat.view(world_size, width)
        received = torch.empty(len(everyone), width, device=device)
        dist.all_to_all_single(
            received, sent.flatten(0, 1), [len(of) for of in nodes], [len(own)] * world_size
        )
        slices = TreeSum()
        for (start, size), part in zip(everyone, received, strict=True):
            slices.add(Node(start, size, [part]))
        whole = torch.empty(world_size * width, device=device)
        dist.all_gather(list(whole.view(world_size, width)), slices.total()[0])
        parts = torch.split(whole[: sum(sizes[i] for i in bucket)], [sizes[i] for i in bucket])
        for i, part in zip(bucket, parts, strict=True):
            result[i].copy_(part.view_as(result[i]))
    return result


def buckets(sizes: Sequence[int], limit: int) -> Iterator[range]:
    """Consecutive indices whose sizes come to at most `limit`, or of a single larger one.

    >>> list(buckets([3, 4, 9, 1, 1], 8))
    [range(0, 2), range(2, 3), range(3, 5)]
    """
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > limit:
            yield range(start, index)
            start, total = index, 0
        total += size
    yield range(start, len(sizes))
