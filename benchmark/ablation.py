r"""Changes one thing of CRANE at a time, and shows what that does.

python benchmark/ablation.py --data path/to/folder  # run what is missing, draw
python benchmark/ablation.py --draw                 # draw the results there are
python benchmark/ablation.py --write                # and write the table

The results of CRANE itself are those that accuracy.py has kept.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import accuracy
import matplotlib.pyplot as plt
from accuracy import slug
from matplotlib.axes import Axes
from readme import replace_between

RESULTS = Path(__file__).parent / 'results' / 'ablation'
PAGE = Path(__file__).parent.parent / 'docs' / 'results.md'
BEGIN, END = '<!-- ablation:begin -->', '<!-- ablation:end -->'
# The largest standard deviations of CRANE seen, both over six seeds:
SPREADS = {'amazon-sports': 0.0010, 'tiktok': 0.0031}
Recalls = dict[str, list[float]]
RELATIONS, WEIGHT = ('co_rated', 'refined', 'similar_to'), 9
SOFTMAX = {'num_samples': 1024, 'temperature': 0.2}
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    'Without a part': {
        'contrast': {'loss': {'contrast_weight': 0}},
        'IDs': {'use_id': False},
        'item graph': {'num_item_layers': 0, 'loss': {'contrast_weight': 0}},
        'neighborhood': {'neighbor_weights': {}},
        **{
            f'{relation} edges': {
                'neighbor_weights': {
                    other: WEIGHT for other in RELATIONS if other != relation
                }
            }
            for relation in RELATIONS
        },
    },
    'RCA': {
        '1 step': {'mode': 'correlation'},
        **{
            f'{n} steps': {'mode': 'correlation', 'num_steps': n}
            for n in (2, 3, 4)
        },
        'token': {'mode': 'token'},
        'token, 2 steps': {'mode': 'token', 'num_steps': 2},
    },
    'Profiles': {
        'as input': {'profile': 'input'},
        'in the contrast': {'profile': 'contrast'},
    },
    'Contrast of both graphs': {
        'weight 1e-3': {'loss': {'contrast_weight': 1e-3}},
        'weight 3e-3': {'loss': {'contrast_weight': 3e-3}},
        'weight 3e-2': {'loss': {'contrast_weight': 3e-2}},
        'temperature .1': {'loss': {'temperature': 0.1}},
        'temperature .5': {'loss': {'temperature': 0.5}},
    },
    'Neighborhood weight': {
        f'x {x}': {'neighbor_weights': dict.fromkeys(RELATIONS, WEIGHT * x)}
        for x in (0.25, 0.5, 2, 4)
    },
    'Pairs to train on': {'all of them': {'disjoint': False}},
    'Edge dropping': {
        str(p): {'edge_dropping': p} for p in (0.0, 0.3, 0.6, 0.9)
    },
    'Negatives of BPR': {str(n): {'num_negatives': n} for n in (1, 2, 8, 16)},
    'Sampled softmax: negatives, temperature': {
        f'{n}, {t}': {'softmax': {'num_samples': n, 'temperature': t}}
        for n in (256, 1024)
        for t in (0.1, 0.2)
    },
    'Sampled softmax: 1024 negatives, .1, L2': {
        str(x): {
            'softmax': {**SOFTMAX, 'temperature': 0.1},
            'lambda_reg': x,
        }
        for x in (3e-3, 1e-2)
    },
    'Sampled softmax: 1024 popular negatives, .2': {
        name: {'softmax': {**SOFTMAX, 'popular': True, 'correct': correct}}
        for name, correct in [('as they are', False), ('corrected', True)]
    },
    'Item graph rebuilt after RCA': {
        f'every {n} epochs': {'rebuild': n, 'mode': 'correlation'}
        for n in (1, 5)
    },
    'Features': {
        'bfloat16': {'features': {'dtype': 'bfloat16'}},
        '64 of 128': {'features': {'channels': 64}},
        '32 of 128': {'features': {'channels': 32}},
    },
    'Channels': {str(d): {'channels': d} for d in (32, 128, 256)},
    'Layers': {str(n): {'num_layers': n} for n in (0, 1, 3)},
}


def main() -> None:
    """Runs the variants without a result, and draws all results."""
    parser = argparse.ArgumentParser()
    accuracy.add_options(parser, RESULTS)
    parser.add_argument('--groups', nargs='+', default=list(GROUPS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--reference', type=Path, default=accuracy.RESULTS)
    parser.add_argument('--draw', action='store_true')
    parser.add_argument('--write', action='store_true')
    args = parser.parse_args()
    if args.data is not None:
        run(args)
    elif not (args.draw or args.write):
        parser.error('needs --data DIR, --draw or --write')
    recalls = collect(args.results, args.reference)
    draw(recalls, args.results)
    if args.write:
        replace_between(PAGE, BEGIN, END, table(recalls))


def run(args: argparse.Namespace) -> None:
    """Trains every variant with every seed, unless its result is there."""
    data = accuracy.load_data(args)
    variants = {
        f'{group}: {variant}': overrides
        for group in args.groups
        for variant, overrides in GROUPS[group].items()
    }
    for seed in args.seeds:
        for label, overrides in variants.items():
            args.set = accuracy.assignments(overrides)
            accuracy.complete(args, 'crane', slug(label), lambda: data, seed)


def collect(folder: Path, reference: Path) -> dict[str, Recalls]:
    """Recall@20 on the test pairs of each data set, by label."""
    paths = {*folder.glob('*.json'), *reference.glob('*-crane-[0-9].json')}
    out: dict[str, Recalls] = {}
    for path in sorted(paths):
        record = json.loads(path.read_text())
        recalls = out.setdefault(record['dataset'], {})
        recall = record['test']['recall@20']
        recalls.setdefault(record['model'], []).append(recall)
    return out


def table(results: dict[str, Recalls]) -> str:
    """One row for each variant, with the difference to CRANE itself."""
    names = [name for name, x in results.items() if x.keys() - {'crane'}]
    lines = ['changed', *names], ['---'] * (1 + len(names))
    rows = [' | '.join(line) for line in lines]
    for group, variants in GROUPS.items():
        for variant in variants:
            label = f'{group}: {variant}'
            cells = [cell(name, slug(label), results[name]) for name in names]
            if any(text != '-' for text in cells):
                rows.append(' | '.join([label, *cells]))
    return '\n'.join(f'| {row} |' for row in rows)


def cell(name: str, label: str, recalls: Recalls) -> str:
    """The mean and its difference, bold if it is one beyond that of seeds."""
    if not {label, 'crane'} <= recalls.keys():
        return '-'
    value, n = mean(recalls[label]), len(recalls[label])
    gain = value - mean(recalls['crane'])
    spread = SPREADS.get(name, max(SPREADS.values()))
    error = spread * (1 / n + 1 / len(recalls['crane'])) ** 0.5
    bold = '**' if abs(gain) > 2 * error else ''
    seeds = f', {n} seeds' if n > 1 else ''
    return f'{value:.4f} ({bold}{gain:+.4f}{bold}{seeds})'


def draw(results: dict[str, Recalls], folder: Path) -> None:
    """One picture per data set: a panel for each group."""
    for name, recalls in results.items():
        groups = {
            group: labels
            for group, variants in GROUPS.items()
            if (
                labels := {
                    label: recalls[slug(f'{group}: {label}')]
                    for label in variants
                    if slug(f'{group}: {label}') in recalls
                }
            )
        }
        if len(groups) == 0:
            continue
        columns = min(3, len(groups))
        rows = -(-len(groups) // columns)
        fig, axes = plt.subplots(
            rows, columns, figsize=(4 + 3 * columns, 3 * rows),
            layout='constrained', squeeze=False, sharex=True,
        )  # fmt: skip
        for ax, (group, labels) in zip(axes.flat, groups.items(), strict=False):
            panel(ax, group, labels, recalls.get('crane', []))
        for ax in axes.flat[len(groups) :]:
            ax.axis('off')
        fig.suptitle(f'{name}: Recall@20 on the test pairs, a dot a seed')
        fig.savefig(folder / f'{name}.png', dpi=150)
        plt.close(fig)


def panel(
    ax: Axes,
    title: str,
    labels: dict[str, list[float]],
    reference: list[float],
) -> None:
    """The variants of one group, and CRANE as a band."""
    if reference:
        ax.axvspan(min(reference), max(reference), color='0.85')
        ax.axvline(mean(reference), color='0.5', label='CRANE')
    for y, values in enumerate(labels.values()):
        ax.plot(values, [y] * len(values), 'o', color='#0072b2', alpha=0.6)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.locator_params(axis='x', nbins=5)
    ax.xaxis.set_tick_params(labelbottom=True)
    ax.set_title(title, fontsize='medium')


if __name__ == '__main__':
    main()
