r"""Recursive cross-modal attention as pure functions of features, weights and
statistics. :math:`M` modalities of :math:`N` rows are one tensor
:math:`(M, N, d)`, zero where a row lacks a modality, as a boolean mask
:math:`(M, N)` tells.
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crane_pyg._rows import HALF

TINY: Final = 1e-12


class Moments(NamedTuple):
    r"""The mean :math:`(M d)` and the covariance :math:`(M d, M d)` of the
    joint rows :math:`\mathbf{Z} = [\mathbf{X}_1 ; \ldots ; \mathbf{X}_M]`.
    """

    mean: Tensor
    covariance: Tensor

    def single(self) -> 'Moments':
        r"""Returns the moments in single precision or better."""
        return Moments(*(_at_least_single(value) for value in self))


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


class _Gram(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.t() @ z

    @staticmethod
    def setup_context(
        ctx: Any,  # noqa: ANN401
        inputs: tuple[Tensor],
        output: Tensor,
    ) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (z,) = ctx.saved_tensors
        out: Tensor = z @ (grad + grad.t())  # One product instead of two.
        return out


# PyTorch leaves `Function.apply` untyped:
_gram: Callable[[Tensor], Tensor] = _Gram.apply


def column_means(x: Tensor, mask: Tensor) -> Tensor:
    r"""Returns the mean of every column :math:`(M d)` over the rows that have
    the modality.
    """
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (_at_least_single(x).sum(dim=1) / count).flatten()


def centre(x: Tensor, mean: Tensor, mask: Tensor) -> Tensor:
    r"""Returns the joint rows :math:`\mathbf{Z} - \bar{\mathbf{Z}}`
    :math:`(N, M d)`, zero where a row lacks a modality.
    """
    x = _at_least_single(x)
    mean = mean.to(x.dtype).view(x.size(0), 1, -1)
    z = add_present(x, -mean, mask)
    return z.transpose(0, 1).flatten(start_dim=1)


def add_present(x: Tensor, update: Tensor, mask: Tensor) -> Tensor:
    r"""Adds to the rows that have a modality; the others stay zero."""
    weight = mask.unsqueeze(-1).to(x.dtype)
    return torch.addcmul(x, weight, update.to(x.dtype))  # One pass for both.


def covariance(z: Tensor) -> Tensor:
    r"""The covariance of all columns of all modalities.

    .. math::
        \mathbf{G} = \frac{1}{N} (\mathbf{Z} - \bar{\mathbf{Z}})^{\top}
        (\mathbf{Z} - \bar{\mathbf{Z}})

    A row that lacks a modality counts as one that has its mean.

    Args:
        z (torch.Tensor): The centred rows :math:`(N, M d)`, see
            :meth:`centre`.
    """
    # A sum over the rows of a catalogue is beyond what half precision holds:
    with torch.autocast(z.device.type, enabled=False):
        return _gram(z) / max(z.size(0), 1)


def root_mean_square(moments: Moments, num_modalities: int) -> Tensor:
    r"""Returns the root mean square :math:`\sigma_m` of the entries of each
    modality :math:`(M)`, which is what its features are measured in.
    """
    square = moments.covariance.diagonal() + moments.mean.square()
    return (square.view(num_modalities, -1).mean(dim=1) + TINY).sqrt()


def joint_space(
    moments: Moments,
    weight: Tensor,
    num_modalities: int,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    r"""The way into the joint space, and what it says about each modality.

    .. math::
        \mathbf{E} = (\mathbf{Z} - \bar{\mathbf{Z}}) \mathbf{P}, \qquad
        \mathbf{P} = \mathrm{diag}(\boldsymbol{\sigma})^{-1} \mathbf{W}
        \, \mathrm{diag}(\mathbf{s})^{-1}, \qquad
        \mathbf{C}_m = \tanh \left( \mathrm{corr}(\mathbf{X}_m,
        \mathbf{E}) \right)

    where :math:`\sigma_m` makes modalities of any units count alike, and
    :math:`\mathbf{s}` gives the columns of :math:`\mathbf{E}` unit variance.
    All of it is linear in :math:`\mathbf{Z}`, so one covariance matrix serves
    all modalities, and no row is touched.

    Args:
        moments (Moments): The statistics of :math:`\mathbf{Z}`.
        weight (torch.Tensor): :math:`\mathbf{W}` :math:`(M d, M d)`.
        num_modalities (int): The number of modalities :math:`M`.
        eps (float, optional): Added to each variance, so that a constant
            column correlates with nothing. Variances are those of features
            whose mean square is one. (default: :obj:`1e-5`)

    Returns:
        tuple: :math:`\mathbf{P}` :math:`(M d, M d)` and :math:`\mathbf{C}`
        :math:`(M, d, M d)`, every entry of which is in :math:`(-1, 1)`.
    """
    moments = moments.single()
    weight = weight.to(moments.covariance.dtype)
    unit = root_mean_square(moments, num_modalities).unsqueeze(-1)
    unit = unit.expand(-1, weight.size(0) // num_modalities).reshape(-1, 1)
    cov = moments.covariance / unit / unit.t()
    with torch.autocast(weight.device.type, enabled=False):
        joint = cov @ weight
    scale_x = (cov.diagonal() + eps).rsqrt().unsqueeze(-1)
    scale_e = ((weight * joint).sum(dim=0).clamp(min=0) + eps).rsqrt()
    corr = (scale_x * joint * scale_e).tanh()
    return weight * scale_e / unit, corr.view(num_modalities, -1, unit.size(0))


def inner_weights(
    moments: Moments,
    weight: Tensor,
    bias: Tensor,
    weight_x: Tensor,
    weight_c: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""What all hidden units are of the joint rows.

    .. math::
        \mathbf{A}_m = \frac{\sigma_m}{\sqrt{M d}} (\mathbf{E} + \mathbf{b})
        \mathbf{C}_m^{\top}, \qquad
        \mathbf{X}_m \mathbf{W}^{(x)}_m + \mathbf{A}_m \mathbf{W}^{(c)}_m
        = \left[ (\mathbf{Z} - \bar{\mathbf{Z}}) \mathbf{Q} + \mathbf{q}
        \right]_m

    :math:`\mathbf{Q}` and :math:`\mathbf{q}` are small matrices, so that a row
    costs one product with :math:`\mathbf{Q}`.

    Args:
        moments (Moments): The statistics of :math:`\mathbf{Z}`.
        weight (torch.Tensor): :math:`\mathbf{W}` :math:`(M d, M d)`.
        bias (torch.Tensor): :math:`\mathbf{b}` :math:`(M d)`.
        weight_x (torch.Tensor): :math:`(M, d, d)`.
        weight_c (torch.Tensor): :math:`(M, d, d)`.

    Returns:
        tuple: :math:`\mathbf{Q}` :math:`(M d, M d)` and :math:`\mathbf{q}`
        :math:`(M d)`.
    """
    moments = moments.single()
    projection, corr = joint_space(moments, weight, weight_x.size(0))
    scale = root_mean_square(moments, weight_x.size(0)).view(-1, 1, 1)
    bias, weight_x, weight_c = (
        value.to(projection.dtype) for value in (bias, weight_x, weight_c)
    )
    with torch.autocast(weight.device.type, enabled=False):
        attend = scale / math.sqrt(bias.numel()) * (corr.mT @ weight_c)
        attend = attend.transpose(0, 1).flatten(start_dim=1)
        own = moments.mean.view(weight_x.size(0), 1, -1) @ weight_x
        inner = projection @ attend + torch.block_diag(*weight_x.unbind())
        return inner, bias @ attend + own.flatten()


