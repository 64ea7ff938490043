import math
from collections.abc import Mapping, Set
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.index import index2ptr
from torch_geometric.utils import cumsum

HALF: Final = (torch.float16, torch.bfloat16)


def as_plain(edge_index: Tensor) -> Tensor:
    if isinstance(edge_index, EdgeIndex):
        return edge_index.as_tensor()
    return edge_index


def largest_entry(x: Tensor) -> Tensor:
    r"""Returns the largest absolute entry of each row. It is positive where a
    row has features: neither zero nor NaN.
    """
    if x.size(1) == 0:
        return x.new_zeros(x.size(0))
    out: Tensor = torch.linalg.vector_norm(x, float('inf'), dim=1)
    return out


class CompressedRows:
    r"""The destinations of each source, and values on the way."""

    def __init__(
        self,
        edge_index: Tensor,
        num_src: int,
        num_dst: int,
        name: str,
        value: Tensor | None = None,
    ) -> None:
        check_edge_index(edge_index, num_src, num_dst, name)
        edge_index = as_plain(edge_index)
        check_shape(f'values of {name}', value, edge_index.size(1))
        src, perm = edge_index[0].sort(stable=True)
        self.ptr: Tensor = index2ptr(src, num_src)
        self.dst = edge_index[1][perm]
        self.value = self.dst if value is None else value[perm]

    def __getitem__(self, src: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Returns the positions in :obj:`src`, destinations and values."""
        start = self.ptr[src]
        count = self.ptr[src + 1] - start
        row = torch.arange(src.size(0), device=src.device)
        row = row.repeat_interleave(count)
        # Indexing by brackets is several times slower than `index_select`:
        index = (start - count.cumsum(0) + count).index_select(0, row)
        index += torch.arange(row.size(0), device=src.device)
        dst, value = (x.index_select(0, index) for x in (self.dst, self.value))
        return row, dst, value

    def get_edge_index(self) -> Tensor:
        r"""Returns the edges :math:`(2, E)`, sorted by source."""
        count = self.ptr.diff()
        src = torch.arange(count.numel(), device=count.device)
        return torch.stack([src.repeat_interleave(count), self.dst])


def as_integers(
    name: str,
    value: object,
    device: torch.device | None = None,
    ordered: bool = True,
) -> Tensor:
    r"""Returns whole numbers in a tensor of :obj:`torch.long`, whatever they
    come in: a tensor or an array of any integers, a column, a list, or a set
    where their order tells nothing.

    Raises:
        ValueError: If there is anything else in it, or no order where one is
            needed.
    """
    if isinstance(value, Set) and not ordered:
        value = list(value)
    if isinstance(value, Tensor):
        x = as_plain(value)
    elif isinstance(value, (str, bytes, Set, Mapping)):
        kind = type(value).__name__
        raise ValueError(
            f"'{name}' needs to be a tensor, an array or a list (got a {kind})"
        )
    elif hasattr(value, '__array__'):
        x = _from_array(name, np.asarray(value))
    else:
        try:
            x = torch.as_tensor(value, device='cpu')  # Not the default one.
        except (TypeError, ValueError, RuntimeError, OverflowError) as e:
            raise ValueError(f"'{name}' needs to hold integers ({e})") from e
    if x.numel() > 0 and (
        x.dtype == torch.bool or x.is_floating_point() or x.is_complex()
    ):
        raise ValueError(f"'{name}' needs to hold integers (got {x.dtype})")
    return x.to(device, torch.long)


def _from_array(name: str, x: np.ndarray) -> Tensor:
    if x.size > 0 and x.dtype.kind not in 'iu':
        raise ValueError(f"'{name}' needs to hold integers (got {x.dtype})")
    return torch.from_numpy(x.astype(np.int64))  # A copy that can be written.


def as_index(
    name: str,
    index: object,
    size: int,
    device: torch.device,
    ordered: bool = True,
) -> Tensor:
    r"""Returns checked indices as a tensor of one dimension, see
    :meth:`as_integers`; a single number is one of them.
    """
    out = as_integers(name, index, device, ordered)
    if out.dim() > 1:
        raise ValueError(
            f"'{name}' needs to have one dimension "
            f'(got shape {list(out.shape)})'
        )
    out = out.view(-1)
    check_index(name, out, size)
    return out


def as_pairs(
    name: str,
    pairs: object,
    size: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    r"""Returns pairs :math:`(2, E)`, see :meth:`as_integers`, checked to be of
    two kinds of nodes with these numbers.
    """
    if isinstance(pairs, (list, tuple)) and len(pairs) == 2:
        rows = [as_integers(name, row, device).view(-1) for row in pairs]
        if rows[0].size() != rows[1].size():
            raise ValueError(
                f"'{name}' needs to hold two rows of one length "
                f'(got {rows[0].numel()} and {rows[1].numel()})'
            )
        out = torch.stack(rows)
    else:
        out = as_integers(name, pairs, device)
    check_pairs(name, out)
    if size is not None:
        check_edge_index(out, *size, name)
    return out


def as_positive(
    name: str, value: object, num: int, device: torch.device
) -> Tensor:
    r"""Returns which of so many labels, in whatever they come, are larger than
    zero.
    """
    if isinstance(value, Tensor):
        x = value.to(device, torch.double)  # PyTorch compares no `uint16`.
    else:
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as e:
            raise ValueError(f"'{name}' needs to hold numbers ({e})") from e
        x = torch.from_numpy(array.copy()).to(device)
    check_shape(name, x, num)
    return x > 0


def check_pairs(name: str, edge_index: Tensor) -> None:
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"'{name}' needs to be of shape [2, num_edges] "
            f'(got {list(edge_index.shape)})'
        )
    if edge_index.dtype not in {torch.int64, torch.int32}:
        raise ValueError(
            f"'{name}' needs to hold integers (got {edge_index.dtype})"
        )


def check_edge_index(
    edge_index: Tensor, num_src: int, num_dst: int, name: str = 'edge_index'
) -> None:
    check_pairs(name, edge_index)
    src, dst = as_plain(edge_index)
    check_index(f'{name}[0]', src, num_src)
    check_index(f'{name}[1]', dst, num_dst)


def check_shape(name: str, x: Tensor | None, *size: int) -> None:
    if x is not None and x.size() != size:
        raise ValueError(
            f"'{name}' needs to be of shape {list(size)} (got {list(x.shape)})"
        )


def check_all_finite(name: str, x: Tensor) -> None:
    if x.numel() == 0:
        return
    for end in torch.stack(x.aminmax()).tolist():  # Which takes no mask.
        if not math.isfinite(end):
            raise ValueError(f"'{name}' needs to be finite (got '{end}')")


def check_candidates(name: str, index: Tensor, candidates: Tensor) -> None:
    other = index[~torch.isin(index, candidates)]
    if other.numel() > 0:
        raise ValueError(
            f"'{name}' needs to hold 'candidates' only (got {int(other[0])})"
        )


def check_index(name: str, index: Tensor, size: int) -> None:
    if index.numel() == 0:
        return
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= size:
        raise ValueError(
            f"'{name}' needs to be between 0 and {size - 1} "
            f'(got {low if low < 0 else high})'
        )


def block_sizes(
    src: Tensor, size: int, cost: Tensor | None = None
) -> list[int]:
    r"""Returns the numbers of rows of blocks, none of which splits the rows of
    a source, and each of which has about :obj:`size` rows, or that cost. Rows
    are sorted by source.
    """
    start = torch.searchsorted(src, src)
    if cost is not None:
        start = cumsum(cost)[start]
    count = (start // size).unique_consecutive(return_counts=True)[1]
    sizes: list[int] = count.tolist()
    return sizes
