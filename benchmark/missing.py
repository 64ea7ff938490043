r"""Strips items of their modalities, and shows what that costs each model.

python benchmark/missing.py --data FOLDER [FOLDER ...]

A share of the items, drawn by the seed, is stripped: every other one of them of
all its modalities, the rest of one, drawn as well. Their graphs are built, and
models trained and ranked, with what is left. The larger share contains the
smaller one. LightGCN reads no features, and is trained once.
"""

import argparse
import copy
from statistics import mean

import harness
import torch
from layout import grid
from models import MODELS
from records import Record, find, path_of, read
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T

SHARES = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9]
NAMES = ['crane', 'freedom-same-recipe', 'lightgcn-same-recipe']
WITHOUT_FEATURES = 'lightgcn-same-recipe'


def main() -> None:
    """Trains every model on what each share leaves."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    harness.add_options(parser)
    parser.add_argument('--models', nargs='+', default=NAMES)
    parser.add_argument('--shares', nargs='+', type=float, default=SHARES)
    args = harness.parse(parser)
    for folder in args.data:
        for seed in args.seeds:
            data = harness.read(folder, seed)
            for share in args.shares:
                run(args, harness.name_of(folder), data, seed, share)


def run(
    args: argparse.Namespace,
    dataset: str,
    data: HeteroData,
    seed: int,
    share: float,
) -> None:
    """Trains all models on what one share leaves."""
    data = T.BuildDualGraph()(strip(data, share, seed)).to(args.device)
    path = path_of('missing', dataset, args.results)
    for name in args.models:
        label = harness.with_tag(name, args.tag)
        about = {'model': label, 'share': share, 'seed': seed}
        if name == WITHOUT_FEATURES and share > 0:
            continue
        if args.keep and find(read(path), **about) is not None:
            continue
        setting = harness.parse_setting(args.set)
        model, record = harness.train(MODELS[name], data, seed, setting)
        scores = harness.score(data, *harness.embed(model, data))
        record = {'dataset': dataset, **about, **scores, **record}
        harness.keep(args, 'missing', record)
        print(*about.values(), record['test'], flush=True)


def strip(data: HeteroData, share: float, seed: int) -> HeteroData:
    """Replaces features by NaN, which is how an item lacks a modality."""
    rng = torch.Generator().manual_seed(seed)
    num_items = data['item'].num_nodes
    names = [key for key in data['item'] if key.startswith('x_')]
    stripped = torch.randperm(num_items, generator=rng)
    which = torch.randint(len(names), (num_items,), generator=rng)
    stripped = stripped[: round(share * num_items)]
    both, one = stripped[::2], stripped[1::2]

    data = copy.copy(data)
    for n, name in enumerate(names):
        x = data['item'][name].clone()
        x[both] = float('nan')
        x[one[which[one] == n]] = float('nan')
        data['item'][name] = x
    return data


def table(datasets: dict[str, list[Record]], titles: dict[str, str]) -> str:
    """Recall@20 alone: a line for each model and data set, a column for each
    share.
    """
    records = [x for runs in datasets.values() for x in runs]
    shares = sorted({record['share'] for record in records})
    rows = []
    for name, runs in datasets.items():
        for model in dict.fromkeys(run['model'] for run in runs):
            found = [run for run in runs if run['model'] == model]
            label = f'{titles.get(name, name)}, {model}'
            if any('form' in run for run in found):
                label += ' (earlier form)'
            cells = [cell(found, share) for share in shares]
            if model == WITHOUT_FEATURES:
                cells = [cells[0]] * len(shares)
            rows.append([label, *cells])
    head = ['Recall@20 by share of stripped items']
    return grid([*head, *(f'{share:.0%}' for share in shares)], rows)


def cell(runs: list[Record], share: float) -> str:
    """The mean over seeds."""
    found = [
        run['test']['alone']['recall@20']
        for run in runs
        if run['share'] == share
    ]
    return f'{mean(found):.4f}'[1:] if found else '-'


if __name__ == '__main__':
    main()
