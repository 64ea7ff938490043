r"""Scores of the items around those a user had, straight from item graphs."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from crane_pyg._check import check_finite
from crane_pyg._rows import CompressedRows, check_all_finite, check_shape

__all__ = ['Neighborhood']

PART_SIZE: Final = 1 << 14


class Neighborhood:
    r"""The neighborhood model of the `"Factorization Meets the Neighborhood"
    <https://doi.org/10.1145/1401890.1401944>`_ paper, with the weights of
    given item graphs instead of learned ones.

    .. math::
        n_{ui} = \sum_{j \in \mathcal{N}(u)} \sum_g \omega_g s^{(g)}_{ji}

    Embeddings of some dozen channels cannot tell every pair of items that
    belong together; these sums can, and are added to their inner products.

    They read the training pairs, and so know the answer in training: use them
    to rank, not to train.

    Args:
        history (torch.Tensor): The users above the items they had
            :math:`(2, E)`. A pair that stands twice counts twice.
        graphs (list): The edges of each graph :math:`(2, E_g)`, sources
            :math:`j` above destinations :math:`i`, their weights
            :math:`(E_g)`, and the weight :math:`\omega_g` of the graph.
        size (tuple[int, int]): The number of users and of items.

    Raises:
        ValueError: If an index is out of range, if a graph has more or fewer
            weights than edges, or if a weight is not finite.
    """

    def __init__(
        self,
        history: Tensor,
        graphs: Sequence[tuple[Tensor, Tensor, float]],
        size: tuple[int, int],
    ) -> None:
        self.size = num_users, num_items = size
        self.history = CompressedRows(history, num_users, num_items, 'history')
        for _, value, weight in graphs:
            check_all_finite('graphs', value)
            check_finite('graphs', weight)
        self.graphs = [
            CompressedRows(
                edge_index, num_items, num_items, 'graphs', value * weight
            )
            for edge_index, value, weight in graphs
        ]

    def add_to(self, score: Tensor, users: Tensor) -> Tensor:
        r"""Adds the sums of some users to their scores of all items, in place.

        Args:
            score (torch.Tensor): The scores :math:`(B, I)`, contiguous.
            users (torch.Tensor): The users :math:`(B)`.

        Raises:
            ValueError: If there are too few scores.
        """
        num_rows, num_cols = users.numel(), max(score.size(1), self.size[1])
        check_shape('score', score, num_rows, num_cols)
        row, item, _ = self.history[users]
        start = row * score.size(1)
        for graph in self.graphs:
            # In parts, as some users have very many items:
            for first, part in zip(
                start.split(PART_SIZE), item.split(PART_SIZE), strict=True
            ):
                index, neighbor, weight = graph[part]
                index = first.index_select(0, index) + neighbor
                score.view(-1).index_add_(0, index, weight.to(score.dtype))
        return score
