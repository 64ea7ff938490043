r"""What training needs of features at every step, worked out once."""

from collections.abc import Callable
from typing import Final, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from crane_pyg._rows import largest_entry

LIMIT: Final = 256.0


class Features(NamedTuple):
    r"""The features of all rows, zero in those that are missing, and of any
    length in others; which rows are there :math:`(N)`, :obj:`None` if all of
    them are; and what scales rows to unit length :math:`(N, 1)`.
    """

    x: Tensor
    mask: Tensor | None
    scale: Tensor


def fill_missing(x: Tensor, name: str, dtype: torch.dtype) -> Features:
    r"""Returns features of a type. Rows that hold a NaN or only zeros are
    missing, and filled up. Those of very large or very small entries, whose
    squares or products may be out of range, are divided by the largest. Where
    nothing changes, nothing is copied.
    """
    x = x.to(dtype)
    largest = largest_entry(x.detach())
    if bool(largest.isinf().any()):
        raise ValueError(
            f"'{name}' needs to hold no infinite entries (got 'inf')"
        )
    mask = largest > 0  # Drops NaN as well.
    extreme = (largest > LIMIT) | (mask & (largest < 1 / LIMIT))
    if bool(extreme.any()):
        x = x / largest.where(extreme, 1.0).unsqueeze(-1)
    if bool(mask.all()):
        return Features(x, None, unit_scale(x))
    x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
    return Features(x, mask, unit_scale(x))


def unit_scale(x: Tensor) -> Tensor:
    r"""Returns what scales rows to unit length :math:`(N, 1)`, in single
    precision or better; rows of zeros stay as they are.
    """
    dtype = torch.promote_types(x.dtype, torch.float)
    norm: Tensor = torch.linalg.vector_norm(
        x, dim=-1, keepdim=True, dtype=dtype
    )
    return norm.where(norm > 0, 1.0).reciprocal()


State = tuple[int, torch.dtype]
Entry = tuple[ref[Tensor], State, Tensor | None, Tensor | None, Tensor]


class FeatureCache:
    r"""The outputs of :meth:`fill_missing` for features that stay the same.

    They are made anew for another tensor or type, and for a tensor that was
    written to, unless past its version counter, by NumPy or through `x.data`.
    Nothing is kept of one that requires a gradient, nor of inference mode,
    whose tensors no training can use.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __reduce__(self) -> tuple[Callable[[], 'FeatureCache'], tuple[()]]:
        # A copied or unpickled model finds out on its own:
        return FeatureCache, ()

    def __call__(self, name: str, x: Tensor, dtype: torch.dtype) -> Features:
        r"""Returns the features :obj:`name`, which are :obj:`x`."""
        is_inference = torch.is_inference_mode_enabled() or x.is_inference()
        if x.requires_grad or is_inference:
            return fill_missing(x, name, dtype)
        entry, state = self._entries.get(name), (x._version, dtype)
        if entry is None or entry[0]() is not x or entry[1] != state:
            kept = fill_missing(x, name, dtype)
            # What is the tensor itself would keep it alive:
            filled = None if kept.x is x else kept.x
            entry = ref(x), state, filled, kept.mask, kept.scale
            self._entries[name] = entry
        _, _, filled, mask, scale = entry
        return Features(x if filled is None else filled, mask, scale)
