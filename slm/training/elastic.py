"""Gradients that do not depend on the number of processes: sums in one fixed binary tree.

A step's rows are `train.micro_batches` micro-batches, whatever the number of processes. The
gradient of each is a function of (weights, rows, seed, step, its index). They are the leaves of a
tree, and each of its nodes is the sum of its two children. Float addition is commutative, but not
associative: as long as the tree is the same the sum has the same bits, whoever adds. A process has
consecutive leaves, and adds what it can of the tree alone; the rest is added after an exchange
(`slm.training.exchange`).

The tree of six leaves, and what three and two processes have of it before they exchange anything:

    ((0 + 1) + (2 + 3)) + (4 + 5)        (0 + 1) | (2 + 3) | (4 + 5)        (0 + 1), 2 | 3, (4 + 5)
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Node:
    """A node of the tree: the sum of the leaves `start`, `start` + 1, … of which it has `size`."""

    start: int
    size: int
    tensor: Tensor


class TreeSum:
    """Sums tensors in the tree, over leaves or nodes that are added in their order.

    As many tensors are held as the tree is deep, and one more. A tensor that is added is taken
    over, and added to in place: the sum of a node is in the tensor of its first leaf.
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

    def total(self) -> Tensor:
        """The root. Where the leaves are not a power of two, their last nodes are added first."""
        while len(self.nodes) > 1:
            right = self.nodes.pop()
            self.nodes.append(self._sum(self.nodes.pop(), right))
        [root] = self.nodes
        return root.tensor

    @staticmethod
    def _sum(left: Node, right: Node) -> Node:
        return Node(left.start, left.size + right.size, left.tensor.add_(right.tensor))


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
        tree.add(Node(leaf, 1, torch.empty(0)))
    return [(node.start, node.size) for node in tree.nodes]


def max_nodes(count: int, world_size: int = 1) -> int:
    """The most sets of gradients that a process holds at a time, the one that it makes included."""
    most = 1
    for rank in range(world_size):
        tree = TreeSum()
        for leaf in share_of(count, rank, world_size):
            most = max(most, len(tree.nodes) + 1)
            tree.add(Node(leaf, 1, torch.empty(0)))
    return most
