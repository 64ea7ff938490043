r"""What training needs of features at every step, worked out once."""

from collections.abc import Callable
from typing import NamedTuple
from weakref import ref

from torch import Tensor


class Features(NamedTuple):
    r"""The features of all rows, zero in those that are missing, and which
    rows are there :math:`(N)`; :obj:`None` if all of them are.
    """

    x: Tensor
    mask: Tensor | None


def fill_missing(x: Tensor) -> Features:
    r"""Fills up the rows that hold a NaN. Without one, nothing is copied."""
    mask = ~x.sum(dim=-1).isnan()
    if bool(mask.all()):
        return Features(x, None)
    return Features(x.masked_fill(~mask.unsqueeze(-1), 0.0), mask)


class FeatureCache:
    r"""The outputs of :meth:`fill_missing` for features that stay the same.

    They are made anew for another tensor, and for one that was written to. A
    tensor that requires a gradient is never kept.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[ref[Tensor], int, Features | None]] = {}

    def __reduce__(self) -> tuple[Callable[[], 'FeatureCache'], tuple[()]]:
        # A copied or unpickled model finds out on its own:
        return FeatureCache, ()

    def __call__(self, name: str, x: Tensor) -> Features:
        r"""Returns the features :obj:`name`, which are :obj:`x`."""
        if x.requires_grad or x.is_inference():
            return fill_missing(x)
        entry = self._entries.get(name)
        if entry is None or entry[0]() is not x or entry[1] != x._version:
            kept = fill_missing(x)
            # What is the tensor itself would keep it alive:
            entry = ref(x), x._version, None if kept.mask is None else kept
            self._entries[name] = entry
        return Features(x, None) if entry[2] is None else entry[2]
