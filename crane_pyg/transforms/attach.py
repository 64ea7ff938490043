import copy
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch_geometric.data.hetero_data import HeteroData

from crane_pyg._edges import get_edges, get_num_nodes
from crane_pyg._rows import HALF, as_index, as_plain, largest_entry
from crane_pyg.transforms._search import Rows, rank, search
from crane_pyg.transforms._utils import (
    check_features,
    check_no_inf,
    edge_attrs,
    forget_sizes,
    from_lists,
    get_modalities,
    to_lists,
    warn_partly_missing,
)
from crane_pyg.transforms.dual_graph import BuildDualGraph, set_user_item_graph

Pairs = tuple[Tensor, Tensor, Tensor]


def attach_items(
    data: HeteroData,
    features: Mapping[str, Tensor],
    transform: BuildDualGraph | None = None,
) -> HeteroData:
    r"""Adds new items, which nobody interacted with yet, to data whose graphs
    are built, and returns what
    :class:`~crane_pyg.transforms.BuildDualGraph` would return for all of the
    items, at the cost of comparing the :math:`n` new items with all
    :math:`N + n` items.

    New items follow the old ones, in the order given. They find their
    neighbors among all items, and take the place of a neighbor of an old item
    where they are nearer. As there is no pair of them, the other graphs stay
    as they are. So do attributes of the items other than features and
    neighbors, *e.g.*, titles.

    An item that lacks every modality has no neighbors, which a
    :class:`UserWarning` says. See :meth:`~crane_pyg.nn.CRANE.extend` for how
    new items are ranked.

    Args:
        data (torch_geometric.data.HeteroData): The output of
            :obj:`transform`, left as it is.
        features (dict[str, torch.Tensor]): The features of the new items in
            each modality :math:`(n, F_m)`. A row that holds a NaN or only
            zeros lacks the modality, and so do all of them if it is not named.
        transform (BuildDualGraph, optional): What :obj:`data` was built by.
            (default: :obj:`BuildDualGraph()`)

    Raises:
        ValueError: If a modality is unknown, if features are not
            two-dimensional, not floating, infinite, or of another width or
            number of rows than others, or if :obj:`data` was not built by
            :obj:`transform`.
    """
    transform = BuildDualGraph() if transform is None else transform
    item_type = transform.edge_type[2]
    old = get_modalities(data, item_type)
    new = _check_new(features, old)
    xs = {name: torch.cat([x, new[name]]) for name, x in old.items()}
    num_old = get_num_nodes(data, item_type)
    num_items = next(iter(xs.values())).size(0)

    neighbors = _check_built(data, transform)
    data = copy.copy(data)
    store = data[item_type]
    for name, edges in neighbors.items():
        edges = _attach(xs[name], edges, num_old, transform)
        size = (num_items, transform.list_width(num_items))
        lists = to_lists(*edges, size=size)
        store[f'neighbor_{name}'], store[f'similarity_{name}'] = lists
    for name, x in xs.items():
        store[f'x_{name}'] = x
    store['num_nodes'] = num_items
    forget_sizes(data, item_type)
    transform.set_item_graph(data)
    return data


