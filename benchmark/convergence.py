r"""Draws the validation Recall@20 of all models against their training time.

python benchmark/convergence.py
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / 'results'
STYLES = {
    '-same-recipe': '--',
    '-same-recipe-all-pairs': ':',
    '-same-recipe-192': (0, (5, 4)),
    '-all-pairs': ':',
    '-neighborhood': '-.',
    '-neighborhood-192': (0, (5, 2, 1, 2, 1, 2)),
}
SUFFIXES = ('-192', '-neighborhood', '-all-pairs', '-same-recipe')
PEERS = ['#0072b2', '#56b4e9', '#009e73', '#e69f00', '#cc79a7', '#999999']


def main() -> None:
    """One picture per data set, of the first seed of each model on a CPU."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args()
    runs = [json.loads(p.read_text()) for p in args.results.glob('*.json')]
    runs = [run for run in runs if run.get('seed') == 0 and 'curve' in run]
    runs = [run for run in runs if run.get('device', 'cpu') == 'cpu']
    for name in sorted({run['dataset'] for run in runs}):
        chosen = [run for run in runs if run['dataset'] == name]
        draw(name, chosen, args.results / f'convergence-{name}.png')


def draw(name: str, runs: list[dict], path: Path) -> None:
    """The curves of all models on one data set, CRANE on top."""
    fig, ax = plt.subplots(figsize=(10, 4.5), layout='constrained')
    runs = sorted(runs, key=lambda run: -run['valid']['recall@20'])
    families = sorted({family(run['model']) for run in runs} - {'crane'})
    colors = dict(zip(families, PEERS, strict=False), crane='black')
    for run in runs:
        seconds, recall = zip(*run['curve'], strict=True)
        crane, kind = run['model'] == 'crane', family(run['model'])
        ax.plot(
            seconds,
            recall,
            linestyle=STYLES.get(run['model'].removeprefix(kind), '-'),
            color=colors[kind],
            linewidth=2.5 if crane else 1.3,
            label=f'{run["model"]} ({run["valid"]["recall@20"]:.4f})',
        )
    ax.set_xscale('log')
    ax.set_xlabel('training time, s (one thread of a shared machine)')
    ax.set_ylabel('validation Recall@20')
    ax.set_title(name)
    ax.grid(color='0.9')
    fig.legend(fontsize='small', loc='outside right upper')
    fig.savefig(path, dpi=150)
    plt.close(fig)


def family(model: str) -> str:
    """The name of a model without its recipe and what is added to it."""
    for suffix in SUFFIXES:
        model = model.removesuffix(suffix)
    return model


if __name__ == '__main__':
    main()
