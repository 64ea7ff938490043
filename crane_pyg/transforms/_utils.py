import math
import warnings
from collections.abc import Mapping, Set, Sized

import numpy as np
import torch
from torch import Tensor
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
    if x.layout != torch.strided:
        raise ValueError(
            f"'{name}' needs to be dense, as 'to_dense()' returns it "
            f'(got layout {x.layout})'
        )
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


def warn_partly_missing(x: Tensor, name: str, stacklevel: int) -> None:
    r"""Counts the rows that lack the modality because of some of their
    entries only.
    """
    num_rows = 0
    for block in x.split(GROUP):  # A whole mask takes memory.
        row = block[block.sum(dim=1).isnan()].isnan()
        num_rows += int((row.any(dim=1) & ~row.all(dim=1)).sum())
    if num_rows > 0:
        warnings.warn(
            f"{num_rows} of {x.size(0)} rows of '{name}' hold a NaN next to "
            f'numbers, and count as missing',
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def sort_by_col(
    edge_index: Tensor,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    r"""Sorts the edges, or those in the ascending :obj:`index`, by destination.

    Also returns where they stood, or :obj:`None` if nothing moved.
    """
    edge_index = as_plain(edge_index).long()
    if index is not None:
        edge_index = edge_index.index_select(1, index)
    row, col = edge_index
    if bool((col[1:] >= col[:-1]).all()):
        return edge_index.contiguous(), index
    col, perm = col.sort(stable=True)
    edge_index = torch.stack([row.index_select(0, perm), col])
    return edge_index, perm if index is None else index.index_select(0, perm)


def edge_attrs(store: EdgeStorage) -> dict[str, object]:
    r"""Returns what is as long as the edges. Labels of pairs that stand next to
    them, in :obj:`<name>_index`, are not.
    """
    num_edges = store['edge_index'].size(1)
    return {
        key: value
        for key, value in store.items()
        if key not in {'edge_index', 'edge_weight'}
        and not key.endswith('label_index')
        and f'{key}_index' not in store
        and _length(value) == num_edges
    }


def _length(value: object) -> int | None:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.shape[0] if value.ndim > 0 else None
    if isinstance(value, (str, bytes, Mapping, Set)):
        return None
    return len(value) if isinstance(value, Sized) else None


def take_attrs(
    attrs: Mapping[str, object], index: Tensor | None
) -> dict[str, object]:
    r"""Brings attributes of edges into another order, if there is one."""
    if index is None:
        return dict(attrs)
    return {key: take_attr(key, value, index) for key, value in attrs.items()}


def take_attr(key: str, value: object, index: Tensor) -> object:
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return value[index.to(value.device)]
    if isinstance(value, np.ndarray):
        return value[index.numpy(force=True)]
    if type(value) in {list, tuple}:
        out = [value[i] for i in index.tolist()]  # type: ignore[index]
        return out if type(value) is list else tuple(out)
    raise ValueError(
        f"'{key}' is as long as the edges, so that it needs to be a dense "
        f'tensor, an array or a list, to be sorted as they are '
        f"(got '{type(value).__name__}')"
    )


def set_edges(
    store: EdgeStorage,
    edge_index: Tensor,
    edge_weight: Tensor,
    attrs: Mapping[str, object] | None = None,
) -> None:
    if 'edge_index' in store:  # Attributes in the old order of edges.
        for key in edge_attrs(store):
            del store[key]
    for key, value in (attrs or {}).items():
        store[key] = value
    store['edge_index'] = edge_index
    store['edge_weight'] = edge_weight


def forget_sizes(data: HeteroData, node_type: str) -> None:
    r"""Makes the edges of nodes that became more plain tensors, as an
    :class:`~torch_geometric.EdgeIndex` holds on to their number.
    """
    for edge_type in data.edge_types:
        store = data[edge_type]
        if node_type in edge_type[::2] and 'edge_index' in store:
            store['edge_index'] = as_plain(store['edge_index'])


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
