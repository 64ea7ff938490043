r"""Metrics of each user, of which PyG has the means."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Metric = Callable[[Tensor, Tensor], Tensor]


def _discount(hit: Tensor) -> Tensor:
    rank = torch.arange(2, hit.size(1) + 2, device=hit.device)
    return rank.to(hit.dtype).log2().reciprocal()


def recall(hit: Tensor, count: Tensor) -> Tensor:
    r"""Returns the share of held-out items in the list of each user, from hits
    :math:`(U, k)` and the numbers of held-out items :math:`(U)`.
    """
    return hit.sum(dim=1) / count


def precision(hit: Tensor, count: Tensor) -> Tensor:
    r"""Returns the share of each list that is held-out items."""
    return hit.mean(dim=1)


def f1(hit: Tensor, count: Tensor) -> Tensor:
    r"""Returns the harmonic mean of both."""
    return 2.0 * hit.sum(dim=1) / (count + hit.size(1))


def average_precision(hit: Tensor, count: Tensor) -> Tensor:
    r"""Returns the precision at each hit, summed and divided by the most hits
    there can be.
    """
    rank = torch.arange(1, hit.size(1) + 1, device=hit.device)
    total = (hit.cumsum(dim=1) / rank * hit).sum(dim=1)
    return total / count.clamp(max=hit.size(1))


def ndcg(hit: Tensor, count: Tensor) -> Tensor:
    r"""Returns the gain of each list, discounted by the logarithm of the place
    and divided by that of the best list.
    """
    discount = _discount(hit)
    best = discount.cumsum(dim=0)[count.long().clamp(max=hit.size(1)) - 1]
    return (hit * discount).sum(dim=1) / best


def mrr(hit: Tensor, count: Tensor) -> Tensor:
    r"""Returns the reciprocal of the place of the first hit."""
    rank = torch.arange(1, hit.size(1) + 1, device=hit.device)
    return (hit / rank).amax(dim=1)


def hit_ratio(hit: Tensor, count: Tensor) -> Tensor:
    r"""Returns whether there is any hit."""
    return hit.amax(dim=1)


METRICS: Final[dict[str, Metric]] = {
    'recall': recall,
    'ndcg': ndcg,
    'precision': precision,
    'f1': f1,
    'map': average_precision,
    'mrr': mrr,
    'hit_ratio': hit_ratio,
}
