import math

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data.hetero_data import HeteroData
from torch_geometric.data.storage import EdgeStorage

from crane_pyg._edges import get_num_nodes
from crane_pyg._groups import GROUP
from crane_pyg._rows import as_plain


def get_modalities(data: HeteroData, node_type: str) -> dict[str, Tensor]:
    num_nodes = get_num_nodes(data, node_type)
    xs = {k[2:]: x for k, x in data[node_type].items() if k.startswith('x_')}
    if len(xs) == 0:
        raise ValueError(
            f"Node type '{node_type}' needs to have at least one modality "
            f"'x_<name>' (found {list(data[node_type].keys())})"
        )
    for name, x in xs.items():
        check_features(x, f'x_{name}')
        if x.size(0) != num_nodes:
            raise ValueError(
                f"'x_{name}' needs to have one row per node of '{node_type}' "
                f'(got {x.size(0)} rows for {num_nodes} nodes)'
            )
    return xs


def check_weights(
    weights: dict[str, float],
    names: list[str],
    arg: str = 'weights',
) -> None:
    for name, weight in weights.items():
        if name not in names:
            raise ValueError(
                f"'{arg}' names an unknown modality (got '{name}', but "
                f'expected one of {names})'
            )
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(
                f"'{arg}' needs to be finite and non-negative (got {weight} "
                f"for '{name}')"
            )
    if not any(weights.values()):
        raise ValueError(
            f"'{arg}' needs to have a positive entry (got {weights})"
        )


def check_features(x: object, name: str) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"'{name}' needs to be a tensor (got {type(x)})")
    if x.dim() != 2:
        raise ValueError(
            f"'{name}' needs to be two-dimensional (got {list(x.shape)})"
        )
    if not x.is_floating_point():
        raise ValueError(f"'{name}' needs to be floating (got {x.dtype})")


def check_no_inf(x: Tensor, name: str) -> None:
    # In blocks, as a whole mask takes memory; a NaN is a missing modality.
    if any(bool(block.isinf().any()) for block in x.split(GROUP)):
        raise ValueError(
            f"'{name}' needs to hold no infinite entries (got 'inf')"
        )


def sort_by_col(
    edge_index: Tensor,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    r"""Sorts the edges, or those in the ascending :obj:`index`, by destination.

    Also returns where they stood, or :obj:`None` if nothing moved.
    """
    is_sorted = (
        isinstance(edge_index, EdgeIndex) and edge_index.is_sorted_by_col
    )
    edge_index = as_plain(edge_index).long()
    if index is not None:
        edge_index = edge_index[:, index]
    if is_sorted:
        return edge_index, index
    col, perm = edge_index[1].sort(stable=True)
    edge_index = torch.stack([edge_index[0][perm], col])
    return edge_index, perm if index is None else index[perm]


def to_edge_index(
    edge_index: Tensor,
    num_src: int,
    num_dst: int,
    no_transpose: bool = False,
) -> EdgeIndex:
    return EdgeIndex(
        edge_index.contiguous(),
        sparse_size=(num_src, num_dst),
        sort_order='col',
    ).fill_cache_(no_transpose)


def edge_attrs(store: EdgeStorage, num_edges: int) -> dict[str, Tensor]:
    r"""Returns per-edge tensors; label tensors belong to held-out pairs."""
    return {
        key: value
        for key, value in store.items()
        if isinstance(value, Tensor)
        and value.dim() > 0
        and value.size(0) == num_edges
        and key not in {'edge_index', 'edge_weight'}
        and 'label' not in key
    }


def set_edges(
    store: EdgeStorage,
    edge_index: EdgeIndex,
    edge_weight: Tensor,
    attrs: dict[str, Tensor] | None = None,
) -> None:
    if 'edge_index' in store:  # Attributes in the old order of edges.
        for key in edge_attrs(store, store['edge_index'].size(1)):
            del store[key]
    for key, value in (attrs or {}).items():
        store[key] = value
    store['edge_index'] = edge_index
    store['edge_weight'] = edge_weight


def to_lists(
    edge_index: Tensor, value: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    r"""Writes the sources of each destination and the values of their edges,
    sorted by destination, into matrices filled up with -1 and zero.
    """
    src, dst = edge_index
    rank = torch.arange(dst.numel(), device=dst.device)
    rank = rank - torch.searchsorted(dst, dst)
    index, values = src.new_full(size, -1), value.new_zeros(size)
    index[dst, rank], values[dst, rank] = src, value
    return index, values


def from_lists(index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    r"""Turns what :meth:`to_lists` returns into edges again."""
    mask = index >= 0
    dst = mask.nonzero()[:, 0]
    return torch.stack([index[mask], dst]), values[mask]
