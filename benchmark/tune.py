r"""Gives every model the same number of runs to choose its settings from.

python benchmark/tune.py --data path/to/folder  # run what is missing, show
python benchmark/tune.py --write                # show what there is

One run is one setting of a model's grid, with one seed. As long as the best one
on the validation pairs has a value at the border of those that were tried, the
next one beyond it is tried as well. What does best in the end is trained with
all seeds, next to the results of accuracy.py, but for CRANE, which keeps its
defaults on all data.
"""

import argparse
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import accuracy
from provenance import describe
from readme import replace_between
from torch_geometric.data import HeteroData

PAGE = Path(__file__).parent.parent / 'docs' / 'results.md'
RESULTS = accuracy.RESULTS / 'tuning'
BEGIN, END = '<!-- tuning:begin -->', '<!-- tuning:end -->'
Grid = dict[str, list[Any]]

FACTORIZATION: Grid = {
    'lambda_reg': [0.01, 0.03, 0.1, 0.3],
    'lr': [0.001, 0.003],
}
SAME_RECIPE: Grid = {
    'lambda_reg': [1e-3, 3e-3, 1e-2, 3e-2],
    'disjoint': [True, False],
}
GRIDS: dict[str, Grid] = {
    'crane': SAME_RECIPE,
    'mf-bpr': FACTORIZATION,
    'vbpr': FACTORIZATION,
    'lightgcn': {
        'lambda_reg': [1e-5, 1e-4, 1e-3, 1e-2],
        'num_layers': [2, 3],
    },
    'lightgcn-same-recipe': SAME_RECIPE,
    'freedom': {
        'lambda_reg': [0.0, 1e-3],
        'mm_weight': [1e-3, 1e-2],
        'edge_dropping': [0.8, 0.9],
    },
    'freedom-same-recipe': SAME_RECIPE,
    'freedom-neighborhood': {
        'lambda_reg': [1e-3, 3e-3],
        'disjoint': [True, False],
        'scale': [0.5, 1.0],
    },
    'mgcn': {
        'lambda_reg': [1e-4, 1e-3],
        'contrast_weight': [3e-3, 1e-2],
        'lr': [0.001, 0.003],
    },
    'mgcn-same-recipe': SAME_RECIPE,
    'mgcn-neighborhood': {
        'lambda_reg': [1e-2, 3e-2],
        'disjoint': [True, False],
        'scale': [0.1, 0.3],
    },
}
LADDERS: dict[str, list[float]] = {
    'lambda_reg': [
        0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0
    ],
    'lr': [3e-4, 1e-3, 3e-3, 0.01],
    'num_layers': [1, 2, 3, 4],
    'mm_weight': [1e-4, 1e-3, 0.01, 0.1, 1.0],
    'edge_dropping': [0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
    'scale': [0.03, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0],
    'contrast_weight': [3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1],
}  # fmt: skip


def main() -> None:
    """Runs all settings without a result, trains the best, shows all."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    accuracy.add_options(parser, RESULTS)
    parser.add_argument('--models', nargs='+', default=list(GRIDS))
    parser.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    parser.add_argument('--best', type=Path, default=accuracy.RESULTS)
    parser.add_argument('--write', action='store_true')
    args = parser.parse_args()
    if args.data is not None:
        run(args)
    show(args.results, args.write)


def run(args: argparse.Namespace) -> None:
    """Tunes one model after the other, and trains each as tuned."""
    data = accuracy.load_data(args)
    for name in args.models:
        key = accuracy.dataset_name(args), name
        while left := to_run(name, tuned(args.results)[key]):
            for setting in left:
                args.set = accuracy.assignments(setting)
                label = accuracy.slug(' '.join([name, *args.set]))
                accuracy.complete(
                    args, name, label, lambda: data, seed=0, tuned=name
                )
        if name != 'crane':
            train_best(args, name, data)


def settings(grid: Grid) -> list[dict[str, Any]]:
    """All combinations of the values of a grid."""
    return [
        dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]


def to_run(name: str, runs: list[dict]) -> list[dict[str, Any]]:
    """What is left of a grid, or else what lies beyond its best setting."""
    done = [run['overrides'] for run in runs]
    left = [s for s in settings(GRIDS[name]) if s not in done]
    return left or beyond(done, best(runs)['overrides'])


def beyond(
    done: list[dict[str, Any]], top: dict[str, Any]
) -> list[dict[str, Any]]:
    """The best setting, with every value at the border of those tried moved
    one further, if there is a further one.
    """
    steps = []
    for name in top.keys() & LADDERS.keys():
        ladder, tried = LADDERS[name], [setting[name] for setting in done]
        place = ladder.index(top[name])
        if top[name] == min(tried):
            steps += [(name, value) for value in ladder[:place][-1:]]
        if top[name] == max(tried):
            steps += [(name, value) for value in ladder[place + 1 :][:1]]
    return [{**top, name: value} for name, value in sorted(steps)]


def train_best(args: argparse.Namespace, name: str, data: HeteroData) -> None:
    """Trains what did best with all seeds, unless that is what is kept."""
    runs = tuned(args.results)[accuracy.dataset_name(args), name]
    args = argparse.Namespace(**{**vars(args), 'results': args.best})
    args.set = accuracy.assignments(best(runs)['overrides'])
    for seed in args.seeds:
        path = accuracy.path_of(args, name, seed)
        kept = json.loads(path.read_text()) if path.exists() else {}
        if not accuracy.how(args).items() <= kept.items():
            result = accuracy.fit(name, data, seed, args)
            accuracy.save(args, name, seed, result)


def tuned(folder: Path) -> dict[tuple[str, str], list[dict]]:
    """The runs of each data set and model."""
    out = defaultdict(list)
    for path in sorted(folder.glob('*.json')):
        record = json.loads(path.read_text())
        out[record['dataset'], record['tuned']].append(record)
    return out


def best(runs: list[dict]) -> dict:
    """The run that did best on the validation pairs."""
    return max(runs, key=score)


def score(record: dict) -> float:
    """What settings are chosen by."""
    return record['valid']['recall@20']


def show(folder: Path, write: bool) -> None:
    """Prints what each model had to choose from, and what it took."""
    groups = tuned(folder)
    lines = [
        '| data | model | runs | Recall@20, worst and best | best setting |',
        '| --- | --- | --- | --- | --- |',
    ]
    for (dataset, name), runs in groups.items():
        low, top = min(map(score, runs)), best(runs)
        setting = (
            ', '.join(accuracy.assignments(top['overrides'])) or 'defaults'
        )
        left = len(to_run(name, runs))
        count = f'{len(runs)} ({left} to go)' if left else str(len(runs))
        cells = [dataset, name, count, f'{low:.4f}, {score(top):.4f}']
        lines.append(f'| {" | ".join([*cells, setting])} |')
    runs = [run for group in groups.values() for run in group]
    print(text := '\n'.join([*lines, '', describe(runs)]))
    if write:
        replace_between(PAGE, BEGIN, END, text)


if __name__ == '__main__':
    main()
