r"""Held-out pairs that no ranking finds."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

SEEN = "that 'exclude' holds too"
IN_TRAINING = 'that are training pairs too'
NO_HISTORY = 'without any training pair'


def are_among(pairs: Tensor, others: Tensor, num_items: int) -> Tensor:
    r"""Returns which pairs :math:`(2, P)` are among others :math:`(2, E)`."""
    keys = [user * num_items + item for user, item in (pairs, others)]
    return torch.isin(*keys)


def leave_out(
    name: str,
    pairs: Tensor,
    reasons: Mapping[str, Tensor],
    stacklevel: int,
) -> Tensor:
    r"""Returns the pairs that there is no reason to leave out, and counts the
    others in one :class:`UserWarning`.

    Args:
        name (str): What the warning calls the pairs.
        pairs (torch.Tensor): The held-out pairs :math:`(2, P)`.
        reasons (dict[str, torch.Tensor]): The pairs to leave out :math:`(P)`,
            by what they are. A pair counts for its first reason only.
        stacklevel (int): Where the warning points to, from the caller.
    """
    keep = torch.ones(pairs.size(1), dtype=torch.bool, device=pairs.device)
    found = []
    for reason, mask in reasons.items():
        users = pairs[0, mask & keep]
        if users.numel() > 0:
            num_users = users.unique().numel()
            found.append(f'{users.numel()} of {num_users} user(s) {reason}')
        keep &= ~mask
    if not found:
        return pairs
    warnings.warn(
        f"{int((~keep).sum())} of {keep.numel()} pairs of '{name}' are left "
        f'out, as no ranking finds them: {", ".join(found)}',
        UserWarning,
        stacklevel=stacklevel + 1,
    )
    return pairs[:, keep]
