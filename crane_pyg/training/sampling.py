r"""Negative sampling."""

from typing import Final

import torch
from torch import Tensor
from torch_geometric.utils import structured_negative_sampling

from crane_pyg._check import check_least, check_size
from crane_pyg._rows import block_sizes, check_index, check_pairs

__all__ = ['sample_negatives']

BLOCK_SIZE: Final = 1 << 16  # Pairs whose samples are sorted in the cache.


def sample_negatives(
    edge_index: Tensor,
    num_items: int,
    num_samples: int = 1,
    exclude: Tensor | None = None,
) -> Tensor:
    r"""Draws, for every pair, items that its user has no pair with, uniformly
    by :func:`torch_geometric.utils.structured_negative_sampling`.

    To be called once per epoch, as it works on the CPU.

    Args:
        edge_index (torch.Tensor): The (user, item) pairs :math:`(2, E)`.
        num_items (int): The number of items.
        num_samples (int, optional): The number of items per pair :math:`S`.
            (default: :obj:`1`)
        exclude (torch.Tensor, optional): Further pairs of these users, whose
            items are not to be drawn either :math:`(2, E^{\prime})`.
            (default: :obj:`None`)

    Returns:
        torch.Tensor: Item indices :math:`(E, S)`.

    Raises:
        ValueError: If :obj:`num_samples` is not positive, if pairs are not of
            that shape, if there is no such user or item, or if a user has
            pairs with all items.
    """
    check_size(1, num_samples=num_samples)
    check_size(0, num_items=num_items)
    for name, pairs in [('edge_index', edge_index), ('exclude', exclude)]:
        if pairs is not None:
            check_pairs(name, pairs)
            check_index(f'{name}[1]', pairs[1], num_items)
            lowest = int(pairs[0].min()) if pairs.numel() > 0 else 0
            check_least(0, **{f'{name}[0]': lowest})
    device, num_edges = edge_index.device, edge_index.size(1)
    if exclude is not None:  # PyG avoids only what it also samples for.
        edge_index = torch.cat([edge_index, exclude], dim=1)
    edge_index = edge_index.cpu().long()
    perm = edge_index[0].argsort(stable=True)
    out = perm.new_empty(num_samples, perm.numel())
    for index in perm.split(block_sizes(edge_index[0, perm], BLOCK_SIZE)):
        out[:, index] = _sample(edge_index[:, index], num_items, num_samples)
    return out[:, :num_edges].t().contiguous().to(device)


def _sample(pairs: Tensor, num_items: int, num_samples: int) -> Tensor:
    r"""Samples for all pairs of some users."""
    user = (pairs[0] * num_items + pairs[1]).unique() // num_items
    user, count = user.unique_consecutive(return_counts=True)
    if int(count.max()) >= num_items:
        raise ValueError(
            f'Every user needs an item to sample (got user '
            f'{int(user[count.argmax()])} with pairs with all {num_items} '
            f'items)'
        )
    repeated = pairs.repeat(1, num_samples)
    negative: Tensor = structured_negative_sampling(repeated, num_items)[2]
    return negative.view(num_samples, -1)
