r"""Scores of the items around those a user had, straight from item graphs."""

import copy
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg._check import check_finite
from crane_pyg._edges import get_edges, get_graph
from crane_pyg._rows import CompressedRows, check_all_finite, check_shape
from crane_pyg.transforms import BuildDualGraph, knn_item_graph

__all__ = ['Neighborhood']

REFINED: Final = 'refined'
WEIGHT: Final = 9.0
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
        self.weights = [weight for _, _, weight in graphs]
        self.graphs = [
            CompressedRows(
                edge_index, num_items, num_items, 'graphs', value * weight
            )
            for edge_index, value, weight in graphs
        ]

    @classmethod
    @torch.no_grad()
    def from_embeddings(
        cls,
        data: HeteroData,
        user_emb: Tensor,
        item_emb: Tensor,
        weights: Mapping[str, float] | None = None,
        edge_type: tuple[str, str, str] = ('user', 'rates', 'item'),
    ) -> 'Neighborhood':
        r"""Returns what the edges in the data add to the inner products of
        given embeddings, those of :class:`~crane_pyg.nn.CRANE` or of any other
        recommender.

        .. math::
            n_{ui} = \sigma \sum_{j \in \mathcal{N}(u)} \sum_g \omega_g
            s^{(g)}_{ji}

        The standard deviation :math:`\sigma` of the inner products of all
        users and items lets the weights mean the same whatever the lengths of
        the embeddings.

        Args:
            data (torch_geometric.data.HeteroData): The training pairs and the
                graphs, as :class:`~crane_pyg.transforms.BuildDualGraph` leaves
                them.
            user_emb (torch.Tensor): User embeddings :math:`(U, d)`.
            item_emb (torch.Tensor): Item embeddings :math:`(I, d)`.
            weights (dict[str, float], optional): The relations between items
                and their weights :math:`\omega_g`. The edges of
                :obj:`"refined"` are those of the nearest neighbors by
                :obj:`item_emb`. (default: :obj:`9.0` for each of
                :obj:`"co_rated"`, :obj:`"similar_to"` and :obj:`"refined"`)
            edge_type (tuple, optional): The edge type of the training pairs.
                (default: :obj:`('user', 'rates', 'item')`)

        Raises:
            ValueError: If the pairs or the edges and weights of a relation
                are missing from :obj:`data`, if these have more users or items
                than the embeddings, or if a weight is not finite.
        """
        item = edge_type[2]
        if weights is None:
            weights = dict.fromkeys(('co_rated', 'similar_to', REFINED), WEIGHT)
        for relation, weight in weights.items():
            check_finite(f"weights['{relation}']", weight)
        rates, *_ = get_edges(data, edge_type)
        scale = float(product_std(user_emb, item_emb))
        graphs = [
            refined_graph(item_emb)
            if relation == REFINED
            else get_graph(data, (item, relation, item))
            for relation in weights
        ]
        weighted = [
            (*graph, weight * scale)
            for graph, weight in zip(graphs, weights.values(), strict=True)
        ]
        size = (user_emb.size(0), item_emb.size(0))
        return cls(rates.edge_index, weighted, size)

    def scaled(self, factor: float) -> 'Neighborhood':
        r"""Returns a copy whose sums are :obj:`factor` times as large.

        Raises:
            ValueError: If the factor is not finite.
        """
        check_finite('factor', factor)
        out = copy.copy(self)
        out.weights = [factor * weight for weight in self.weights]
        out.graphs = [graph.scaled(factor) for graph in self.graphs]
        return out

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