def attach_users(
    data: HeteroData,
    histories: Sequence[object],
    transform: BuildDualGraph | None = None,
) -> HeteroData:
    r"""Adds new users, each with a list of items, to data whose graphs are
    built, and returns what :class:`~crane_pyg.transforms.BuildDualGraph` would
    return for all of the users. No items are compared, which takes most of the
    time of building.

    New users follow the old ones, in the order given. Attributes of the other
    pairs, *e.g.*, times, are dropped, as the new pairs have none. Those of the
    users are left as they are: profiles of all users take
    :class:`~crane_pyg.transforms.AddUserProfiles` once more.

    Args:
        data (torch_geometric.data.HeteroData): The output of
            :obj:`transform`, left as it is.
        histories (list[torch.Tensor]): The items of each new user. One that
            stands twice counts once.
        transform (BuildDualGraph, optional): What :obj:`data` was built by.
            (default: :obj:`BuildDualGraph()`)

    Raises:
        ValueError: If a history is empty, if there is no such item, or if
            :obj:`data` was not built by :obj:`transform`.
    """
    transform = BuildDualGraph() if transform is None else transform
    store, num_old, num_items = get_edges(data, transform.edge_type)
    pairs = [as_plain(store.edge_index).long()]
    for n, history in enumerate(histories):
        name = f'histories[{n}]'
        item = as_index(
            name, history, num_items, pairs[0].device, ordered=False
        ).unique()
        if item.numel() == 0:
            raise ValueError(
                f"'{name}' needs to hold at least one item (got none)"
            )
        pairs.append(torch.stack([torch.full_like(item, num_old + n), item]))

    _check_co_rated(data, transform)
    if not _lacks_lists(data, transform):
        _check_built(data, transform)
    data = copy.copy(data)
    data[transform.edge_type[0]]['num_nodes'] = num_old + len(histories)
    forget_sizes(data, transform.edge_type[0])
    for key in edge_attrs(store):
        del data[transform.edge_type][key]
    data[transform.edge_type]['edge_index'] = torch.cat(pairs, dim=1)
    transform.set_co_rated_graph(data)
    return set_user_item_graph(data, transform.edge_type)


