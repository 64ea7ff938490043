r"""The features of the items, projected, and as a graph of neighbors."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, ModuleList, Parameter
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce, scatter

from crane_pyg.nn import CRANEConv
from crane_pyg.transforms import knn_item_graph


def get_features(data: HeteroData) -> dict[str, Tensor]:
    r"""Returns the features of each modality by its name."""
    return {
        name[2:]: x for name, x in data['item'].items() if name.startswith('x_')
    }


class Projection(torch.nn.Module):
    r"""A linear layer for each modality on the features as they are. An item
    that lacks the modality, a row with a NaN, has zeros for its output.

    Args:
        data (torch_geometric.data.HeteroData): The features.
        channels (int): The size of the outputs.
        bias (bool, optional): If set to :obj:`False`, there is no bias.
            (default: :obj:`True`)
        scale (bool, optional): If set to :obj:`True`, features are scaled to a
            mean square of one, for each modality. (default: :obj:`False`)
        train (bool, optional): If set to :obj:`True`, the features are trained
            as well. (default: :obj:`False`)
    """

    def __init__(
        self,
        data: HeteroData,
        channels: int,
        bias: bool = True,
        scale: bool = False,
        train: bool = False,
    ) -> None:
        super().__init__()
        features = get_features(data)
        self.linear = ModuleList(
            Linear(x.size(1), channels, bias) for x in features.values()
        )
        self.names = list(features)
        for name, x in features.items():
            lacks = x.isnan().any(dim=1, keepdim=True)
            x = x.masked_fill(lacks, 0.0) if bool(lacks.any()) else x
            if scale:
                count = ((~lacks).sum() * x.size(1)).clamp(min=1)
                mean_square = x.square().sum() / count
                x = x * mean_square.clamp(min=1e-12).rsqrt()
            if train:
                self.register_parameter(f'x_{name}', Parameter(x.clone()))
            else:
                self.register_buffer(f'x_{name}', x, persistent=False)
            self.register_buffer(f'mask_{name}', ~lacks, persistent=False)

    def forward(self, index: Tensor | None = None) -> list[Tensor]:
        r"""Projects the items in :obj:`index`, or all."""
        outs = []
        for name, linear in zip(self.names, self.linear, strict=True):
            x, mask = getattr(self, f'x_{name}'), getattr(self, f'mask_{name}')
            if index is not None:
                x, mask = x[index], mask[index]
            outs.append(linear(x) * mask)
        return outs


class ItemGraph(torch.nn.Module):
    r"""One layer of propagation over a frozen graph of items."""

    def __init__(
        self, edge_index: Tensor, edge_weight: Tensor, num_items: int
    ) -> None:
        super().__init__()
        size = (num_items, num_items)
        adj = EdgeIndex(edge_index, sparse_size=size, sort_order='col')
        self.register_buffer('edge_index', adj.fill_cache_(), persistent=False)
        self.register_buffer('edge_weight', edge_weight, persistent=False)
        self.conv = CRANEConv(normalize=False)

    def forward(self, x: Tensor) -> Tensor:
        r"""Sums the weighted neighbors of each item."""
        return self.conv((x, None), self.edge_index, self.edge_weight)


def neighbor_graph(
    x: Tensor, k: int = 10, cosine: bool = True
) -> tuple[Tensor, Tensor]:
    r"""Connects each item to the items of largest cosine similarity, as in the
    `"Mining Latent Structures for Multimedia Recommendation"
    <https://arxiv.org/abs/2104.09036>`_ paper.

    .. math::
        \hat{s}_{ij} = \frac{s_{ij}}{\sqrt{d_i d_j}}, \qquad
        d_i = \sum_{j \in \mathcal{N}_k(i)} s_{ij}

    An item is the first of its own :math:`k` neighbors. Unlike in
    :func:`~crane_pyg.transforms.norm.symmetric_norm`, both degrees are row
    sums.

    Args:
        x (torch.Tensor): The features; a row with a NaN, or of nothing but
            zeros, has no neighbors.
        k (int, optional): The number of neighbors. (default: :obj:`10`)
        cosine (bool, optional): If set to :obj:`False`, :math:`s_{ij} = 1`
            for all neighbors, otherwise the non-negative part of their
            similarity. (default: :obj:`True`)

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Neighbors above items, sorted by
        item, and the normalized weights.
    """
    edge_index, sim = knn_item_graph(x, k - 1)
    loop = (x.abs().amax(dim=1) > 0).nonzero().view(-1)
    value = F.pad(sim.clamp(min=0.0), (0, loop.numel()), value=1.0)
    edge_index, value = coalesce(
        torch.cat([edge_index, loop.expand(2, -1)], dim=1),
        value if cosine else torch.ones_like(value),
        num_nodes=x.size(0),
        sort_by_row=False,
    )
    src, dst = edge_index
    scale = scatter(value, dst, dim_size=x.size(0)).rsqrt()
    return edge_index, value * scale[src] * scale[dst]
