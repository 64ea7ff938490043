import torch
from torch import Tensor
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.hetero_data import HeteroData
from torch_geometric.transforms.base_transform import BaseTransform

from crane_pyg._check import check_size
from crane_pyg.transforms._utils import (
    check_no_inf,
    get_modalities,
    warn_partly_missing,
)

OVERSAMPLING = 8
NUM_ITERATIONS = 4


@functional_transform('reduce_features')
class ReduceFeatures(BaseTransform):
    r"""Replaces wide features by their coordinates in the directions of their
    largest singular values (functional name: :obj:`reduce_features`).

    .. math::
        \mathbf{X}_m \leftarrow \mathbf{X}_m \mathbf{V}_m, \qquad
        \mathbf{X}_m \approx \mathbf{U}_m \mathbf{\Sigma}_m
        \mathbf{V}_m^{\top}

    by the randomized algorithm of the `"Finding Structure with Randomness"
    <https://arxiv.org/abs/0909.4061>`_ paper, which draws from the global
    generator. A linear layer on the coordinates is one on the features, of a
    fraction of the cost; it loses nothing if the rank of the features is not
    above :obj:`channels`, and otherwise what
    :obj:`data[node_type].explained_<name>` lacks to one: this is the share of
    the sum of squares of the features that is left.

    Rows that hold a NaN stay missing; a :class:`UserWarning` counts those that
    hold numbers as well. Features that are not wider than
    :obj:`channels` stay as they are. :math:`\mathbf{V}_m`, which takes features
    of further items to their coordinates, is kept as
    :obj:`data[node_type].basis_<name>`.

    .. note::
        Compose it *after* :class:`~crane_pyg.transforms.BuildDualGraph` to
        keep the nearest neighbors those of the features. The lists of these
        are dropped, as :func:`~crane_pyg.transforms.attach_items` would compare
        features with coordinates: for new items, compose it *before*, and
        attach their features times :math:`\mathbf{V}_m`.

    Args:
        channels (int): The number of coordinates, or of nodes if there are
            fewer.
        node_type (str, optional): The type of the nodes.
            (default: :obj:`"item"`)

    Raises:
        ValueError: If :obj:`channels` is not positive, if there is no
            modality, or if features to be reduced are infinite.
    """

    def __init__(self, channels: int, node_type: str = 'item') -> None:
        check_size(1, channels=channels)
        self.channels = channels
        self.node_type = node_type

    def forward(self, data: HeteroData) -> HeteroData:
        r"""Returns the data with reduced features."""
        store = data[self.node_type]
        for name, x in get_modalities(data, self.node_type).items():
            if x.size(1) <= self.channels:
                continue
            check_no_inf(x, f'x_{name}')
            warn_partly_missing(x, f'x_{name}', stacklevel=3)
            x, basis, explained = truncated_svd(x, self.channels)
            store[f'x_{name}'], store[f'basis_{name}'] = x, basis
            store[f'explained_{name}'] = explained
            store.pop(f'neighbor_{name}', None)
            store.pop(f'similarity_{name}', None)
        return data

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(channels={self.channels}, '
            f"node_type='{self.node_type}')"
        )


def truncated_svd(x: Tensor, channels: int) -> tuple[Tensor, Tensor, float]:
    r"""Returns the coordinates :math:`(N, k)`, the directions
    :math:`(F, k)`, and the share of the sum of squares that is left.
    """
    mask = x.sum(dim=-1, keepdim=True).isnan()
    filled = x.masked_fill(mask, 0.0) if bool(mask.any()) else x
    if x.dtype != torch.double:  # There is no decomposition in less.
        filled = filled.float()
    num = min(channels + OVERSAMPLING, *x.size())
    basis = torch.svd_lowrank(filled, q=num, niter=NUM_ITERATIONS)[2]
    basis = basis[:, :channels].contiguous()
    out = filled @ basis
    total, kept = _sum_of_squares(filled), _sum_of_squares(out)
    explained = kept / total if total > 0 else 1.0
    out = out.masked_fill(mask, float('nan'))
    return out.to(x.dtype), basis.to(x.dtype), explained


def _sum_of_squares(x: Tensor) -> float:
    # In blocks, as a copy in double precision takes twice the features.
    return sum(float(block.double().square().sum()) for block in x.split(1024))
