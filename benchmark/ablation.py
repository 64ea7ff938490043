r"""Changes one thing of CRANE at a time.

python benchmark/ablation.py --data FOLDER [FOLDER ...] --seeds 0

Models rank alone. The results of CRANE itself are those of accuracy.py.
"""

import argparse
from statistics import mean

import harness
from layout import grid
from models import MODELS
from records import Record, find, path_of, read

VARIANTS: dict[str, harness.Setting] = {
    'no contrast': {'contrast_weight': 0.0},
    'no item graph': {'num_item_layers': 0, 'contrast_weight': 0.0},
    'no IDs': {'use_id': False},
    'no RCA': {'mode': None},
    'no profiles': {'profile': None},
    'no RCA, no profiles': {'mode': None, 'profile': None},
    'RCA, correlation': {'mode': 'correlation'},
    'RCA, token': {'mode': 'token'},
    'RCA, 2 steps': {'mode': 'correlation', 'num_steps': 2},
    'RCA, 3 steps': {'mode': 'correlation', 'num_steps': 3},
    'profiles as input': {'profile': 'input'},
    'profiles in the contrast': {'profile': 'contrast'},
    'all pairs trained on': {'disjoint': False},
    **{f'edge dropping {p}': {'edge_dropping': p} for p in (0.0, 0.6, 0.9)},
    **{f'negatives {n}': {'num_negatives': n} for n in (1, 2, 8)},
    **{f'channels {d}': {'channels': d} for d in (16, 32, 128)},
    **{f'layers {n}': {'num_layers': n} for n in (0, 1, 3)},
}
# Of the earlier form, whose variants are told in a line each:
GROUPS = {
    'without-a-part': 'without',
    'rca': 'RCA',
    'profiles': 'profiles',
    'contrast-of-both-graphs': 'contrast',
    'neighborhood-weight': 'neighborhood',
    'pairs-to-train-on': 'trained on',
    'edge-dropping': 'edge dropping',
    'negatives-of-bpr': 'negatives',
    'sampled-softmax': 'sampled softmax',
    'item-graph-rebuilt-after-rca': 'item graph rebuilt',
    'features': 'features',
    'channels': 'channels',
    'layers': 'layers',
}


def main() -> None:
    """Trains all variants with all seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    harness.add_options(parser)
    parser.add_argument(
        '--variants', nargs='+', default=list(VARIANTS), choices=list(VARIANTS)
    )
    args = harness.parse(parser)
    for folder in args.data:
        run(args, folder)


def run(args: argparse.Namespace, folder: str | None) -> None:
    """Trains the variants on one data set."""
    dataset = harness.name_of(folder)
    path = path_of('ablation', dataset, args.results)
    for seed in args.seeds:
        data = harness.load(folder, seed, args.device)
        for name in args.variants:
            label = harness.with_tag(name, args.tag)
            about = {'dataset': dataset, 'model': label, 'seed': seed}
            if args.keep and find(read(path), **about) is not None:
                continue
            setting = {**VARIANTS[name], **harness.parse_setting(args.set)}
            model, record = harness.train(MODELS['crane'], data, seed, setting)
            scores = harness.score(data, *harness.embed(model, data))
            harness.keep(args, 'ablation', {**about, **scores, **record})
            print(*about.values(), scores['test'], flush=True)


def table(
    datasets: dict[str, list[Record]],
    references: dict[str, list[Record]],
    titles: dict[str, str],
) -> str:
    """What there is of the present form, and of an earlier one for data sets
    that have nothing of the present one.
    """
    forms: list[dict[str, list[Record]]] = [{}, {}]
    for name, records in datasets.items():
        for record in records:
            form = forms['form' in record]
            form.setdefault(name, []).append(record)
    old = {name: x for name, x in forms[1].items() if name not in forms[0]}
    parts = []
    if forms[0]:
        parts.append(differences(forms[0], references, titles))
    if old:
        parts.append(earlier(old, titles))
    return '\n\n'.join(parts)


def differences(
    datasets: dict[str, list[Record]],
    references: dict[str, list[Record]],
    titles: dict[str, str],
) -> str:
    """One row for each variant, with the difference to CRANE itself with the
    same seeds.
    """
    labels = dict.fromkeys(
        x['model'] for runs in datasets.values() for x in runs
    )
    rows = []
    for label in labels:
        cells = []
        for name, records in datasets.items():
            found = [x for x in records if x['model'] == label]
            seeds = {x['seed'] for x in found}
            base = [
                x
                for x in references.get(name, [])
                if x['model'] == 'crane' and x['seed'] in seeds
            ]
            text = f'{recall(found):.4f}'[1:] if found else '-'
            if found and len(base) == len(found):
                text += f' ({recall(found) - recall(base):+.4f})'
            cells.append(
                text if len(found) < 2 else f'{text}, {len(found)} seeds'
            )
        rows.append([label, *cells])
    names = [titles.get(name, name) for name in datasets]
    return grid(['Recall@20 alone', *names], rows)


def earlier(datasets: dict[str, list[Record]], titles: dict[str, str]) -> str:
    """One row for each group of variants."""
    rows = [['CRANE', *(values(runs, 'crane') for runs in datasets.values())]]
    for prefix, label in GROUPS.items():
        cells = [values(runs, prefix) for runs in datasets.values()]
        rows.append([label, *cells])
    names = [titles.get(name, name) for name in datasets]
    return grid(['Recall@20, earlier form', *names], rows)


def values(records: list[Record], prefix: str) -> str:
    """The variants of a group and their recall, best first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record['model'].startswith(prefix):
            label = record['model'].removeprefix(prefix).strip('-')
            groups.setdefault(label.replace('-', ' '), []).append(record)
    pairs = [(recall(runs), label) for label, runs in groups.items()]
    cells = [
        f'{label} {f"{value:.4f}"[1:]}'.strip()
        for value, label in sorted(pairs, reverse=True)
    ]
    return ', '.join(cells) or '-'


def recall(records: list[Record]) -> float:
    """The mean over seeds."""
    return mean(x['test']['alone']['recall@20'] for x in records)


if __name__ == '__main__':
    main()
