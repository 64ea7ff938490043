import torch
from torch import Tensor
from torch_geometric.utils import coalesce

from crane_pyg._check import check_size
from crane_pyg._rows import as_plain, check_edge_index
from crane_pyg.transforms._search import Rows, rank, search
from crane_pyg.transforms._utils import (
    check_features,
    check_no_inf,
    check_weights,
    warn_partly_missing,
)


def knn_item_graph(
    x: Tensor,
    k: int,
    block_size: int = 2048,
) -> tuple[Tensor, Tensor]:
    r"""Connects every row of :obj:`x` to the :obj:`k` other rows of largest
    cosine similarity, as for the item graph of the `"Cross-Modal Attention
    Network with Dual Graph Learning in Multimodal Recommendation"
    <https://arxiv.org/abs/2601.11151>`_ paper.

    .. math::
        \mathcal{N}(i) = \underset{j \neq i}{\text{top-}k} \;
        \frac{\mathbf{x}_i^{\top} \mathbf{x}_j}
        {\| \mathbf{x}_i \| \, \| \mathbf{x}_j \|}

    Candidates come from products, tile by tile, in the precision that
    :func:`torch.get_float32_matmul_precision` names (the search is exact at
    its default, :obj:`"highest"`), or in double precision if rows are so much
    alike that it tells few of them apart. They are ranked by similarities
    computed in double and rounded to single precision. Equal ones are tied, and
    the lower index goes first, whatever the :obj:`block_size`.

    A row which is zero or holds a NaN (an item that lacks the modality) has
    no neighbors and is nobody's neighbor; a :class:`UserWarning` counts those
    that hold a NaN next to numbers. A row with fewer than :obj:`k`
    valid other rows gets all of them.

    Args:
        x (torch.Tensor): The feature matrix.
        k (int): The number of neighbors.
        block_size (int, optional): The number of rows compared with as many
            others at once. Apart from the tiles, memory grows with the number
            of edges only: there is no copy of :obj:`x`.
            (default: :obj:`2048`)

    Shapes:
        - **x:** :math:`(N, F)`
        - **output:** :math:`(2, |\mathcal{E}|)`, neighbors above items, sorted
          by item, then by descending similarity, then by neighbor; and the
          similarities :math:`(|\mathcal{E}|)` in single precision

    Raises:
        ValueError: If :obj:`k` or :obj:`block_size` is not positive, or if
            :obj:`x` is not two-dimensional, not floating or not finite.
    """
    check_size(1, k=k, block_size=block_size)
    check_features(x, 'x')
    check_no_inf(x, 'x')
    warn_partly_missing(x, 'x', stacklevel=2)
    return nearest(x, k, block_size)


def nearest(x: Tensor, k: int, block_size: int) -> tuple[Tensor, Tensor]:
    r"""The same as :meth:`knn_item_graph` of what is checked already."""
    rows = Rows(x, block_size)
    if len(rows) == 0:
        return rows.index.new_empty(2, 0), x.new_empty(0, dtype=torch.float)
    i, j = search(rows, rows.first_copies(k + 1), k)
    edge_index, sim = rank(i, j, rows.similarity(i, j), k)
    return rows.index[edge_index], sim


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
            finite, if no weight is positive, if an index is out of range, or if
            an edge value is not floating or not finite.
    """
    check_weights(weights, list(graphs))
    graphs = {
        m: (as_plain(graphs[m][0]), graphs[m][1])
        for m, weight in weights.items()
        if weight > 0
    }

    device = next(iter(graphs.values()))[0].device
    total = torch.zeros(num_items, dtype=torch.double, device=device)
    for name, (edge_index, value) in graphs.items():
        check_edge_index(edge_index, num_items, num_items)
        if not value.is_floating_point():
            raise ValueError(
                f"'graphs' needs to hold floating values (got {value.dtype} "
                f"in '{name}')"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"'graphs' needs to hold finite values (got others in '{name}')"
            )
        total[torch.bincount(edge_index[1], minlength=num_items) > 0] += (
            weights[name]
        )

    values = [
        value * (weights[name] / total[edge_index[1]]).to(value.dtype)
        for name, (edge_index, value) in graphs.items()
    ]
    edge_index, edge_weight = coalesce(
        torch.cat([edges for edges, _ in graphs.values()], dim=1).long(),
        torch.cat(values),
        num_nodes=num_items,
        reduce='sum',
        sort_by_row=False,
    )
    mask = edge_weight != 0
    return edge_index[:, mask], edge_weight[mask]