def correlation_step(
    x: Tensor,
    z: Tensor,
    mask: Tensor,
    inner: tuple[Tensor, Tensor],
    weight_h: Tensor,
    dropout: float = 0.0,
    training: bool = True,
) -> Tensor:
    r"""One step of recursive cross-modal attention in correlation mode.

    .. math::
        \mathbf{X}_m \leftarrow \mathbf{X}_m + \mathrm{ReLU} \left(
        \mathbf{X}_m \mathbf{W}^{(x)}_m + \mathbf{A}_m
        \mathbf{W}^{(c)}_m \right) \mathbf{W}^{(h)}_m

    Args:
        x (torch.Tensor): The modalities of all rows :math:`(M, N, d)`.
        z (torch.Tensor): The centred rows :math:`(N, M d)`, see
            :meth:`centre`.
        mask (torch.Tensor): Which modalities a row has :math:`(M, N)`.
        inner (tuple): See :meth:`inner_weights`.
        weight_h (torch.Tensor): :math:`(M, d, d)`.
        dropout (float, optional): Dropout probability of the hidden units.
            (default: :obj:`0.`)
        training (bool, optional): If set to :obj:`False`, nothing is dropped.
            (default: :obj:`True`)
    """
    matrix, offset = (value.to(weight_h.dtype) for value in inner)
    hidden = torch.addmm(offset, z.to(weight_h.dtype), matrix).relu()
    hidden = F.dropout(hidden, dropout, training)
    hidden = hidden.view(x.size(1), x.size(0), x.size(2)).transpose(0, 1)
    return add_present(x, hidden @ weight_h, mask)
