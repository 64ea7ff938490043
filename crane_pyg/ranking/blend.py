r"""How much each relation counts beside the inner products, chosen on
validation pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from crane_pyg._check import check_option
from crane_pyg._groups import group_top_k
from crane_pyg._rows import CompressedRows
from crane_pyg.ranking.metrics import held_out_pairs
from crane_pyg.ranking.neighborhood import Neighborhood
from crane_pyg.ranking.top_k import BARRED, Barred, blocks, check_k

GRID: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
POOL_SIZE: Final = 100
BLOCK_SIZE: Final = 256
NUM_USERS: Final = 10_000
NUM_SPREAD: Final = 1024

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


class Judge(NamedTuple):
    r"""What choices are made by: a metric of lists on validation pairs.

    Args:
        edge_label_index (torch.Tensor): The validation pairs :math:`(2, P)`.
        metric (callable): The metric of each user, from hits :math:`(U, k)`
            and numbers of held-out items :math:`(U)`.
        k (int): The length of the lists.
        barred (Barred): The items that are never ranked.
    """

    edge_label_index: Tensor
    metric: Metric
    k: int
    barred: Barred


class Pool(NamedTuple):
    r"""The items of each of some users that any blend is likely to rank.

    Args:
        score (torch.Tensor): The scores :math:`(C, U, P)` by each component:
            the inner products first, then each relation;
            :math:`-\infty` and zero where an item stands twice.
        label (torch.Tensor): Which of these items are held out
            :math:`(U, P)`.
        total (torch.Tensor): The number of held-out items of each user
            :math:`(U)`, also of those outside the pool.
    """

    score: Tensor
    label: Tensor
    total: Tensor


def parse_metric(metric: str, num_items: int) -> tuple[Metric, int]:
    r"""Returns the function and the length of lists that a name such as
    :obj:`"ndcg@20"` tells.
    """
    name, _, k = str(metric).partition('@')
    check_option('metric', name, list(METRICS))
    if not k.isdecimal():
        raise ValueError(
            f"'metric' needs to end in the length of a list, as in 'ndcg@20' "
            f"(got '{metric}')"
        )
    check_k(int(k), num_items)
    return METRICS[name], int(k)


def get_judge(
    neighborhood: Neighborhood,
    edge_label_index: object,
    edge_label: object = None,
    metric: str = 'ndcg@20',
    candidates: object = None,
) -> Judge:
    r"""Returns what weights are chosen by: the pairs of users with a history,
    for whom they matter, and of candidates.
    """
    if edge_label_index is None:
        raise ValueError(
            "'edge_label_index' is missing: weights are chosen on validation "
            "pairs, which 'data' lacks; 'weights' or 'relations=()' need none"
        )
    near = neighborhood.history
    function, k = parse_metric(metric, neighborhood.size[1])
    args = neighborhood.size, near.ptr.device
    pairs = held_out_pairs(edge_label_index, edge_label, *args)
    barred = Barred(near.get_edge_index(), candidates, *args)
    pairs = pairs[:, near.ptr.diff()[pairs[0]] > 0]
    if barred.candidates is not None:
        pairs = pairs[:, torch.isin(pairs[1], barred.candidates)]
    if pairs.size(1) == 0:
        raise ValueError(
            "'edge_label_index' needs to hold a pair of a user with a history "
            'and of an item that may be ranked (got none)'
        )
    return Judge(pairs, function, k, barred)


def spread(neighborhood: Neighborhood) -> dict[str, float]:
    r"""Returns the standard deviation of the scores of each relation, of some
    users with a history and all items.
    """
    users = neighborhood.history.ptr.diff().nonzero().view(-1)
    users = evenly(users, NUM_SPREAD)
    if users.numel() == 0:
        return dict.fromkeys(neighborhood.relations, 0.0)
    return {
        name: float(neighborhood.scores(name, users).std(correction=0))
        for name in neighborhood.relations
    }


def evenly(index: Tensor, num: int) -> Tensor:
    r"""Returns at most so many entries, evenly spaced."""
    if index.numel() <= num:
        return index
    place = torch.arange(num, device=index.device) * index.numel() // num
    return index[place]


def make_pool(
    user_emb: Tensor,
    item_emb: Tensor,
    neighborhood: Neighborhood,
    scale: Mapping[str, float],
    judge: Judge,
    block_size: int = BLOCK_SIZE,
) -> Pool:
    r"""Returns the pool of the users of validation pairs, of no more than
    10,000 of them: the best items by each component and by their sum.

    An item in none of these lists is not in the pool, whether it is held out
    or not, so that a blend gains nothing from what is missing there.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(U, d)`.
        item_emb (torch.Tensor): Item embeddings :math:`(I, d)`.
        neighborhood (Neighborhood): The relations.
        scale (dict[str, float]): What a weight of one multiplies the scores of
            each relation by.
        judge (Judge): The validation pairs, and how long the lists are.
        block_size (int, optional): Number of users scored at a time.
            (default: :obj:`256`)
    """
    pairs, num_items = judge.edge_label_index, item_emb.size(0)
    users = evenly(pairs[0].unique(), NUM_USERS)
    labels = CompressedRows(pairs, *neighborhood.size, 'edge_label_index')
    size, outs = min(max(POOL_SIZE, 2 * judge.k), num_items), []
    for index, product in blocks(user_emb, item_emb, users, block_size):
        parts = [product]
        for name, factor in scale.items():
            part = torch.zeros_like(product)
            neighborhood.with_weights({name: factor}).add_to(part, index)
            part[:, num_items:] = BARRED  # What fills up whole groups.
            parts.append(part)
        score, place = _best(index, parts, judge.barred, size)
        row, item, _ = labels[index]
        label = torch.zeros_like(product, dtype=torch.bool)
        label[row, item] = True
        outs.append(Pool(score, label.gather(1, place), label.sum(dim=1)))
    return Pool(
        torch.cat([out.score for out in outs], dim=1),
        torch.cat([out.label for out in outs]),
        torch.cat([out.total for out in outs]),
    )


def _best(
    users: Tensor, parts: Sequence[Tensor], barred: Barred, k: int
) -> tuple[Tensor, Tensor]:
    r"""Returns the scores of the best items and which they are."""
    total = torch.stack(list(parts)).sum(dim=0)
    barred.mask_(users, total)
    out = total == BARRED
    places = [
        group_top_k(part.masked_fill(out, BARRED), k)[1]
        for part in (*parts, total)
    ]
    place = torch.cat(places, dim=1).sort(dim=1)[0]
    score = torch.stack([part.gather(1, place) for part in parts])
    # Lists of too few items are filled with others:
    out = out.gather(1, place)
    out[:, 1:] |= place[:, 1:] == place[:, :-1]
    score.masked_fill_(out, 0.0)
    score[0].masked_fill_(out, BARRED)
    return score, place


def choose_weights(
    pool: Pool, judge: Judge, grid: Sequence[float] = GRID
) -> list[float]:
    r"""Returns a weight for each relation of a pool, zero for those that do
    not help.

    Relations come in one by one: the one that helps most, at the best weight
    of a grid, after which all weights so far are chosen anew in turn. One more
    has to raise the mean of the metric by more than a standard error of the
    difference over users, or the search ends: what a small validation set
    cannot tell from chance is left out. The first of equals is taken.

    Args:
        pool (Pool): The scores and the held-out items.
        judge (Judge): The metric.
        grid (list[float], optional): The weights to try.
    """
    num = pool.score.size(0) - 1
    known: dict[tuple[float, ...], Tensor] = {}

    def value(weights: tuple[float, ...]) -> Tensor:
        if weights not in known:
            known[weights] = blend_metric(pool, weights, judge)
        return known[weights]

    def best(
        weights: tuple[float, ...], places: Sequence[int]
    ) -> tuple[float, ...]:
        options = [weights] + [
            (*weights[:g], weight, *weights[g + 1 :])
            for g in places
            for weight in grid
        ]
        return max(options, key=lambda option: float(value(option).mean()))

    weights = (0.0,) * num
    while 0.0 in weights:
        new = best(weights, [g for g in range(num) if weights[g] == 0.0])
        if new == weights:
            break
        used, last = [g for g in range(num) if new[g] > 0.0], None
        while new != last and len(used) > 1:
            last = new
            for g in used:
                new = best(new, [g])
        gain = value(new) - value(weights)
        if not gain.mean() > gain.std() / gain.numel() ** 0.5:
            break
        weights = new
    return list(weights)


def blend_metric(pool: Pool, weights: Sequence[float], judge: Judge) -> Tensor:
    r"""Returns the metric of each user, ranked by a weighted sum."""
    score = pool.score[0].clone()
    for part, weight in zip(pool.score[1:], weights, strict=True):
        if weight != 0.0:
            score.add_(part, alpha=weight)
    value, place = score.topk(judge.k, dim=1)
    hit = pool.label.gather(1, place) & (value != BARRED)
    count = pool.total.to(value.dtype)
    return judge.metric(hit.to(value.dtype), count).double()
