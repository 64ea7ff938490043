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
import json
from pathlib import Path

import accuracy
from grids import GRIDS, RESULTS, best, score, to_run, tuned
from provenance import describe
from readme import replace_between
from torch_geometric.data import HeteroData

PAGE = Path(__file__).parent.parent / 'docs' / 'results.md'
BEGIN, END = '<!-- tuning:begin -->', '<!-- tuning:end -->'


def main() -> None:
    """Runs all settings without a result, trains the best, shows all."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    accuracy.add_options(parser, RESULTS, patience=None)
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
        tune(accuracy.with_patience(args, name), name, data)


def tune(args: argparse.Namespace, name: str, data: HeteroData) -> None:
    """Runs what is missing of the grid of a model, and trains the best."""
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


def train_best(args: argparse.Namespace, name: str, data: HeteroData) -> None:
    """Trains what did best with all seeds, unless that is what is kept."""
    runs = tuned(args.results)[accuracy.dataset_name(args), name]
    args = argparse.Namespace(**{**vars(args), 'results': args.best})
    args.set = accuracy.assignments(best(runs)['overrides'])
    for seed in args.seeds:
        path = accuracy.path_of(args, name, seed)
        kept = json.loads(path.read_text()) if path.exists() else {}
        if accuracy.unmet(kept, args):
            result = accuracy.fit(name, data, seed, args)
            accuracy.save(args, name, seed, result)


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
