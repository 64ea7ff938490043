r"""Scores of the items around those a user had, straight from item graphs."""

import copy
from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from crane_pyg._check import check_finite
from crane_pyg._rows import (
    HALF,
    CompressedRows,
    as_pairs,
    check_all_finite,
    check_shape,
)
from crane_pyg.transforms import BuildDualGraph, knn_item_graph

__all__ = ['Neighborhood']

REFINED: Final = 'refined'
PART_SIZE: Final = 1 << 14

Graph = Tensor | tuple[Tensor, Tensor]


class Neighborhood:
    r"""The neighborhood model of the `"Factorization Meets the Neighborhood"
    <https://doi.org/10.1145/1401890.1401944>`_ paper, with the weights of
    given relations between items instead of learned ones.

    .. math::
        n_{ui} = \sum_{j \in \mathcal{N}(u)} \sum_g \omega_g s^{(g)}_{ji}

    Embeddings of some dozen channels cannot tell every pair of items that
    belong together; these sums can, and are added to their inner products.

    They read the training pairs, and so know the answer in training: use them
    to rank, not to train. :class:`~crane_pyg.ranking.Ranker` chooses the
    weights :math:`\omega_g`.

    Args:
        history (torch.Tensor): The users above the items they had
            :math:`(2, E)`. A pair that stands twice counts twice.
        graphs (dict[str, tuple]): The edges of each relation
            :math:`(2, E_g)`, sources :math:`j` above destinations :math:`i`,
            and their weights :math:`(E_g)`; or a matrix of them all
            :math:`(I, I)`, a row for each source.
        size (tuple[int, int]): The number of users and of items.
        weights (dict[str, float], optional): The weight :math:`\omega_g` of
            each relation, zero for any that is not named.
            (default: :obj:`1.0` for each)

    Raises:
        ValueError: If an index is out of range, if a relation has more or
            fewer weights than edges, if a weight is not finite or of no
            relation.
    """

    def __init__(
        self,
        history: object,
        graphs: Mapping[str, Graph],
        size: tuple[int, int],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.size = num_users, num_items = size
        pairs = as_pairs('history', history, size)
        self.history = CompressedRows(pairs, num_users, num_items, 'history')
        self.relations = {
            name: _as_rows(name, graph, num_items)
            for name, graph in graphs.items()
        }
        if weights is None:
            weights = dict.fromkeys(graphs, 1.0)
        self.weights = self._check_weights(weights)

    def _check_weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if name not in self.relations:
                raise ValueError(
                    f"'weights' needs to name relations of "
                    f"{list(self.relations)} (got '{name}')"
                )
            check_finite(f"weights['{name}']", weight)
        return {name: float(weights.get(name, 0.0)) for name in self.relations}

    def with_weights(self, weights: Mapping[str, float]) -> 'Neighborhood':
        r"""Returns a copy that shares the relations and weighs them anew.

        Raises:
            ValueError: If a weight is not finite or of no relation.
        """
        out = copy.copy(self)
        out.weights = self._check_weights(weights)
        return out

    def only(self, weights: Mapping[str, float]) -> 'Neighborhood':
        r"""Returns a copy that has no relations but those named here.

        Raises:
            ValueError: If a weight is not finite or of no relation.
        """
        out = self.with_weights(weights)
        out.relations = {name: self.relations[name] for name in weights}
        out.weights = {name: out.weights[name] for name in weights}
        return out

    def add_to(self, score: Tensor, users: Tensor) -> Tensor:
        r"""Adds the sums of some users to their scores of all items, in place.
        They are summed in single precision at least.

        Args:
            score (torch.Tensor): The scores :math:`(B, I)`, contiguous.
            users (torch.Tensor): The users :math:`(B)`.

        Raises:
            ValueError: If there are too few scores.
        """
        num_rows, num_cols = users.numel(), max(score.size(1), self.size[1])
        check_shape('score', score, num_rows, num_cols)
        if score.dtype in HALF:
            total = torch.zeros_like(score, dtype=torch.float)
            return score.add_(self.add_to(total, users))
        row, item, _ = self.history[users]
        for name, weight in self.weights.items():
            if weight != 0.0:
                self.relations[name].add_to(score, row, item, weight)
        return score

    def scores(self, name: str, users: Tensor) -> Tensor:
        r"""Returns the sums :math:`(B, I)` of one relation for some users,
        before its weight.
        """
        out = torch.zeros(users.numel(), self.size[1], device=users.device)
        return self.with_weights({name: 1.0}).add_to(out, users)


class SparseRows(CompressedRows):
    r"""The edges of a relation, and their weights."""

    def add_to(
        self, score: Tensor, row: Tensor, item: Tensor, weight: float
    ) -> None:
        r"""Adds the weighted edges out of the items in these rows."""
        start = row * score.size(1)
        # In parts, as some users have very many items:
        for first, part in zip(
            start.split(PART_SIZE), item.split(PART_SIZE), strict=True
        ):
            index, neighbor, value = self[part]
            index = first.index_select(0, index) + neighbor
            value = (weight * value).to(score.dtype)
            score.view(-1).index_add_(0, index, value)


class DenseRows:
    r"""The weights of a relation between all items."""

    def __init__(self, name: str, value: Tensor, num_items: int) -> None:
        check_shape(name, value, num_items, num_items)
        self.value = value.contiguous()

    def __getitem__(self, src: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Returns the positions in :obj:`src`, destinations and weights."""
        size, device = (src.numel(), self.value.size(0)), src.device
        row = torch.arange(size[0], device=device).repeat_interleave(size[1])
        dst = torch.arange(size[1], device=device).repeat(size[0])
        return row, dst, self.value.index_select(0, src).view(-1)

    def add_to(
        self, score: Tensor, row: Tensor, item: Tensor, weight: float
    ) -> None:
        r"""Adds the weighted sums of the items in these rows."""
        count = torch.bincount(row, minlength=score.size(0))
        first = count.cumsum(0) - count
        total = F.embedding_bag(item, self.value, first, mode='sum')
        score[:, : self.value.size(1)].add_(total, alpha=weight)


def _as_rows(name: str, graph: Graph, num_items: int) -> SparseRows | DenseRows:
    name = f"graphs['{name}']"
    if isinstance(graph, Tensor):
        check_all_finite(name, graph)
        return DenseRows(name, graph, num_items)
    edge_index, value = graph
    edge_index = as_pairs(name, edge_index, (num_items, num_items))
    check_all_finite(name, value)
    return SparseRows(edge_index, num_items, num_items, name, value)


def refined_graph(item_emb: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the edges of the nearest neighbors by the embeddings of the
    items :math:`(I, d)`, and their weights.
    """
    build = BuildDualGraph()
    neighbors = {REFINED: knn_item_graph(item_emb, build.k)}
    return build.item_graph(neighbors, item_emb.size(0))


@torch.no_grad()
def product_std(user_emb: Tensor, item_emb: Tensor) -> Tensor:
    r"""Returns the standard deviation of the inner products of all users
    :math:`(U, d)` and items :math:`(I, d)`, without computing any of them.

    .. math::
        \sigma^2 = \left\langle \mathbf{C}_{\mathcal{U}},
        \mathbf{C}_{\mathcal{I}} \right\rangle +
        \bar{\mathbf{x}}_{\mathcal{I}}^{\top} \mathbf{C}_{\mathcal{U}}
        \bar{\mathbf{x}}_{\mathcal{I}} +
        \bar{\mathbf{x}}_{\mathcal{U}}^{\top} \mathbf{C}_{\mathcal{I}}
        \bar{\mathbf{x}}_{\mathcal{U}}

    with the means and the covariances :math:`\mathbf{C}` of both. None of
    the parts is negative: nothing cancels.
    """
    means, covs = [], []
    for x in (user_emb, item_emb):
        x = x.to(torch.promote_types(x.dtype, torch.float))
        mean = x.mean(dim=0)
        x = x - mean
        means.append(mean)
        with torch.autocast(x.device.type, enabled=False):
            covs.append(x.t() @ x / x.size(0))
    outer = [mean.unsqueeze(1) * mean for mean in means]
    square = covs[0] * (covs[1] + outer[1]) + outer[0] * covs[1]
    return square.sum().clamp(min=0.0).sqrt()
