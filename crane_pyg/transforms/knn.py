import math

import torch
from torch import Tensor
from torch_geometric.utils import coalesce, cumsum, degree

from crane_pyg.transforms._utils import (
    check_edge_index,
    check_features,
    check_positive,
    check_weights,
)


def knn_item_graph(
    x: Tensor,
    k: int,
    block_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    r"""Connects every row of :obj:`x` to the :obj:`k` other rows of largest
    cosine similarity, as for the item graph of the `"Cross-Modal Attention
    Network with Dual Graph Learning in Multimodal Recommendation"
    <https://arxiv.org/abs/2601.11151>`_ paper.

    .. math::
        \mathcal{N}(i) = \underset{j \neq i}{\text{top-}k} \;
        \frac{\mathbf{x}_i^{\top} \mathbf{x}_j}
        {\| \mathbf{x}_i \| \, \| \mathbf{x}_j \|}

    Candidates come from blocked products in the precision that
    :func:`torch.get_float32_matmul_precision` names (the search is exact at
    its default, :obj:`"highest"`). They are ranked by similarities computed in
    double and rounded to single precision. Equal ones are tied, and the lower
    index goes first, whatever the :obj:`block_size`.

    A row which is zero or holds a NaN (an item that lacks the modality) has
    no neighbors and is nobody's neighbor. A row with fewer than :obj:`k`
    valid other rows gets all of them.

    Args:
        x (torch.Tensor): The feature matrix.
        k (int): The number of neighbors.
        block_size (int, optional): The number of rows compared with all
            others at once; no tensor larger than
            :math:`(\text{block\_size}, N)` or :obj:`x` is created.
            (default: :obj:`1024`)

    Shapes:
        - **x:** :math:`(N, F)`
        - **output:** :math:`(2, |\mathcal{E}|)`, neighbors above items, sorted
          by item, then by descending similarity, then by neighbor; and the
          similarities :math:`(|\mathcal{E}|)` in single precision

    Raises:
        ValueError: If :obj:`k` or :obj:`block_size` is not positive, or if
            :obj:`x` is not two-dimensional, not floating or not finite.
    """
    check_positive(k, 'k')
    check_positive(block_size, 'block_size')
    check_features(x, 'x')
    if bool(x.isinf().any()):
        raise ValueError("'x' needs to hold no infinite entries (got 'inf')")

    rows, x, norm = valid_rows(x, block_size)
    outs = []
    unit = x / norm.unsqueeze(1).float()
    cols = first_copies(x, k + 1)
    for start in range(0, rows.numel(), block_size):
        query = torch.arange(start, start + block_size, device=x.device)
        query = query[query < rows.numel()]
        i, j = candidates(unit, query, cols, k)
        outs.append(rank(i, j, similarity(x, norm, i, j), k))

    if len(outs) == 0:
        return rows.new_empty(2, 0), x.new_empty(0)
    edge_index = torch.cat([edge_index for edge_index, _ in outs], dim=1)
    return rows[edge_index], torch.cat([sim for _, sim in outs])


def valid_rows(x: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns the indices of the rows that have the modality, these rows, none
    of whose entries is beyond one, and their norms in double precision.
    """
    scale = x.abs().amax(dim=1) if x.size(1) > 0 else x.new_zeros(x.size(0))
    rows = (scale > 0).nonzero().view(-1)  # Comparison drops NaN as well.
    x = (x[rows] / scale[rows].unsqueeze(1)).float()
    norm = torch.cat(
        [b.double().norm(dim=1) for b in torch.split(x, block_size)]
    )
    return rows, x, norm


def first_copies(x: Tensor, num: int) -> Tensor:
    r"""Returns the rows that are among the first copies of their vector.

    Of equal rows, only the lowest ones can be neighbors, so that dropping the
    others bounds the number of ties a row has to deal with.
    """
    if x.size(0) == 0:
        return torch.empty(0, dtype=torch.long, device=x.device)
    group = torch.unique(x, dim=0, return_inverse=True)[1]
    perm, rank = _rank_in_group(group)
    return perm[rank < num].sort()[0]


def _rank_in_group(group: Tensor) -> tuple[Tensor, Tensor]:
    group, perm = group.sort(stable=True)
    ptr = cumsum(degree(group, dtype=torch.long))
    return perm, torch.arange(group.numel(), device=group.device) - ptr[group]


def candidates(
    unit: Tensor,
    query: Tensor,
    cols: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    r"""Returns all pairs which rounding may not exclude from the top-k."""
    sim = unit[query] @ unit[cols].t()
    # The row itself is still in it, which can but lower the threshold:
    kth = sim.topk(min(k + 1, cols.numel()), dim=1)[0][:, -1:]
    i, j = (sim >= kth - rounding(unit)).nonzero().unbind(dim=1)
    i, j = query[i], cols[j]
    return i[i != j], j[i != j]


def rounding(unit: Tensor) -> float:
    r"""Returns by how much a product of unit vectors may be off."""
    return 4 * torch.finfo(unit.dtype).eps * math.sqrt(unit.size(1) + 16)


def similarity(x: Tensor, norm: Tensor, i: Tensor, j: Tensor) -> Tensor:
    r"""Returns the cosine of pairs, rounded to single precision."""
    num_pairs = max(1, 2**19 // x.size(1))  # Keeps the products in cache.
    dots = [
        (x[a].double() * x[b]).sum(dim=1)
        for a, b in zip(
            *(torch.split(v, num_pairs) for v in (i, j)), strict=True
        )
    ]
    return (torch.cat(dots) / (norm[i] * norm[j])).float().clamp_(-1.0, 1.0)


def rank(i: Tensor, j: Tensor, sim: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""Keeps the :obj:`k` pairs of largest similarity of each :obj:`i`. Those
    that are equal need to arrive sorted by :obj:`j`, and stay so.
    """
    perm = sim.sort(descending=True, stable=True)[1]
    group, place = _rank_in_group(i[perm])
    perm = perm[group][place < k]
    return torch.stack([j[perm], i[perm]]), sim[perm]


def merge_item_graphs(
    graphs: dict[str, tuple[Tensor, Tensor]],
    weights: dict[str, float],
    num_items: int,
) -> tuple[Tensor, Tensor]:
    r"""Sums the item graphs of several modalities with weights.

    .. math::
        s_{ji} = \frac{\sum_m w_m \, s^{(m)}_{ji}}
        {\sum_{m: \mathcal{N}_m(i) \neq \emptyset} w_m}

    The weights of the modalities in which item :math:`i` has neighbors sum to
    one: for an item that lacks a modality, the other ones take its share.

    Args:
        graphs (dict): The edge indices and edge values of each modality.
        weights (dict): The weight :math:`w_m` of each modality; one that is
            not named is left out.
        num_items (int): The number of items.

    Shapes:
        - **output:** :math:`(2, |\mathcal{E}|)`, sorted by destination and
          without duplicates or edges of weight zero, and the edge weights
          :math:`(|\mathcal{E}|)`

    Raises:
        ValueError: If a modality is unknown, if a weight is negative or not
            finite, if no weight is positive, or if an index is out of range.
    """
    check_weights(weights, list(graphs))
    graphs = {m: graphs[m] for m, weight in weights.items() if weight > 0}

    device = next(iter(graphs.values()))[0].device
    total = torch.zeros(num_items, dtype=torch.double, device=device)
    for name, (edge_index, _) in graphs.items():
        check_edge_index(edge_index, num_items, num_items)
        total[torch.bincount(edge_index[1], minlength=num_items) > 0] += (
            weights[name]
        )

    values = [
        value * (weights[name] / total[edge_index[1]]).to(value.dtype)
        for name, (edge_index, value) in graphs.items()
    ]
    edge_index, edge_weight = coalesce(
        torch.cat([edge_index for edge_index, _ in graphs.values()], dim=1),
        torch.cat(values),
        num_nodes=num_items,
        reduce='sum',
        sort_by_row=False,
    )
    mask = edge_weight != 0
    return edge_index[:, mask], edge_weight[mask]
