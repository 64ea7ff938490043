import torch
from torch import Tensor
from torch_geometric.utils import scatter

from crane_pyg._rows import as_plain, check_edge_index, check_shape


def symmetric_norm(
    edge_index: Tensor,
    num_src: int,
    num_dst: int,
    edge_weight: Tensor | None = None,
) -> Tensor:
    r"""Symmetrically normalizes the edge weights of a square or bipartite
    graph, as in the `"Cross-Modal Attention Network with Dual Graph Learning
    in Multimodal Recommendation" <https://arxiv.org/abs/2601.11151>`_ paper.

    .. math::
        \hat{w}_{ji} = \frac{w_{ji}}{\sqrt{d_j d_i}}, \qquad
        d_j = \sum_{i} w_{ji}, \quad d_i = \sum_{j} w_{ji}

    The degree :math:`d_j` of a source node sums its outgoing, the degree
    :math:`d_i` of a destination node its incoming edges. An edge between
    nodes without degree gets weight zero.

    Args:
        edge_index (torch.Tensor): The source and destination indices.
        num_src (int): The number of source nodes.
        num_dst (int): The number of destination nodes.
        edge_weight (torch.Tensor, optional): The non-negative edge weights.
            All ones if not given. (default: :obj:`None`)

    Shapes:
        - **edge_index:** :math:`(2, |\mathcal{E}|)`
        - **edge_weight:** :math:`(|\mathcal{E}|)`
        - **output:** :math:`(|\mathcal{E}|)`

    Raises:
        ValueError: If an index is out of range, or a weight is negative, not
            finite, not floating or missing.
    """
    weight = _check(edge_index, num_src, num_dst, edge_weight)
    src, dst = as_plain(edge_index)
    src_norm = _pow(_degree(weight, src, num_src), -0.5)
    dst_norm = _pow(_degree(weight, dst, num_dst), -0.5)
    return weight * src_norm[src] * dst_norm[dst]


def row_norm(
    edge_index: Tensor,
    num_src: int,
    num_dst: int,
    edge_weight: Tensor | None = None,
) -> Tensor:
    r"""Normalizes the edge weights such that those of the edges into every
    node sum to one, which makes a weighted sum of neighbors their mean.

    .. math::
        \hat{w}_{ji} = \frac{w_{ji}}{\sum_{j'} w_{j'i}}

    Args:
        edge_index (torch.Tensor): The source and destination indices.
        num_src (int): The number of source nodes.
        num_dst (int): The number of destination nodes.
        edge_weight (torch.Tensor, optional): The non-negative edge weights.
            All ones if not given. (default: :obj:`None`)

    Shapes:
        - **edge_index:** :math:`(2, |\mathcal{E}|)`
        - **edge_weight:** :math:`(|\mathcal{E}|)`
        - **output:** :math:`(|\mathcal{E}|)`

    Raises:
        ValueError: If an index is out of range, or a weight is negative, not
            finite, not floating or missing.
    """
    weight = _check(edge_index, num_src, num_dst, edge_weight)
    dst = as_plain(edge_index)[1]
    return weight * _pow(_degree(weight, dst, num_dst), -1.0)[dst]


def _degree(weight: Tensor, index: Tensor, size: int) -> Tensor:
    return scatter(weight, index.long(), dim=0, dim_size=size, reduce='sum')


def _pow(degree: Tensor, exponent: float) -> Tensor:
    # As `inf` has a zero for its gradient, too:
    return degree.masked_fill(degree == 0, float('inf')).pow(exponent)


def _check(
    edge_index: Tensor,
    num_src: int,
    num_dst: int,
    edge_weight: Tensor | None,
) -> Tensor:
    check_edge_index(edge_index, num_src, num_dst)
    num_edges = edge_index.size(1)
    if edge_weight is None:
        return torch.ones(num_edges, device=edge_index.device)
    check_shape('edge_weight', edge_weight, num_edges)
    if not edge_weight.is_floating_point():
        raise ValueError(
            f"'edge_weight' needs to be floating (got {edge_weight.dtype})"
        )
    if not bool((edge_weight.isfinite() & (edge_weight >= 0)).all()):
        raise ValueError(
            f"'edge_weight' needs to be finite and non-negative "
            f'(got a minimum of {float(edge_weight.min())} and a maximum of '
            f'{float(edge_weight.max())})'
        )
    return edge_weight
