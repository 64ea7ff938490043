from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Parameter
from torch_geometric.nn.inits import glorot, reset, zeros

from crane_pyg._check import check_fraction, check_option, check_size
from crane_pyg._rows import HALF

MODES: Final = ('correlation', 'token')


def stack_modalities(
    xs: Sequence[Tensor],
    masks: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    r"""Stacks :math:`M` tensors :math:`(N, d)` into one :math:`(M, N, d)`.

    Rows that a mask marks as missing become zero, whatever they held.
    """
    x = torch.stack(list(xs))
    if masks is None:
        return x, None
    mask = torch.stack(list(masks))
    return x.masked_fill(~mask.unsqueeze(-1), 0.0), mask


def _at_least_single(x: Tensor) -> Tensor:
    half = x.dtype in HALF
    return x.float() if half else x


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(z)
        return z.t() @ z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (z,) = ctx.saved_tensors
        out: Tensor = z @ (grad + grad.t())  # One product instead of two.
        return out


# PyTorch leaves `Function.apply` untyped:
_gram: Callable[[Tensor], Tensor] = _Gram.apply


def covariance(x: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""The covariance :math:`(M d, M d)` of all columns of all modalities.

    .. math::
        \mathbf{G} = \frac{1}{N} (\mathbf{Z} - \bar{\mathbf{Z}})^{\top}
        (\mathbf{Z} - \bar{\mathbf{Z}}), \qquad
        \mathbf{Z} = [\mathbf{X}_1 ; \ldots ; \mathbf{X}_M]

    A missing modality has no weight: it counts neither in the mean of its
    columns nor in any product.

    Args:
        x (torch.Tensor): The modalities of all rows :math:`(M, N, d)`.
        mask (torch.Tensor, optional): Which modalities a row has
            :math:`(M, N)`. (default: :obj:`None`)
    """
    x = _at_least_single(x)
    if mask is None:
        centred = x - x.mean(dim=1, keepdim=True)
    else:
        weight = mask.unsqueeze(-1).to(x.dtype)
        count = weight.sum(dim=1, keepdim=True).clamp(min=1)
        mean = (x * weight).sum(dim=1, keepdim=True) / count
        centred = (x - mean) * weight
    z = centred.transpose(0, 1).flatten(start_dim=1)
    # A sum over the rows of a catalogue is beyond what half precision holds:
    with torch.autocast(x.device.type, enabled=False):
        return _gram(z) / max(z.size(0), 1)


def cross_correlation(
    covariance: Tensor,
    weight: Tensor,
    num_modalities: int,
    eps: float = 1e-5,
) -> Tensor:
    r"""The squashed correlation of every modality with the joint space.

    .. math::
        \mathbf{C}_m = \tanh \left( \mathrm{corr}(\mathbf{X}_m,
        \mathbf{Z} \mathbf{W} + \mathbf{b}) \right)

    The joint space is linear in :math:`\mathbf{Z}`, so one covariance matrix
    serves all modalities and no row is touched; a bias :math:`\mathbf{b}`
    cancels when the columns are centred, so there is none.

    Args:
        covariance (torch.Tensor): :math:`\mathbf{G}`, see :meth:`covariance`.
        weight (torch.Tensor): :math:`\mathbf{W}` :math:`(M d, M d)`.
        num_modalities (int): The number of modalities :math:`M`.
        eps (float, optional): Added to each variance, so that a constant
            column correlates with nothing. (default: :obj:`1e-5`)

    Returns:
        torch.Tensor: :math:`(M, d, M d)`, every entry in :math:`(-1, 1)`.
    """
    covariance = _at_least_single(covariance)
    weight = weight.to(covariance.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        joint = covariance @ weight
    scale_x = (covariance.diagonal() + eps).rsqrt()
    scale_e = ((weight * joint).sum(dim=0).clamp(min=0) + eps).rsqrt()
    corr = scale_x.unsqueeze(-1) * joint * scale_e
    return corr.tanh().view(num_modalities, -1, weight.size(1))


def correlation_step(
    x: Tensor,
    correlation: Tensor,
    weight_x: Tensor,
    weight_c: Tensor,
    weight_h: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    r"""One step of recursive cross-modal attention in correlation mode.

    .. math::
        \mathbf{X}_m \leftarrow \mathbf{X}_m + \mathrm{ReLU} \left(
        \mathbf{X}_m \mathbf{W}^{(x)}_m + \mathbf{X}_m \mathbf{C}_m
        \mathbf{W}^{(c)}_m \right) \mathbf{W}^{(h)}_m

    The two inner products share their left factor and are taken as
    :math:`\mathbf{X}_m (\mathbf{W}^{(x)}_m + \mathbf{C}_m
    \mathbf{W}^{(c)}_m)`: two :math:`d \times d` products a row.

    Args:
        x (torch.Tensor): The modalities of all rows :math:`(M, N, d)`.
        correlation (torch.Tensor): :math:`\mathbf{C}` :math:`(M, d, M d)`.
        weight_x (torch.Tensor): :math:`(M, d, d)`.
        weight_c (torch.Tensor): :math:`(M, M d, d)`.
        weight_h (torch.Tensor): :math:`(M, d, d)`.
        dropout (float, optional): Dropout probability of the hidden units.
            (default: :obj:`0.`)
    """
    inner = weight_x + correlation.to(weight_c.dtype) @ weight_c
    hidden = F.dropout((x @ inner).relu(), dropout, training=dropout > 0)
    return x + hidden @ weight_h


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f'{value.dtype} of shape {list(value.size())}'
    return f"'{type(value).__name__}'"


class _CorrelationStep(torch.nn.Module):
    def __init__(self, channels: int, num_modalities: int) -> None:
        super().__init__()
        d, m = channels, num_modalities
        self.weight = Parameter(torch.empty(m * d, m * d))
        self.weight_x = Parameter(torch.empty(m, d, d))
        self.weight_c = Parameter(torch.empty(m, m * d, d))
        self.weight_h = Parameter(torch.empty(m, d, d))

    def reset_parameters(self) -> None:
        glorot(self.weight)
        glorot(self.weight_x)
        glorot(self.weight_c)
        zeros(self.weight_h)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        covariance: Tensor,
        dropout: float,
    ) -> Tensor:
        corr = cross_correlation(covariance, self.weight, x.size(0))
        return correlation_step(
            x, corr, self.weight_x, self.weight_c, self.weight_h, dropout
        )


class _TokenStep(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lin_qkv = Linear(channels, 3 * channels)
        self.lin_out = Linear(channels, channels)

    def reset_parameters(self) -> None:
        self.lin_qkv.reset_parameters()
        zeros(self.lin_out.weight)
        zeros(self.lin_out.bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        covariance: Tensor | None,
        dropout: float,
    ) -> Tensor:
        query, key, value = self.lin_qkv(x.transpose(0, 1)).chunk(3, dim=-1)
        attn_mask = None
        if mask is not None:
            # A row that has no modality attends to all, which keeps the
            # softmax finite; its output is masked afterwards.
            attn_mask = (mask | ~mask.any(dim=0)).t().unsqueeze(1)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p=dropout
        )
        out: Tensor = x + self.lin_out(attended).transpose(0, 1)
        return out


class RCA(torch.nn.Module):
    r"""Recursive cross-modal attention from the `"Cross-Modal Attention
    Network with Dual Graph Learning in Multimodal Recommendation"
    <https://arxiv.org/abs/2601.11151>`_ paper.

    Refines the features of :math:`M \geq 2` modalities by what they say about
    each other, :math:`R` times over. In the mode :obj:`"correlation"`, each
    step correlates every modality with a joint space of all of them, and
    refines it by a residual:

    .. math::
        \mathbf{C}_m &= \tanh \left( \mathrm{corr}(\mathbf{X}_m,
        \mathbf{Z} \mathbf{W} + \mathbf{b}) \right), \qquad
        \mathbf{Z} = [\mathbf{X}_1 ; \ldots ; \mathbf{X}_M]

        \mathbf{X}_m &\leftarrow \mathbf{X}_m + \mathrm{ReLU} \left(
        \mathbf{X}_m \mathbf{W}^{(x)}_m + \mathbf{X}_m \mathbf{C}_m
        \mathbf{W}^{(c)}_m \right) \mathbf{W}^{(h)}_m

    :math:`\mathbf{C}_m` is a statistic of the whole catalogue. In training it
    is taken over the rows given; a running mean of the covariance it comes
    from is kept, as :class:`torch.nn.BatchNorm1d` keeps its statistics, and
    used in evaluation, where the output of a row therefore depends on no
    other row. Before the first training pass it is zero; no rows leave it as
    it is.

    In the mode :obj:`"token"`, each step is scaled dot-product attention
    between the :math:`M` modality vectors of one row.

    A row that lacks a modality needs a mask: a NaN would spread to all rows.

    The last weights of each step start at zero: a new module returns what it
    is given, and learns how far to depart from it. The cost is linear in the
    number of rows in both modes.

    Args:
        channels (int): Size of each modality vector :math:`d`.
        num_modalities (int): The number of modalities :math:`M`.
        num_steps (int, optional): The number of steps :math:`R`.
            (default: :obj:`1`)
        mode (str, optional): :obj:`"correlation"` or :obj:`"token"`.
            (default: :obj:`"correlation"`)
        shared (bool, optional): If set to :obj:`True`, all steps share their
            weights. (default: :obj:`False`)
        dropout (float, optional): Dropout probability of the hidden units
            (:obj:`"correlation"`) or of the attention coefficients
            (:obj:`"token"`). (default: :obj:`0.`)
        momentum (float, optional): Weight of the latest rows in the running
            mean of the covariance. (default: :obj:`0.1`)

    Shapes:
        - **input:** list of :math:`M` tensors :math:`(N, d)`,
          masks, list of :math:`M` boolean tensors :math:`(N)`, :obj:`True`
          where the row has the modality *(optional)*
        - **output:** list of :math:`M` tensors :math:`(N, d)`; zero where the
          modality is missing

    Raises:
        ValueError: If an argument is out of its range, or the input is not
            :obj:`num_modalities` floating-point tensors of equal shape.
    """

    covariance: Tensor
    num_updates: Tensor

    def __init__(
        self,
        channels: int,
        num_modalities: int,
        num_steps: int = 1,
        mode: str = 'correlation',
        shared: bool = False,
        dropout: float = 0.0,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        check_size(1, channels=channels, num_steps=num_steps)
        check_size(2, num_modalities=num_modalities)
        check_option('mode', mode, MODES)
        check_fraction('dropout', dropout)
        if not 0 < momentum <= 1:
            raise ValueError(
                f"'momentum' needs to be in (0, 1] (got {momentum})"
            )

        self.channels = channels
        self.num_modalities = num_modalities
        self.num_steps = num_steps
        self.mode = mode
        self.shared = shared
        self.dropout = dropout
        self.momentum = momentum

        self.steps = torch.nn.ModuleList(
            _CorrelationStep(channels, num_modalities)
            if mode == 'correlation'
            else _TokenStep(channels)
            for _ in range(1 if shared else num_steps)
        )
        if mode == 'correlation':
            size = num_modalities * channels
            stats = torch.empty(num_steps, size, size)
            self.register_buffer('covariance', stats)
            self.register_buffer('num_updates', torch.tensor(0))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters and the stored statistics."""
        reset(self.steps)
        if self.mode == 'correlation':
            self.covariance.zero_()
            self.num_updates.zero_()

    def forward(
        self,
        xs: Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        r"""Runs the forward pass.

        Args:
            xs (list[torch.Tensor]): One tensor :math:`(N, d)` per modality.
            masks (list[torch.Tensor], optional): One boolean tensor
                :math:`(N)` per modality, :obj:`True` where a row has it.
                (default: :obj:`None`)
        """
        self._check(xs, masks)
        x, mask = stack_modalities(xs, masks)
        dropout = self.dropout if self.training else 0.0
        for r in range(self.num_steps):
            step = self.steps[0 if self.shared else r]
            x = step(x, mask, self._statistics(x, mask, r), dropout)
            if mask is not None:
                x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        if self.training and self.mode == 'correlation' and x.size(1) > 0:
            self.num_updates += 1
        return list(x.unbind())

    def _statistics(
        self,
        x: Tensor,
        mask: Tensor | None,
        step: int,
    ) -> Tensor | None:
        if self.mode != 'correlation':
            return None
        if not self.training:
            return self.covariance[step]
        stats = covariance(x, mask)
        if x.size(1) > 0:
            with torch.no_grad():
                stored = self.covariance[step]
                limit = torch.finfo(stored.dtype).max  # Beyond is `inf`.
                latest = stats.clamp(-limit, limit).to(stored.dtype)
                mean = stored.lerp(latest, self.momentum)
                mean = latest.where(self.num_updates == 0, mean)
                # A NaN would stay forever:
                stored.copy_(mean.where(mean.isfinite().all(), stored))
        return stats

    def _check(
        self,
        xs: Sequence[Tensor],
        masks: Sequence[Tensor] | None,
    ) -> None:
        if len(xs) != self.num_modalities:
            raise ValueError(
                f"'xs' needs to hold {self.num_modalities} modalities "
                f'(got {len(xs)})'
            )
        for x in xs:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise ValueError(
                    f"'xs' needs to hold one floating-point tensor per "
                    f'modality (got {_describe(x)})'
                )
        size = (*xs[0].size()[:1], self.channels)
        for x in xs:
            if tuple(x.size()) != size:
                raise ValueError(
                    f"Every tensor in 'xs' needs to have the shape "
                    f'{list(size)} (got {list(x.size())})'
                )
        if masks is None:
            return
        if len(masks) != self.num_modalities:
            raise ValueError(
                f"'masks' needs to hold {self.num_modalities} masks "
                f'(got {len(masks)})'
            )
        for mask in masks:
            is_bool = isinstance(mask, Tensor) and mask.dtype == torch.bool
            if not is_bool or tuple(mask.size()) != size[:1]:
                raise ValueError(
                    f"Every tensor in 'masks' needs to be boolean of shape "
                    f'{list(size[:1])} (got {_describe(mask)})'
                )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.channels}, '
            f'num_modalities={self.num_modalities}, '
            f"num_steps={self.num_steps}, mode='{self.mode}')"
        )
