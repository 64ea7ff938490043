from collections.abc import Mapping, Sequence
from typing import Final, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Parameter
from torch_geometric.nn.inits import glorot, reset, uniform, zeros

from crane_pyg._check import check_fraction, check_option, check_size
from crane_pyg.nn.correlation import (
    Moments,
    add_present,
    centre,
    column_means,
    correlation_step,
    covariance,
    inner_weights,
)
from crane_pyg.nn.modalities import (
    Masks,
    NamedMasks,
    check_masks,
    check_modalities,
    masks_in_order,
    stack_modalities,
)

MODES: Final = ('correlation', 'token')


class _CorrelationStep(torch.nn.Module):
    def __init__(self, channels: int, num_modalities: int) -> None:
        super().__init__()
        d, m = channels, num_modalities
        self.weight = Parameter(torch.empty(m * d, m * d))
        self.bias = Parameter(torch.empty(m * d))
        self.weight_x = Parameter(torch.empty(m, d, d))
        self.weight_c = Parameter(torch.empty(m, d, d))
        self.weight_h = Parameter(torch.empty(m, d, d))

    def reset_parameters(self) -> None:
        glorot(self.weight)
        zeros(self.bias)
        glorot(self.weight_x)
        glorot(self.weight_c)
        zeros(self.weight_h)

    def forward(
        self,
        x: Tensor,
        z: Tensor,
        mask: Tensor,
        moments: Moments,
        dropout: float,
    ) -> Tensor:
        inner = inner_weights(
            moments, self.weight, self.bias, self.weight_x, self.weight_c
        )
        return correlation_step(
            x, z, mask, inner, self.weight_h, dropout, self.training
        )


class _TokenStep(torch.nn.Module):
    def __init__(self, channels: int, num_modalities: int) -> None:
        super().__init__()
        d, m = channels, num_modalities
        # Of each modality, as attention alone does not tell them apart:
        self.weight = Parameter(torch.empty(m, d, 3 * d))
        self.bias = Parameter(torch.empty(m, 1, 3 * d))
        self.lin_out = Linear(channels, channels)

    def reset_parameters(self) -> None:
        uniform(self.weight.size(1), self.weight)
        uniform(self.weight.size(1), self.bias)
        zeros(self.lin_out.weight)
        zeros(self.lin_out.bias)

    def forward(self, x: Tensor, mask: Tensor, dropout: float) -> Tensor:
        qkv = (x @ self.weight + self.bias).transpose(0, 1)
        query, key, value = qkv.chunk(3, dim=-1)
        # A row that has no modality attends to all, which keeps the softmax
        # finite; its output is masked afterwards.
        attn_mask = (mask | ~mask.any(dim=0)).t().unsqueeze(1)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask,
            dropout_p=dropout if self.training else 0.0,
        )
        return add_present(x, self.lin_out(attended).transpose(0, 1), mask)