def _check_new(
    features: Mapping[str, Tensor], old: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    r"""Returns the features of new items in every modality."""
    for name, x in features.items():
        if name not in old:
            raise ValueError(
                f"'features' names an unknown modality (got '{name}', but "
                f'expected some of {list(old)})'
            )
        check_features(x, name)
        if x.size(1) != old[name].size(1):
            raise ValueError(
                f"'{name}' needs to have {old[name].size(1)} features "
                f'(got {x.size(1)})'
            )
    sizes = {name: x.size(0) for name, x in features.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"'features' needs to hold as many rows in every modality "
            f'(got {sizes})'
        )
    num_new = next(iter(sizes.values()))
    new = {
        name: features[name].to(x)
        if name in features
        else x.new_full((num_new, x.size(1)), float('nan'))
        for name, x in old.items()
    }
    for name, x in new.items():  # As the precision of the old ones may be less.
        check_no_inf(x, name)
        warn_partly_missing(x, name, stacklevel=3)
    has = [largest_entry(x) > 0 for x in new.values()]
    lacking = (~torch.stack(has).any(dim=0)).nonzero().view(-1).tolist()
    if len(lacking) > 0:
        warnings.warn(
            f'{len(lacking)} of {num_new} new items lack every modality '
            f'(got rows {lacking[:5]})',
            UserWarning,
            stacklevel=3,
        )
    return new


def _check_built(
    data: HeteroData, transform: BuildDualGraph
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""Builds the graph of similar items once more, of their neighbors, which
    it returns.
    """
    item_type = transform.edge_type[2]
    neighbors = {
        name: from_lists(*_get_lists(data, name, transform))
        for name in transform.get_weights(get_modalities(data, item_type))
    }
    edge_type = (item_type, transform.item_edge, item_type)
    store, num_items, _ = get_edges(data, edge_type)
    edge_index, weight = transform.item_graph(neighbors, num_items)
    found = store.edge_weight
    exact = found.dtype not in HALF
    bounds = (1e-4, 1e-6) if exact else (1e-2, 1e-4)
    if not torch.equal(edge_index, as_plain(store.edge_index)) or not (
        torch.allclose(weight, found.to(weight), *bounds)
    ):
        raise ValueError(
            f"'data' needs to have the edges of type {edge_type} that "
            f'{transform} leaves (got other ones)'
        )
    return neighbors


def _check_co_rated(data: HeteroData, transform: BuildDualGraph) -> None:
    r"""Counts the edges out of every item, and those of the same graph built
    once more. Which of them are heaviest hangs on rounding where some tie.
    """
    item = transform.edge_type[2]
    edge_type, built = (item, transform.co_edge, item), copy.copy(data)
    transform.set_co_rated_graph(built)
    found, expected = (
        _out_degree(x, edge_type, transform.num_co_rated > 0)
        for x in (data, built)
    )
    other = (found != expected).nonzero().view(-1)
    if other.numel() > 0:
        index = int(other[0])
        raise ValueError(
            f"'data' needs to have the edges of type {edge_type} that "
            f'{transform} leaves, {int(expected[index])} of item {index} '
            f'(got {int(found[index])})'
        )


def _out_degree(
    data: HeteroData, edge_type: tuple[str, str, str], needed: bool
) -> Tensor:
    num_nodes = get_num_nodes(data, edge_type[0])
    if not needed and edge_type not in data.edge_types:
        return torch.zeros(num_nodes, dtype=torch.long, device='cpu')
    src = as_plain(get_edges(data, edge_type)[0].edge_index)[0]
    return src.bincount(minlength=num_nodes).cpu()


def _lacks_lists(data: HeteroData, transform: BuildDualGraph) -> bool:
    r"""Whether :class:`ReduceFeatures` dropped lists of neighbors, without
    which the graphs are still those of the transform.
    """
    store = data[transform.edge_type[2]]
    return any(
        f'basis_{name}' in store and f'neighbor_{name}' not in store
        for name in get_modalities(data, transform.edge_type[2])
    )


def _get_lists(
    data: HeteroData, name: str, transform: BuildDualGraph
) -> tuple[Tensor, Tensor]:
    r"""Returns the neighbors of the old items and their similarities."""
    store = data[transform.edge_type[2]]
    neighbor = store.get(f'neighbor_{name}')
    num_items = get_num_nodes(data, transform.edge_type[2])
    size = [num_items, transform.list_width(num_items)]
    if neighbor is None or list(neighbor.shape) != size:
        raise ValueError(
            f"'neighbor_{name}' needs to be of shape {size}, as {transform} "
            f'leaves it '
            f'(got {None if neighbor is None else list(neighbor.shape)})'
        )
    return neighbor, store[f'similarity_{name}']


def _attach(
    x: Tensor,
    old: tuple[Tensor, Tensor],
    num_old: int,
    transform: BuildDualGraph,
) -> tuple[Tensor, Tensor]:
    r"""Returns the neighbors of all items, given those of the old ones."""
    k, rows = transform.k, Rows(x, transform.block_size)
    num_valid = int((rows.index < num_old).sum())
    if num_valid == len(rows):
        return old
    least = _least_similarity(*old, num_old, k)[rows.index[:num_valid]]
    # Rounding may not hide a pair that belongs among the neighbors:
    least -= rows.rounding()
    cols = rows.first_copies(k + 1)
    new = torch.arange(num_valid, len(rows), device=x.device)
    i, j = search(rows, cols, k, new)
    edge_index, values = rank(i, j, rows.similarity(i, j), k)

    pairs = [_as_pairs(*old)]
    before = torch.arange(num_valid, device=x.device)
    for block in cols[cols >= num_valid].split(rows.block_size):
        unit = rows.unit(block)
        for i in before.split(rows.block_size):
            product = unit @ rows.unit(i).t()
            row, col = (product >= least[i]).nonzero().unbind(dim=1)
            i, j = i[col], block[row]
            found = (rows.index[i], rows.index[j], rows.similarity(i, j))
            pairs.append(found)
    # The old neighbors stand first, and have the lower indices:
    i, j, sim = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    parts = [rank(i, j, sim, k), (rows.index[edge_index], values)]
    return (
        torch.cat([edge_index for edge_index, _ in parts], dim=1),
        torch.cat([sim for _, sim in parts]),
    )


def _as_pairs(edge_index: Tensor, sim: Tensor) -> Pairs:
    return edge_index[1], edge_index[0], sim


def _least_similarity(
    edge_index: Tensor, sim: Tensor, num_items: int, k: int
) -> Tensor:
    r"""Returns the similarity to the last neighbor of each item, or less than
    any if there is room for one more.
    """
    out = sim.new_full((num_items,), float('inf'))
    out.scatter_reduce_(0, edge_index[1], sim, 'amin')
    count = torch.bincount(edge_index[1], minlength=num_items)
    return out.masked_fill(count < k, float('-inf'))
