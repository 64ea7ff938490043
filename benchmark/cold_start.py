r"""Ranks items that were held out of training altogether.

python benchmark/cold_start.py --data FOLDER [FOLDER ...]

A tenth of the items, drawn by the seed, is cold: no pair of them is trained or
validated on, nor are they in a graph. CRANE is trained on the rest, and the
cold items are attached afterwards. The ranking is one of the cold items among
themselves, for every user with a pair with one of them and a training pair with
a warm one. What the references leave open is chosen by those pairs of cold
items that the folder calls validation; all other pairs of them are the test.
"""

import argparse
import copy
from collections.abc import Callable
from statistics import mean, stdev
from typing import NamedTuple

import harness
import torch
from layout import grid
from models import MODELS, RATES
from records import Record, path_of, read
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg.nn import CRANE
from crane_pyg.ranking import Neighborhood, Ranker

CHOSEN_BY = 'recall@20'
NEIGHBORS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


class Split(NamedTuple):
    """Warm items first, cold ones last."""

    warm: HeteroData
    features: dict[str, Tensor]
    valid: Tensor
    test: Tensor


def main() -> None:
    """Trains with every seed, and keeps a line for each ranking."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    harness.add_options(parser)
    parser.add_argument('--share', type=float, default=0.1)
    args = harness.parse(parser)
    if not 0 < args.share < 1:
        parser.error(f"'--share' needs to be in (0, 1) (got {args.share})")
    for folder in args.data:
        dataset = harness.name_of(folder)
        path = path_of('cold-start', dataset, args.results)
        for seed in args.seeds:
            if args.keep and any(
                x['seed'] == seed and 'form' not in x for x in read(path)
            ):
                continue
            for label, record in run(args, folder, seed).items():
                label = harness.with_tag(label, args.tag)
                about = {'dataset': dataset, 'model': label, 'seed': seed}
                harness.keep(args, 'cold-start', {**about, **record})
                print(*about.values(), record['test'], flush=True)


def run(
    args: argparse.Namespace, folder: str | None, seed: int
) -> dict[str, Record]:
    """One draw of the cold items: trains, attaches, and ranks."""
    seed_everything(seed)
    part = split(harness.read(folder, seed), args.share)
    build = T.BuildDualGraph()
    warm = build(part.warm)
    setting = harness.parse_setting(args.set)
    model, record = harness.train(
        MODELS['crane'], copy.copy(warm).to(args.device), seed, setting
    )
    whole = T.attach_items(warm, part.features, build)
    out = rank(model.cpu(), warm, whole, part)
    return {
        name: {**about, **record} if name.startswith('crane') else about
        for name, about in out.items()
    }


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
        cold[key] = torch.stack([user[~keep], item[~keep]])
    known = torch.zeros(data['user'].num_nodes, dtype=torch.bool)
    known[warm[RATES].edge_index[0]] = True
    cold = {key: pairs[:, known[pairs[0]]] for key, pairs in cold.items()}
    test = [cold['edge_index'], cold['test_edge_label_index']]
    valid = cold['val_edge_label_index']
    return Split(warm, features, valid, torch.cat(test, dim=1))


@torch.no_grad()
def rank(
    model: CRANE, warm: HeteroData, whole: HeteroData, part: Split
) -> dict[str, Record]:
    """All rankings, each at what did best on the validation pairs."""
    num_warm, num_items = warm['item'].num_nodes, whole['item'].num_nodes
    cold = torch.arange(num_warm, num_items)
    near = content_similarity(warm, part.features)
    user, item = harness.embed(model, warm)
    extended = model.extend(whole)
    size = (warm['user'].num_nodes, num_items)

    def crane(share: float | None = None) -> Ranker:
        if share is not None:
            extended.neighbor_share = share
        embs = harness.embed(extended, whole)
        return Ranker.fit(whole, *embs, relations=(), candidates=cold)

    def blend() -> Ranker:
        return Ranker.fit(
            whole,
            *harness.embed(extended, whole),
            relations=['similar_to', 'refined'],
            edge_label_index=part.valid,
            candidates=cold,
        )

    def content(k: int) -> Ranker:
        graph = {'content': edges(top(near, k), num_warm)}
        history = whole[RATES].edge_index
        return Ranker(Neighborhood(history, graph, size), candidates=cold)

    def mean_of_neighbors(k: int) -> Ranker:
        embs = user, torch.cat([item, mean_of(top(near, k), item)])
        return Ranker.fit(whole, *embs, relations=(), candidates=cold)

    options: dict[str, tuple[Callable[..., Ranker], list]] = {
        'crane': (lambda _: crane(), [extended.neighbor_share]),
        'crane + ranker': (lambda _: blend(), [None]),
        'crane, features alone': (crane, [0.0]),
        'content-knn': (content, NEIGHBORS),
        'mean-of-neighbors': (mean_of_neighbors, NEIGHBORS),
    }
    sizes = part_sizes(part)
    return {
        name: {**choose(*option, part), 'cold_items': sizes}
        for name, option in options.items()
    }


def choose(make: Callable[..., Ranker], options: list, part: Split) -> Record:
    """Tests the ranking that is best on the validation pairs."""
    rankers = {option: make(option) for option in options}
    valid = {
        option: ranker.evaluate(part.valid)[CHOSEN_BY]
        for option, ranker in rankers.items()
        if len(options) > 1
    }
    best = max(valid, key=valid.__getitem__) if valid else options[0]
    test = rankers[best].evaluate(part.test)
    return {
        'chosen': best,
        'test': {key: round(value, 6) for key, value in test.items()},
    }


def part_sizes(part: Split) -> dict[str, int]:
    """What the measured means are over."""
    return {
        'items': next(iter(part.features.values())).size(0),
        'validation pairs': part.valid.size(1),
        'test pairs': part.test.size(1),
        'test users': part.test[0].unique().numel(),
    }


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
    return torch.zeros_like(near).scatter_(1, index, value)


def edges(near: Tensor, num_warm: int) -> tuple[Tensor, Tensor]:
    """The similarities as edges from warm items to cold ones."""
    cold, warm = near.nonzero().t()
    return torch.stack([warm, cold + num_warm]), near[cold, warm]


def mean_of(near: Tensor, item: Tensor) -> Tensor:
    """The mean of the neighbors' embeddings, weighted by similarity."""
    total = near.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return (near @ item) / total


def table(datasets: dict[str, list[Record]], titles: dict[str, str]) -> str:
    """A row for each ranking, a column for each data set."""
    labels = dict.fromkeys(
        x['model'] for runs in datasets.values() for x in runs
    )
    rows = []
    for label in labels:
        cells = [cell(runs, label) for runs in datasets.values()]
        rows.append([label, *cells])
    names = [titles.get(name, name) for name in datasets]
    return grid(['Recall@20 / NDCG@20 of cold items', *names], rows)


def cell(records: list[Record], label: str) -> str:
    """Mean and standard deviation over the seeds of both metrics."""
    found = [x for x in records if x['model'] == label]
    parts = []
    for metric in ('recall@20', 'ndcg@20'):
        values = [x['test'][metric] for x in found]
        if not values:
            return '-'
        spread = f' ± {stdev(values):.4f}' if len(values) > 1 else ''
        parts.append(f'{mean(values):.4f}{spread}'.replace('0.', '.'))
    earlier = ' (earlier form)' if any('form' in x for x in found) else ''
    return ' / '.join(parts) + earlier


if __name__ == '__main__':
    main()