class RCA(torch.nn.Module):
    r"""Recursive cross-modal attention from the `"Cross-Modal Attention
    Network with Dual Graph Learning in Multimodal Recommendation"
    <https://arxiv.org/abs/2601.11151>`_ paper.

    Refines the features of :math:`M` modalities by what they say about each
    other, row by row, :math:`R` times over. In the mode
    :obj:`"correlation"`, each step maps a row into a joint space of all its
    modalities, which a modality attends to by its correlation with it:

    .. math::
        \mathbf{E} &= \mathrm{norm} \left( [\mathbf{X}_1 / \sigma_1 ; \ldots ;
        \mathbf{X}_M / \sigma_M] \, \mathbf{W} \right) + \mathbf{b}

        \mathbf{C}_m &= \tanh \left( \mathrm{corr}(\mathbf{X}_m,
        \mathbf{E}) \right), \qquad
        \mathbf{A}_m = \frac{\sigma_m}{\sqrt{M d}}
        \mathbf{E} \mathbf{C}_m^{\top}

        \mathbf{X}_m &\leftarrow \mathbf{X}_m + \mathrm{ReLU} \left(
        \mathbf{X}_m \mathbf{W}^{(x)}_m + \mathbf{A}_m
        \mathbf{W}^{(c)}_m \right) \mathbf{W}^{(h)}_m

    where :math:`\mathrm{norm}` gives columns zero mean and unit variance, and
    :math:`\sigma_m` is the root mean square of all entries of
    :math:`\mathbf{X}_m`: the units of one modality do not matter to another,
    and its refined features are in the units of the modality.

    The paper gives the joint space, the cross-correlation with it and the
    residual; the rest is a reading of it.

    :math:`\sigma_m`, the means, variances and :math:`\mathbf{C}_m` are
    statistics of the whole catalogue. In training they are taken over the rows
    given; a running mean of the mean and of the covariance that they come from
    is kept, as :class:`torch.nn.BatchNorm1d` keeps its statistics, and used
    in evaluation, where the output of a row therefore depends on no other row.
    Before the first training pass they are zero, and so is
    :math:`\mathbf{A}_m`; no rows leave them as they are.

    In the mode :obj:`"token"`, each step is scaled dot-product attention
    between the :math:`M` modality vectors of one row, with queries, keys and
    values of each modality.

    A row that holds a NaN in a modality, or that its mask marks, lacks this
    modality. It then has the mean of all rows, adds to no statistic, and is
    zero in the output. In mode :obj:`"token"`, no modality attends to it.

    The last weights of each step start at zero: a new module returns what it
    is given, and learns how far to depart from it. One modality alone always
    stays as it is. The cost is linear in the number of rows in both modes.

    .. note::
        A transform of :class:`torch.func` needs the buffers of a module in
        training among its inputs, as for :class:`torch.nn.BatchNorm1d`.

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
            means. (default: :obj:`0.1`)

    Shapes:
        - **input:** list of :math:`M` tensors :math:`(N, d)`, or a dictionary
          of them, whose order is that of the modalities; masks, list or
          dictionary of boolean tensors :math:`(N)`, :obj:`True` where the row
          has the modality, or of :obj:`None` *(optional)*
        - **output:** list or dictionary of :math:`M` tensors :math:`(N, d)`;
          zero where the modality is missing

    Raises:
        ValueError: If an argument is out of its range, or the input is not
            :obj:`num_modalities` floating-point tensors of equal shape.
    """

    mean: Tensor
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
        check_size(
            1,
            channels=channels,
            num_modalities=num_modalities,
            num_steps=num_steps,
        )
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

        num_modules = 1 if shared else num_steps
        self.steps = torch.nn.ModuleList(
            _CorrelationStep(channels, num_modalities)
            if mode == 'correlation'
            else _TokenStep(channels, num_modalities)
            for _ in range(num_modules if num_modalities > 1 else 0)
        )
        if mode == 'correlation' and num_modalities > 1:
            size = num_modalities * channels
            self.register_buffer('mean', torch.empty(num_steps, size))
            stats = torch.empty(num_steps, size, size)
            self.register_buffer('covariance', stats)
            self.register_buffer('num_updates', torch.tensor(0))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters and the stored statistics."""
        reset(self.steps)
        for stats in self.buffers():
            stats.zero_()

    @overload
    def forward(
        self,
        xs: Mapping[str, Tensor],
        masks: NamedMasks | Masks = ...,
    ) -> dict[str, Tensor]: ...

    @overload
    def forward(
        self, xs: Sequence[Tensor], masks: Masks = ...
    ) -> list[Tensor]: ...

    def forward(
        self,
        xs: Mapping[str, Tensor] | Sequence[Tensor],
        masks: NamedMasks | Masks = None,
    ) -> dict[str, Tensor] | list[Tensor]:
        r"""Runs the forward pass.

        Args:
            xs (list[torch.Tensor] or dict[str, torch.Tensor]): One tensor
                :math:`(N, d)` per modality.
            masks (list[torch.Tensor] or dict[str, torch.Tensor], optional):
                One boolean tensor :math:`(N)` per modality, :obj:`True` where
                a row has it, or :obj:`None` if only a NaN tells.
                (default: :obj:`None`)
        """
        masks = masks_in_order(masks, xs)
        if isinstance(xs, Mapping):
            outs = self._refine(list(xs.values()), masks)
            return dict(zip(xs, outs, strict=True))
        return self._refine(xs, masks)

    def _refine(self, xs: Sequence[Tensor], masks: Masks) -> list[Tensor]:
        check_modalities(xs, self.num_modalities, self.channels)
        check_masks(masks, xs)
        x, mask = stack_modalities(xs, masks)
        for r in range(self.num_steps if len(self.steps) > 0 else 0):
            step = self.steps[0 if self.shared else r]
            if self.mode == 'correlation':
                z, moments = self._statistics(x, mask, r)
                x = step(x, z, mask, moments, self.dropout)
            else:
                x = step(x, mask, self.dropout)
        if self.training and hasattr(self, 'num_updates') and x.size(1) > 0:
            self.num_updates += 1
        return list(x.unbind())

    def _statistics(
        self, x: Tensor, mask: Tensor, step: int
    ) -> tuple[Tensor, Moments]:
        r"""Returns the centred rows, and the moments used."""
        stored = Moments(self.mean[step], self.covariance[step])
        if not self.training:
            return centre(x, stored.mean, mask), stored
        mean = column_means(x, mask)
        z = centre(x, mean, mask)
        latest = Moments(mean, covariance(z))
        if x.size(1) > 0:
            self._update(stored, latest)
        return z, latest

    @torch.no_grad()
    def _update(self, stored: Moments, latest: Moments) -> None:
        means = []
        for old, new in zip(stored, latest, strict=True):
            limit = torch.finfo(old.dtype).max  # Beyond is `inf`.
            new = new.clamp(-limit, limit).to(old.dtype)
            mean = old.lerp(new, self.momentum)
            means.append(new.where(self.num_updates == 0, mean))
        # A NaN would stay forever:
        finite = means[0].isfinite().all() & means[1].isfinite().all()
        for old, mean in zip(stored, means, strict=True):
            old.copy_(mean.where(finite, old))

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.channels}, '
            f'num_modalities={self.num_modalities}, '
            f"num_steps={self.num_steps}, mode='{self.mode}')"
        )
