r"""Ranks items that were held out of training altogether.

python benchmark/cold_start.py --data path/to/folder

A tenth of the items, drawn by the seed, is cold: no pair of them is trained or
validated on, nor are they in a graph. CRANE is trained on the rest, and tested
at its best epoch by the validation pairs of the warm items. The cold items are
attached afterwards. The ranking is one of the cold items among themselves, for
every user with a pair with one of them and a training pair with a warm one.
What the rankings leave open is chosen by those pairs of cold items that the
folder calls validation; all other pairs of cold items are for the test.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import accuracy
import torch
from models import MODELS
from provenance import provenance
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg._files import replacing
from crane_pyg.datasets import read_mmrec
from crane_pyg.nn import CRANE, CRANEOutput
from crane_pyg.ranking import Neighborhood, evaluate, evaluate_scores

RESULTS = Path(__file__).parent / 'results' / 'cold-start'
RATES = accuracy.RATES
NEIGHBORS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
SHARES = [0.0, 0.5, 0.8, 1.0]
SCALES = [0.5, 1.0, 2.0]
DEFAULTS = (0.8, 1.0)  # Of CRANE.

Score = Callable[[Tensor], Tensor]


class Split(NamedTuple):
    """Warm items first, cold ones last; pairs count cold items from zero."""

    warm: HeteroData
    features: dict[str, Tensor]
    valid: Tensor
    test: Tensor


def main() -> None:
    """Trains with every seed, and keeps one file per run."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', required=True, help='in the MMRec layout')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--share', type=float, default=0.1)
    parser.add_argument('--epochs', type=int, default=200)
    parser.add_argument('--patience', type=int, default=10)
    parser.add_argument('--batch-size', type=int, default=8192)
    parser.add_argument('--lr', type=float, default=0.003)
    parser.add_argument('--device', default='cpu', help='to train on')
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args()
    if not 0 < args.share < 1:
        parser.error(f"'--share' needs to be in (0, 1) (got {args.share})")
    data = read_mmrec(args.data)
    for seed in args.seeds:
        save(args, seed, run(data, seed, args))


def run(
    data: HeteroData, seed: int, args: argparse.Namespace
) -> dict[str, object]:
    """One draw of the cold items: trains, attaches, and ranks."""
    seed_everything(seed)
    part = split(data, args.share)
    transform = T.BuildDualGraph()
    warm = transform(part.warm)
    model, epoch = train(copy.copy(warm).to(args.device), args)
    whole = T.attach_items(warm, part.features, transform)
    result = {
        'epoch': epoch,
        'cold_items': part_sizes(part),
        'cold': rank_cold(model, warm, whole, part),
        'warm': rank_warm(model, warm, whole),
    }
    print(json.dumps(result, indent=1), flush=True)
    return result


def split(data: HeteroData, share: float) -> Split:
    """Draws the cold items, and takes them and all their pairs away."""
    num_items = data['item'].num_nodes
    num_warm = num_items - round(share * num_items)
    perm = torch.randperm(num_items)
    place = torch.empty_like(perm).scatter_(0, perm, torch.arange(num_items))

    warm, features, cold = copy.copy(data), {}, {}
    warm['item'].num_nodes = num_warm
    for key, x in data['item'].items():
        if key.startswith('x_'):
            warm['item'][key] = x[perm[:num_warm]]
            features[key[2:]] = x[perm[num_warm:]]
    for key, pairs in data[RATES].items():
        user, item = pairs[0], place[pairs[1]]
        keep = item < num_warm
        warm[RATES][key] = torch.stack([user[keep], item[keep]])
        cold[key] = torch.stack([user[~keep], item[~keep] - num_warm])
    known = torch.zeros(data['user'].num_nodes, dtype=torch.bool)
    known[warm[RATES].edge_index[0]] = True
    cold = {key: pairs[:, known[pairs[0]]] for key, pairs in cold.items()}
    test = [cold['edge_index'], cold['test_edge_label_index']]
    valid = cold['val_edge_label_index']
    return Split(warm, features, valid, torch.cat(test, dim=1))


def part_sizes(part: Split) -> dict[str, int]:
    """What the measured means are over."""
    return {
        'items': next(iter(part.features.values())).size(0),
        'validation pairs': part.valid.size(1),
        'test pairs': part.test.size(1),
        'test users': part.test[0].unique().numel(),
    }


def train(data: HeteroData, args: argparse.Namespace) -> tuple[CRANE, int]:
    """Trains on the warm items; returns the best epoch and its model."""
    pairs = data[RATES].val_edge_label_index
    model = MODELS['crane'](data).to(pairs.device)
    best, best_recall, best_epoch = None, -1.0, 0
    for epoch, _ in accuracy.epochs(model, data, args):
        recall = rank_all(model.model, data, pairs)['recall@20']
        print(f'{epoch} {recall:.4f}', flush=True)
        if recall > best_recall:
            best = copy.deepcopy(model.model)
            best_recall, best_epoch = recall, epoch
        if epoch - best_epoch >= args.patience:
            break
    return best.cpu(), best_epoch


@torch.no_grad()
def rank_all(
    model: CRANE,
    data: HeteroData,
    pairs: Tensor,
    candidates: Tensor | None = None,
) -> dict[str, float]:
    """Ranks all items, or the candidates, but those of training."""
    out = model.eval()(data)
    seen = data[RATES].edge_index
    near = model.neighborhood(data, out)
    return evaluate(
        *out[:2], pairs, seen, neighbors=near, candidates=candidates
    )


