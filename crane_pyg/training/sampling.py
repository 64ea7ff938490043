r"""Negative sampling."""

import warnings
from typing import Final

import torch
from torch import Tensor

from crane_pyg._check import check_least, check_size
from crane_pyg._rows import as_pairs, check_index

__all__ = ['sample_negatives']

BLOCK_SIZE: Final = 1 << 20  # Samples that are drawn at once.


def sample_negatives(
    edge_index: object,
    num_items: int,
    num_samples: int = 1,
    exclude: object = None,
) -> Tensor:
    r"""Draws, for every pair, items that its user has no pair with, uniformly
    and independently.

    Of the :math:`n` items that are left to a user, the one of a random rank
    below :math:`n` is looked up in the sorted pairs, so that a user who has
    nearly all items takes no more time than others. To be called once per
    epoch, as it sorts all pairs.

    Args:
        edge_index (torch.Tensor): The (user, item) pairs :math:`(2, E)`.
        num_items (int): The number of items.
        num_samples (int, optional): The number of items per pair :math:`S`.
            (default: :obj:`1`)
        exclude (torch.Tensor, optional): Further pairs of these users, whose
            items are not to be drawn either :math:`(2, E^{\prime})`.
            (default: :obj:`None`)

    Returns:
        torch.Tensor: Item indices :math:`(E, S)`, on the device of the pairs.
        The rows of a user with pairs with all items hold :obj:`-1`, and a
        :class:`UserWarning` counts these users.

    Raises:
        ValueError: If :obj:`num_samples` is not positive, if pairs are not of
            that shape, or if there is no such user or item.
    """
    check_size(1, num_samples=num_samples)
    check_size(0, num_items=num_items)
    pairs = _as_pairs('edge_index', edge_index, num_items)
    user = pairs[0]
    if exclude is not None:
        others = _as_pairs('exclude', exclude, num_items, pairs.device)
        pairs = torch.cat([pairs, others], dim=1)
    unseen = UnseenItems(pairs, num_items)
    out = unseen.sample(user, num_samples)
    if out.numel() > 0:
        warn_of_full(int(user[out[:, 0] < 0].unique().numel()), num_items)
    return out


def _as_pairs(
    name: str,
    value: object,
    num_items: int,
    device: torch.device | None = None,
) -> Tensor:
    pairs = as_pairs(name, value, device=device)
    check_index(f'{name}[1]', pairs[1], num_items)
    lowest = int(pairs[0].min()) if pairs.numel() > 0 else 0
    check_least(0, **{f'{name}[0]': lowest})
    return pairs


def warn_of_full(num_users: int, num_items: int, stacklevel: int = 3) -> None:
    r"""Counts the users for whom no item can be drawn, if any."""
    if num_users > 0:
        warnings.warn(
            f'{num_users} user(s) have pairs with all {num_items} items, and '
            f'are left out, as there is no other item to sample',
            stacklevel=stacklevel,
        )


class UnseenItems:
    r"""The items that users have no pair with.

    If the sorted items of a user are :math:`p_0 < p_1 < \dots`, there are
    :math:`p_j - j` others before the :math:`j`-th of them. The item of rank
    :math:`r` among the others is thus :math:`r` plus the number of :math:`j`
    with :math:`p_j - j \leq r`.

    Args:
        edge_index (torch.Tensor): The (user, item) pairs, one of which may
            stand twice :math:`(2, E)`.
        num_items (int): The number of items.
    """

    def __init__(self, edge_index: Tensor, num_items: int) -> None:
        self.num_items = num_items
        user, item = edge_index.long()
        key = (user * max(num_items, 1) + item).unique()
        user, item = key // max(num_items, 1), key % max(num_items, 1)
        self.user, count = user.unique_consecutive(return_counts=True)
        self.left = num_items - count
        self.start = count.cumsum(0) - count
        rank = torch.arange(key.numel(), device=key.device)
        rank -= self.start.repeat_interleave(count)
        # Sorted by user, then by the number of other items before it:
        self.key = user * (num_items + 1) + item - rank

    @property
    def num_full(self) -> int:
        r"""The number of users to whom no item is left."""
        return int((self.left == 0).sum())

    def sample(self, user: Tensor, num_samples: int) -> Tensor:
        r"""Draws items for users that have a pair; :obj:`-1` for those who
        have all of them.

        Args:
            user (torch.Tensor): The users :math:`(E)`.
            num_samples (int): The number of items for each :math:`S`.
        """
        user = user.long().contiguous()
        out = user.new_empty(user.numel(), num_samples)
        size = max(1, BLOCK_SIZE // num_samples)
        for block, rows in zip(user.split(size), out.split(size), strict=True):
            index = torch.searchsorted(self.user, block)
            left = self.left[index].unsqueeze(1)
            # So many values that the remainder is as good as uniform:
            rank = torch.randint(1 << 62, rows.size(), device=user.device)
            rank %= left.clamp(min=1)
            key = (block * (self.num_items + 1)).unsqueeze(1) + rank
            before = torch.searchsorted(self.key, key, right=True)
            before -= self.start[index].unsqueeze(1)
            rows.copy_((rank + before).masked_fill_(left == 0, -1))
        return out
