from collections.abc import Mapping
from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, ModuleDict
from torch_geometric.data.storage import NodeStorage
from torch_geometric.nn.inits import reset

from crane_pyg._check import check_fraction, check_option, check_size
from crane_pyg._rows import HALF
from crane_pyg.nn.features import FeatureCache
from crane_pyg.nn.rca import MODES, RCA


class ModalityEncoder(torch.nn.Module):
    r"""Turns the features of every modality into one stream each: a projection
    of rows scaled to unit length, refined across the modalities by
    :class:`~crane_pyg.nn.RCA`.

    .. math::
        \mathbf{X}_1, \ldots, \mathbf{X}_M = \mathrm{RCA} \left(
        \hat{\mathbf{F}}_1 \mathbf{W}_1 + \mathbf{b}_1, \ldots,
        \hat{\mathbf{F}}_M \mathbf{W}_M + \mathbf{b}_M \right)

    A row that holds a NaN or only zeros lacks the modality: its stream is
    zero. What does not change from step to step, which rows are there and how
    long they are, is worked out once for every tensor of features. Features
    in half precision are projected in it, which saves half of their memory.

    Args:
        in_channels (dict[str, int]): The feature size of each modality.
        channels (int): Size of each stream :math:`d`.
        mode (str, optional): The mode of :class:`~crane_pyg.nn.RCA`, or
            :obj:`None` to leave it out. One modality alone has nothing to
            attend to, and leaves it out too. (default: :obj:`None`)
        num_steps (int, optional): The number of steps of
            :class:`~crane_pyg.nn.RCA`. (default: :obj:`1`)
        dropout (float, optional): Dropout probability of the features.
            (default: :obj:`0.`)

    Shapes:
        - **input:** features :math:`(N, F_m)` by the name of the modality
        - **output:** streams :math:`(N, d)` in the order of
          :obj:`in_channels`

    Raises:
        ValueError: If an argument is out of its range, or if features are
            missing, of another size or infinite.
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        channels: int,
        mode: str | None = None,
        num_steps: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_modalities(in_channels)
        check_size(1, channels=channels, num_steps=num_steps)
        check_option('mode', mode, (*MODES, None))
        check_fraction('dropout', dropout)
        self.in_channels = dict(in_channels)
        self.dropout = dropout
        # Prefixed, as modules reserve names such as 'training' and 'keys':
        self.lins = ModuleDict(
            {
                f'x_{name}': Linear(size, channels)
                for name, size in in_channels.items()
            }
        )
        self.rca: RCA | None = None
        if mode is not None and len(in_channels) > 1:
            self.rca = RCA(channels, len(in_channels), num_steps, mode)
        self._features = FeatureCache()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset(self.lins)
        if self.rca is not None:
            self.rca.reset_parameters()

    def forward(self, x_dict: Mapping[str, Tensor]) -> list[Tensor]:
        """"""  # noqa: D419
        xs, masks = [], []
        for name in self.in_channels:
            x, mask = self._encode(name, x_dict[name])
            xs.append(x)
            masks.append(mask)
        return xs if self.rca is None else self.rca(xs, masks)

    def _encode(self, name: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
        linear = cast(Linear, self.lins[f'x_{name}'])
        # Half precision stays; all other features take that of the module:
        dtype = x.dtype if x.dtype in HALF else linear.weight.dtype
        x, mask, scale = self._features(f'x_{name}', x, dtype)
        x = F.dropout(x, self.dropout, self.training)
        x = _project(linear, x, scale)
        return x if mask is None else x * mask.unsqueeze(-1), mask

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(in_channels={self.in_channels}, '
            f'rca={self.rca})'
        )


def read_features(
    store: NodeStorage, in_channels: Mapping[str, int], num_rows: int
) -> dict[str, Tensor]:
    r"""Returns the features of every modality, of the size that is needed."""
    x_dict = {}
    for name, size in in_channels.items():
        x = store.get(f'x_{name}')
        if x is None or tuple(x.size()) != (num_rows, size):
            raise ValueError(
                f"'x_{name}' needs to be of shape {[num_rows, size]} "
                f'(got {None if x is None else list(x.size())})'
            )
        x_dict[name] = x
    return x_dict


def _project(linear: Linear, x: Tensor, scale: Tensor) -> Tensor:
    weight, bias = linear.weight, linear.bias
    # Unless autocast says otherwise:
    half = x.dtype != weight.dtype
    with torch.autocast(x.device.type, x.dtype) if half else nullcontext():
        x = F.linear(x, weight).to(weight.dtype)
    return torch.addcmul(bias, x, scale.to(x.dtype))


def check_modalities(in_channels: Mapping[str, int]) -> None:
    r"""Refuses what are no feature sizes by name."""
    if not isinstance(in_channels, Mapping) or len(in_channels) == 0:
        raise ValueError(
            f"'in_channels' needs to hold the feature size of at least one "
            f'modality by its name (got {in_channels})'
        )
    for name, size in in_channels.items():
        check_size(1, **{f"in_channels['{name}']": size})
        if not isinstance(name, str) or '.' in name:  # As no module's.
            raise ValueError(
                f"'in_channels' needs to hold names without dots (got {name!r})"
            )
