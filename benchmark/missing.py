r"""Strips items of their modalities, and shows what that costs each model.

python benchmark/missing.py --data path/to/folder  # run what is missing, show
python benchmark/missing.py --write                # show what there is

A share of the items, drawn by the seed, is stripped: every other one of them of
all its modalities, the rest of one, drawn as well. Their graphs are built, and
models trained and ranked, with what is left. The larger share contains the
smaller one. LightGCN reads no features, and is trained once.
"""

import argparse
import copy
import json
from functools import cache, partial
from pathlib import Path
from statistics import mean

import accuracy
import torch
from matplotlib.figure import Figure
from provenance import describe
from readme import replace_between
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg._files import replacing
from crane_pyg.datasets import read_mmrec

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / 'docs' / 'results.md'
RESULTS = FOLDER / 'results' / 'missing'
BEGIN, END = '<!-- missing:begin -->', '<!-- missing:end -->'
SHARES = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9]
MODELS = ['crane', 'freedom-same-recipe', 'lightgcn-same-recipe']
WITHOUT_FEATURES = {'lightgcn-same-recipe'}
Recalls = dict[str, dict[float, list[float]]]


def main() -> None:
    """Runs what has no result yet, and shows all results."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    accuracy.add_options(parser, RESULTS, patience=5)
    parser.add_argument('--models', nargs='+', default=MODELS)
    parser.add_argument('--shares', nargs='+', type=float, default=SHARES)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--write', action='store_true')
    args = parser.parse_args()
    if args.data is not None:
        run(args)
    show(args.results, args.write)


def run(args: argparse.Namespace) -> None:
    """Trains every model on what each share leaves, unless it was before."""
    data = read_mmrec(args.data)
    for seed in args.seeds:
        for share in args.shares:
            graphs = cache(partial(build, data, share, seed, args.device))
            for model in args.models:
                if model in WITHOUT_FEATURES and share > 0:
                    continue
                name = f'{model}-{share}'
                accuracy.complete(args, model, name, graphs, seed, share=share)


def build(data: HeteroData, share: float, seed: int, device: str) -> HeteroData:
    """The graphs of what is left of the items."""
    return T.BuildDualGraph()(strip(data, share, seed)).to(device)


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


def show(results: Path, write: bool) -> None:
    """Prints and draws the results of each data set."""
    records = [
        json.loads(f.read_text()) for f in sorted(results.glob('*.json'))
    ]
    texts = []
    for dataset in sorted({record['dataset'] for record in records}):
        runs = [record for record in records if record['dataset'] == dataset]
        recalls = collect(runs)
        draw(results / f'{dataset}.png', dataset, recalls)
        texts.append(table(dataset, recalls, runs))
    print(text := '\n\n'.join(texts))
    if write:
        replace_between(PAGE, BEGIN, END, text)


def collect(runs: list[dict]) -> Recalls:
    """Recall@20 on the test pairs, by the model and the share."""
    out: Recalls = {}
    for record in runs:
        name, share = record['model'].rsplit('-', 1)[0], record['share']
        by_share = out.setdefault(name, {})
        by_share.setdefault(share, []).append(record['test']['recall@20'])
    for name in WITHOUT_FEATURES & out.keys():
        out[name] = dict.fromkeys(out['crane'], out[name][0.0])
    return out


def table(dataset: str, recalls: Recalls, runs: list[dict]) -> str:
    """A line for each model, a column for each share."""
    shares = sorted({share for values in recalls.values() for share in values})
    seeds = ', '.join(map(str, sorted({run['seed'] for run in runs})))
    lines = [
        f'**{dataset}**, Recall@20 by the share of stripped items, '
        f'seed {seeds}',
        '',
        f'| | {" | ".join(f"{share:.0%}" for share in shares)} |',
        f'| --- |{" --- |" * len(shares)}',
    ]
    for name, values in recalls.items():
        cells = [
            f'{mean(values[share]):.4f}' if share in values else '-'
            for share in shares
        ]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join([*lines, '', describe(runs)])


def draw(path: Path, dataset: str, recalls: Recalls) -> None:
    """A curve for each model."""
    figure = Figure(figsize=(6, 4), layout='constrained')
    axis = figure.add_subplot()
    for name, values in recalls.items():
        shares = sorted(values)
        percent = [100 * share for share in shares]
        line = [mean(values[share]) for share in shares]
        axis.plot(percent, line, marker='o', label=name)
    axis.set_xlabel('items stripped of one or all modalities, %')
    axis.set_ylabel('Recall@20 on the test pairs')
    axis.set_ylim(bottom=0)
    axis.set_title(dataset)
    axis.legend()
    with replacing(path) as temp, temp.open('wb') as file:
        figure.savefig(file, format='png', dpi=150)


if __name__ == '__main__':
    main()
