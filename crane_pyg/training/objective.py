r"""What is asked of a model, and errors that say what it lacks."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Module

RESERVED: Final = ('epoch', 'loss', 'seconds')


def check_model(model: Module, device: torch.device) -> None:
    r"""Checks what can be told without a forward pass."""
    name = type(model).__name__
    if not isinstance(model, Module):
        raise ValueError(f"'model' needs to be a module (got {name})")
    if not any(
        callable(getattr(model, key, None)) for key in ('loss', 'loss_terms')
    ):
        raise ValueError(
            f"'model' needs to have a method 'loss' or 'loss_terms' (got "
            f'{name}, which has neither)'
        )
    devices = {x.device for x in model.parameters()}
    if len(devices) == 0:
        raise ValueError(f"'model' needs to have parameters (got {name})")
    if devices != {device}:
        found = ', '.join(sorted(map(str, devices)))
        raise ValueError(
            f"'model' needs to be on the device of 'data', {device} "
            f'(got {found})'
        )


def get_embeddings(
    out: Any,  # noqa: ANN401
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    r"""Returns the embeddings of users and items in what a model returned."""
    try:
        embs = [out[0], out[1]]
        shapes = [list(x.shape) for x in embs]
    except (AttributeError, IndexError, KeyError, TypeError):
        shapes = []
    width = shapes[0][-1] if shapes and shapes[0] else 0
    if shapes != [[num, width] for num in size]:
        raise ValueError(
            f"'model' needs to return embeddings of all users and items, "
            f'[{size[0]}, d] and [{size[1]}, d] '
            f'(got {shapes or type(out).__name__})'
        )
    return embs[0], embs[1]


def get_terms(
    model: Module,
    out: object,
    index: Iterable[Tensor],
    options: Mapping[str, Any],
) -> dict[str, Tensor]:
    r"""Returns the terms of the loss of a mini-batch, whose sum it is; one
    that is called :obj:`"loss"` if the model does not tell them apart.
    """
    terms: dict[str, Tensor]
    loss_terms: Any = getattr(model, 'loss_terms', None)
    loss: Any = getattr(model, 'loss', None)
    if callable(loss_terms):
        terms = loss_terms(out, *index, **options)
        _check_names(terms)
    else:
        terms = {'loss': loss(out, *index, **options)}
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.dim() > 0:
            shape = getattr(term, 'shape', None)
            found = type(term).__name__ if shape is None else list(shape)
            raise ValueError(
                f"'model' needs to return a scalar tensor as '{name}' "
                f'(got {found})'
            )
    if not any(term.requires_grad for term in terms.values()):
        raise ValueError(
            f"'model' needs to return a loss with a gradient (got none in "
            f'{list(terms)})'
        )
    return terms


def _check_names(terms: object) -> None:
    names = list(terms) if isinstance(terms, Mapping) else []
    if not names or any(name in RESERVED for name in names):
        raise ValueError(
            f"'model' needs to return a dictionary of loss terms, none of "
            f'which is named as one of {RESERVED} (got '
            f'{names or type(terms).__name__})'
        )


def check_losses(losses: Tensor, names: Iterable[str], epoch: int) -> None:
    r"""Refuses what is not finite, and tells where it began.

    Args:
        losses (torch.Tensor): The terms of all steps :math:`(S, T)`.
        names (list[str]): The names of the terms.
        epoch (int): The epoch.
    """
    bad = (~losses.isfinite()).nonzero()
    if bad.size(0) > 0:
        step, term = bad[0].tolist()
        raise ValueError(
            f"'model' needs to have a finite loss (got "
            f"{float(losses[step, term])} in the term '{list(names)[term]}' "
            f'at epoch {epoch}, step {step + 1} of {losses.size(0)})'
        )


def check_parameters(model: Module, epoch: int) -> None:
    r"""Refuses weights that the last step of an epoch has broken."""
    params = dict(model.named_parameters())
    finite = torch.stack([x.detach().isfinite().all() for x in params.values()])
    for name, is_finite in zip(params, finite.tolist(), strict=True):
        if not is_finite:
            raise ValueError(
                f"'model' needs to have finite parameters (got NaN or inf in "
                f"'{name}' at epoch {epoch}, after its last step)"
            )
