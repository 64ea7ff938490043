from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

EPS: Final = 1e-12


def _eps(x: Tensor) -> float:
    return max(EPS, torch.finfo(x.dtype).tiny)  # Half precision holds no less.


def _measure(x: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm, norm.clamp(min=_eps(x)).reciprocal()


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        norm, scale = _measure(x)
        # The input is there anyway, where it is a parameter:
        ctx.save_for_backward(x, scale, norm)
        out: Tensor = x * scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        x, scale, norm = ctx.saved_tensors
        if torch.is_grad_enabled():  # They need derivatives of their own.
            norm, scale = _measure(x)
        along = (grad * x).sum(dim=-1, keepdim=True) * scale * scale
        # A vector that is as good as zero is only multiplied:
        along *= norm > _eps(x)
        across: Tensor = grad.addcmul(x, along, value=-1)
        return across.mul_(scale)


# PyTorch leaves `Function.apply` untyped:
_apply: Callable[[Tensor], Tensor] = _Unit.apply


def unit(x: Tensor) -> Tensor:
    r"""Scales vectors to unit length, as
    :func:`torch.nn.functional.normalize` does along the last dimension, in
    fewer passes over memory.

    .. math::
        \mathbf{y} = \frac{\mathbf{x}}{\max(\| \mathbf{x} \|, \epsilon)},
        \qquad \frac{\partial \mathcal{L}}{\partial \mathbf{x}} =
        \frac{\mathbf{g} - (\mathbf{g}^{\top} \mathbf{y}) \mathbf{y}}
        {\| \mathbf{x} \|}

    Args:
        x (torch.Tensor): The vectors :math:`(*, d)`.
    """
    return _apply(x)
