from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Masks = Sequence[Tensor | None] | None
NamedMasks = Mapping[str, Tensor | None]


def stack_modalities(
    xs: Sequence[Tensor], masks: Masks = None
) -> tuple[Tensor, Tensor]:
    r"""Stacks :math:`M` tensors :math:`(N, d)` into one :math:`(M, N, d)`, and
    tells which modalities a row has :math:`(M, N)`.

    Rows that hold a NaN or that a mask marks as missing become zero.
    """
    # A maximum is NaN if any entry is. To look first whether there is any
    # would make a GPU wait:
    present = [~x.detach().amax(dim=1).isnan() for x in xs]
    for m, mask in enumerate(masks or []):
        if mask is not None:
            present[m] = present[m] & mask
    out = torch.stack(present)
    return torch.stack(list(xs)).masked_fill_(~out.unsqueeze(-1), 0.0), out


def masks_in_order(
    masks: NamedMasks | Masks, xs: Mapping[str, Tensor] | Sequence[Tensor]
) -> Masks:
    r"""Returns masks in the order of the modalities."""
    if not isinstance(masks, Mapping):
        return masks
    names = list(xs) if isinstance(xs, Mapping) else []
    for name in masks:
        if name not in names:
            raise ValueError(
                f"'masks' needs to name modalities of 'xs', {names} "
                f"(got '{name}')"
            )
    return [masks.get(name) for name in names]


def check_modalities(xs: Sequence[object], num: int, channels: int) -> None:
    r"""Refuses what are no features of this number and size."""
    if len(xs) != num:
        raise ValueError(f"'xs' needs to hold {num} modalities (got {len(xs)})")
    size = None
    for x in xs:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ValueError(
                f"'xs' needs to hold one floating-point tensor per modality "
                f'(got {_describe(x)})'
            )
        size = (*x.size()[:1], channels) if size is None else size
        if tuple(x.size()) != size:
            raise ValueError(
                f"Every tensor in 'xs' needs to have the shape {list(size)} "
                f'(got {list(x.size())})'
            )


def check_masks(masks: Masks, xs: Sequence[Tensor]) -> None:
    r"""Refuses what are no masks of these modalities."""
    if masks is None:
        return
    if len(masks) != len(xs):
        raise ValueError(
            f"'masks' needs to hold {len(xs)} masks (got {len(masks)})"
        )
    for mask in masks:
        if mask is None:
            continue
        is_bool = isinstance(mask, Tensor) and mask.dtype == torch.bool
        if not is_bool or tuple(mask.size()) != tuple(xs[0].size()[:1]):
            raise ValueError(
                f"Every tensor in 'masks' needs to be boolean of shape "
                f'{list(xs[0].size()[:1])} (got {_describe(mask)})'
            )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f'{value.dtype} of shape {list(value.size())}'
    return f"'{type(value).__name__}'"