def rank_warm(
    model: CRANE, warm: HeteroData, whole: HeteroData
) -> dict[str, dict[str, float]]:
    """The warm items, before and after the cold ones are attached."""
    pairs = warm[RATES].test_edge_label_index
    items = torch.arange(warm['item'].num_nodes)
    extended = model.extend(whole)
    return {
        'before': rank_all(model, warm, pairs),
        'after': rank_all(extended, whole, pairs, items),
        'after, among all items': rank_all(extended, whole, pairs),
    }


@torch.no_grad()
def rank_cold(
    model: CRANE, warm: HeteroData, whole: HeteroData, part: Split
) -> dict[str, dict[str, object]]:
    """All rankings, each at what did best on the validation pairs."""
    size = (warm['user'].num_nodes, next(iter(part.features.values())).size(0))
    near = content_similarity(warm, part.features)
    user, item = model.eval()(warm)[:2]
    history = history_matrix(warm)
    groups: dict[str, dict[object, Score]] = {
        'crane': (crane := crane_scores(model, whole)),
        'crane, defaults': {DEFAULTS: crane[DEFAULTS]},
        'content-knn': {
            k: content_score(history, top(near, k)) for k in NEIGHBORS
        },
        'mean-of-neighbors': {
            k: product_score(user, mean_of(top(near, k), item))
            for k in NEIGHBORS
        },
        'random': {None: lambda users: torch.rand(users.numel(), size[1])},
    }
    return {name: choose(scores, size, part) for name, scores in groups.items()}


def choose(
    scores: dict[object, Score], size: tuple[int, int], part: Split
) -> dict[str, object]:
    """Tests the ranking that is best in Recall@20 on the validation pairs."""
    valid = {
        option: evaluate_scores(blocks(score, part.valid), size, part.valid)
        for option, score in scores.items()
    }
    best = max(valid, key=lambda option: valid[option]['recall@20'])
    score = scores[best]
    return {
        'chosen': best,
        'valid': {str(key): m['recall@20'] for key, m in valid.items()},
        'test': evaluate_scores(blocks(score, part.test), size, part.test),
    }


def blocks(score: Score, pairs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores the users of the pairs, some at a time."""
    for users in pairs[0].unique().split(1024):
        yield users, score(users)


def crane_scores(model: CRANE, whole: HeteroData) -> dict[object, Score]:
    """CRANE, by the share of the neighbors and the weight of neighborhoods."""
    scores = {}
    extended = model.extend(whole)
    for share in SHARES:
        extended.neighbor_share = share
        out = extended(whole)
        neighbors = extended.neighborhood(whole, out)
        for scale in SCALES:
            scores[share, scale] = partial(
                crane_score, out, neighbors, scale, model.num_items
            )
    return scores


def crane_score(
    out: CRANEOutput,
    neighbors: Neighborhood,
    scale: float,
    num_warm: int,
    users: Tensor,
) -> Tensor:
    """Inner products with cold items, and their neighborhood."""
    near = torch.zeros(users.numel(), out.item.size(0))
    near = neighbors.add_to(near, users)[:, num_warm:]
    return out.user[users] @ out.item[num_warm:].t() + scale * near


def content_similarity(warm: HeteroData, features: dict[str, Tensor]) -> Tensor:
    """The mean cosine of cold items to warm ones; zero where one lacks it."""
    cosines = []
    for name, x in features.items():
        pair = [x, warm['item'][f'x_{name}']]
        unit = [torch.nn.functional.normalize(y.nan_to_num()) for y in pair]
        cosines.append(unit[0] @ unit[1].t())
    return torch.stack(cosines).mean(dim=0)


def top(near: Tensor, k: int) -> Tensor:
    """Keeps the most similar warm items of each cold one."""
    k = min(k, near.size(1))
    value, index = near.clamp(min=0).topk(k, dim=1)
    return torch.zeros_like(near).scatter_(1, index, value).to_sparse_csr()


def mean_of(near: Tensor, item: Tensor) -> Tensor:
    """The mean of the neighbors' embeddings, weighted by similarity."""
    total = (near @ torch.ones(near.size(1), 1)).clamp(min=1e-12)
    return (near @ item) / total


def history_matrix(warm: HeteroData) -> Tensor:
    """The training items of every user."""
    pairs = warm[RATES].edge_index
    size = (warm['user'].num_nodes, warm['item'].num_nodes)
    value = torch.ones(pairs.size(1))
    return torch.sparse_coo_tensor(pairs, value, size).coalesce()


def content_score(history: Tensor, near: Tensor) -> Score:
    """Sums the similarities to the items that a user had."""
    near = near.to_dense().t().contiguous()
    return lambda users: history.index_select(0, users) @ near


def product_score(user: Tensor, item: Tensor) -> Score:
    """Inner products."""
    return lambda users: user[users] @ item.t()


def save(
    args: argparse.Namespace, seed: int, result: dict[str, object]
) -> None:
    """Writes one result with all that is needed to repeat it."""
    dataset = Path(args.data).resolve().name
    keys = ('share', 'epochs', 'patience', 'batch_size', 'lr')
    record = {
        'dataset': dataset,
        'seed': seed,
        **result,
        'arguments': {key: getattr(args, key) for key in keys},
        **provenance(args.device),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    with replacing(args.results / f'{dataset}-{seed}.json') as temp:
        temp.write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
    main()
