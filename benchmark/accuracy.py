r"""Trains models in one harness, and keeps one line for each run.

python benchmark/accuracy.py --demo --models crane lightgcn --seeds 0 1 2
python benchmark/accuracy.py --data FOLDER [FOLDER ...] --models crane

The lines go to `results/accuracy/<data set>.jsonl`, where a further run of the
same model and seed takes the place of the first. Several such processes may run
at once. With `--grid`, each combination of values is tried with the first seed
and kept in `results/tuning`: later runs take what did best on validation pairs.
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import harness
from harness import Setting, timed
from models import MODELS, ials
from records import Record, find, path_of, read
from torch_geometric.data import HeteroData

from crane_pyg.ranking import Ranker, ease, item_knn, popularity


def relation(data: HeteroData, name: str) -> Ranker:
    """Ranks by one relation alone."""
    return Ranker.fit(data, weights={name: 1.0})


REFERENCES: dict[str, Callable[[HeteroData], Ranker]] = {
    'most-popular': popularity,
    'item-knn': item_knn,
    'ease': ease,
    'item-graph': partial(relation, name='similar_to'),
    'co-rated': partial(relation, name='co_rated'),
    'all-relations': lambda data: harness.blend(data)[0],
}


def main() -> None:
    """Runs all models with all seeds on all data sets."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    harness.add_options(parser)
    names = [*MODELS, 'ials']
    parser.add_argument(
        '--models', nargs='*', default=names, choices=names, metavar='NAME'
    )
    parser.add_argument(
        '--grid',
        nargs='+',
        default=[],
        metavar='NAME=JSON',
        help='lists of values to choose from, e.g., lr=[0.001,0.003]',
    )
    args = harness.parse(parser)
    for folder in args.data:
        if args.grid:
            tune(args, folder)
        else:
            run(args, folder)


def run(args: argparse.Namespace, folder: str | None) -> None:
    """Runs all models with all seeds on one data set."""
    dataset = harness.name_of(folder)
    data = harness.load(folder, args.seeds[0], args.device)
    for seed in args.seeds:
        if folder is None:  # Other data for each seed.
            data = harness.load(folder, seed, args.device)
        if folder is None or seed == args.seeds[0]:
            refer(args, dataset, data, None if folder else seed)
        for name in args.models:
            setting = harness.parse_setting(args.set)
            if not args.set:
                setting = harness.chosen(dataset, name, args.results)
            label = harness.with_tag(name, args.tag)
            about = {'dataset': dataset, 'model': label, 'seed': seed}
            if name == 'ials' and find_spec('implicit') is None:
                print("ials is skipped: 'pip install implicit' brings it")
            elif not is_kept(args, 'accuracy', about):
                record = {**about, **measure(name, data, seed, setting)}
                harness.keep(args, 'accuracy', record)
                show(record)


def refer(
    args: argparse.Namespace,
    dataset: str,
    data: HeteroData,
    seed: int | None,
) -> None:
    """Evaluates the rankings that need no training."""
    for name, reference in REFERENCES.items():
        about = {'dataset': dataset, 'model': name, 'seed': seed}
        if is_kept(args, 'accuracy', about):
            continue
        ranker, seconds = timed(lambda: reference(data))  # noqa: B023
        record = {**about, **harness.evaluate(data, {'alone': ranker})}
        record.update(seconds=seconds, weights=ranker.weights)
        harness.keep(args, 'accuracy', record)
        show(record)


def measure(name: str, data: HeteroData, seed: int, setting: Setting) -> Record:
    """Trains and scores one model."""
    print(name, seed, setting or 'as by default', flush=True)
    if name == 'ials':
        out, seconds = timed(lambda: ials(data, seed, **setting))
        record = {'seconds': seconds, 'overrides': setting, 'recipe': out[2]}
        return {**harness.score(data, *out[:2]), **record}
    model, record = harness.train(MODELS[name], data, seed, setting)
    return {**harness.score(data, *harness.embed(model, data)), **record}


def tune(args: argparse.Namespace, folder: str | None) -> None:
    """Tries all combinations of values that have no result yet."""
    grid, seed = harness.parse_setting(args.grid), args.seeds[0]
    data = harness.load(folder, seed, args.device)
    for name, values in itertools.product(
        args.models, itertools.product(*grid.values())
    ):
        setting = dict(zip(grid, values, strict=True))
        about = {
            'dataset': harness.name_of(folder),
            'model': name,
            'seed': seed,
            'overrides': setting,
        }
        path = path_of('tuning', about['dataset'], args.results)
        if find(read(path), **about) is None:
            record = {**about, **measure(name, data, seed, setting)}
            harness.keep(args, 'tuning', record)
            show(record)


def is_kept(args: argparse.Namespace, question: str, about: Record) -> bool:
    """Whether there is a result of this kind, and it is to stay."""
    path = path_of(question, about['dataset'], args.results)
    record = find(read(path), **about) if args.keep else None
    return record is not None and 'weights' in record  # Of a ranker.


def show(record: Record) -> None:
    """Prints what a run has led to."""
    about = [record[key] for key in ('dataset', 'model', 'seed')]
    scores = [
        f'{name} {metrics["recall@20"]:.4f}/{metrics["ndcg@20"]:.4f}'
        for name, metrics in record['test'].items()
    ]
    print(*about, *scores, flush=True)


if __name__ == '__main__':
    main()
