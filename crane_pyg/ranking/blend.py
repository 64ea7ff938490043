r"""How much each relation counts beside the inner products, chosen on
validation pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from crane_pyg._check import check_option
from crane_pyg._groups import group_top_k
from crane_pyg._held_out import (
    IN_TRAINING,
    NO_HISTORY,
    are_among,
    leave_out,
)
from crane_pyg._rows import CompressedRows
from crane_pyg.ranking.metrics import held_out_pairs
from crane_pyg.ranking.neighborhood import Neighborhood
from crane_pyg.ranking.per_user import METRICS, Metric
from crane_pyg.ranking.top_k import BARRED, Barred, as_k, blocks, mask_top_k

GRID: Final = tuple(2.0**n for n in range(-5, 6))
POOL_SIZE: Final = 100
BLOCK_SIZE: Final = 256
CHUNK: Final = 1024
NUM_USERS: Final = 10_000
NUM_SPREAD: Final = 1024


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
        found (torch.Tensor): Where the held-out items are among these: their
            rows above their columns :math:`(2, H)`.
        total (torch.Tensor): The number of held-out items of each user
            :math:`(U)`, also of those outside the pool.
    """

    score: Tensor
    found: Tensor
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
    return METRICS[name], as_k(int(k), num_items)


def get_judge(
    neighborhood: Neighborhood,
    edge_label_index: object,
    edge_label: object = None,
    metric: str = 'ndcg@20',
    candidates: object = None,
) -> Judge:
    r"""Returns what weights are chosen by: the pairs of users with a history,
    for whom they matter, that are no training pairs, and of candidates; a
    :class:`UserWarning` counts the others.
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
    history = near.get_edge_index()
    barred = Barred(history, candidates, *args)
    reasons = {
        NO_HISTORY: near.ptr.diff()[pairs[0]] == 0,
        IN_TRAINING: are_among(pairs, history, neighborhood.size[1]),
    }
    if barred.candidates is not None:
        other = ~torch.isin(pairs[1], barred.candidates)
        reasons["of items that are no 'candidates'"] = other
    pairs = leave_out('edge_label_index', pairs, reasons, stacklevel=4)
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
    first = 0
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
        # One that is barred is never found:
        hit = label.gather(1, place) & (score[0] != BARRED)
        row, col = hit.nonzero().t()
        found = torch.stack([row + first, col])
        outs.append(Pool(score, found, label.sum(dim=1)))
        first += index.numel()
    return Pool(
        torch.cat([out.score for out in outs], dim=1),
        torch.cat([out.found for out in outs], dim=1),
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
    r"""Returns the metric of each user, ranked by a weighted sum. Of equal
    scores, that of the lower index goes first.
    """
    score = pool.score[0].clone()
    for part, weight in zip(pool.score[1:], weights, strict=True):
        if weight != 0.0:
            score.add_(part, alpha=weight)
    # To count what is above a few items takes less time than to sort all:
    rank = torch.cat([_rank(score, *part) for part in _parts(pool.found)])
    row, keep = pool.found[0], rank < judge.k
    hit = score.new_zeros(score.size(0), judge.k)
    hit[row[keep], rank[keep]] = 1.0
    return judge.metric(hit, pool.total.to(hit.dtype)).double()


def _parts(found: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(*(x.split(CHUNK) for x in found), strict=True)


def _rank(score: Tensor, row: Tensor, place: Tensor) -> Tensor:
    r"""Returns how many entries of a row go before each of some entries."""
    score, place = score.index_select(0, row), place.unsqueeze(1)
    value = score.gather(1, place)
    equal = score == value
    equal &= torch.arange(score.size(1), device=row.device) < place
    return (equal | (score > value)).sum(dim=1)


def list_metric(neighborhood: Neighborhood, judge: Judge) -> Tensor:
    r"""Returns the metric of each user, ranked by the relations alone."""
    pairs, size, outs = judge.edge_label_index, neighborhood.size, []
    labels = CompressedRows(pairs, *size, 'edge_label_index')
    users = evenly(pairs[0].unique(), NUM_USERS)
    user, item = (torch.empty(n, 0, device=pairs.device) for n in size)
    for index, score in blocks(user, item, users, BLOCK_SIZE, neighborhood):
        place = mask_top_k(index, score, judge.k, judge.barred).index
        row, col, _ = labels[index]
        label = torch.zeros_like(score)
        label[row, col] = 1.0
        hit = label.gather(1, place.clamp(min=0)) * (place >= 0)
        outs.append(judge.metric(hit, label.sum(dim=1)))
    return torch.cat(outs)
