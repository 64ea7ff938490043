r"""What training needs of features at every step, worked out once."""

from collections.abc import Callable
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor

from crane_pyg._rows import largest_entry


class Features(NamedTuple):
    r"""The features of all rows, zero in those that are missing, and which
    rows are there :math:`(N)`; :obj:`None` if all of them are.
    """

    x: Tensor
    mask: Tensor | None


def fill_missing(x: Tensor, name: str, dtype: torch.dtype) -> Features:
    r"""Returns features of a type. Rows that hold a NaN or only zeros are
    missing, and filled up. Where nothing changes, nothing is copied.
    """
    x = x.to(dtype)
    largest = largest_entry(x.detach())
    if bool(largest.isinf().any()):
        raise ValueError(
            f"'{name}' needs to hold no infinite entries (got 'inf')"
        )
    mask = largest > 0  # Drops NaN as well.
    if bool(mask.all()):
        return Features(x, None)
    return Features(x.masked_fill(~mask.unsqueeze(-1), 0.0), mask)


State = tuple[int, torch.dtype]
Entry = tuple[ref[Tensor], State, Features | None]


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
            entry = ref(x), state, None if kept.x is x else kept
            self._entries[name] = entry
        return Features(x, None) if entry[2] is None else entry[2]
