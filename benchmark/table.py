r"""Writes the tables of results from the lines under `benchmark/results/`.

python benchmark/table.py          # print
python benchmark/table.py --write  # and put them into README and docs
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import ablation
import cold_start
import missing
from accuracy import REFERENCES
from layout import grid, replace_between
from provenance import describe
from records import RESULTS, Record, read
from scipy.stats import ttest_ind

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / 'docs' / 'results.md'
README = FOLDER.parent / 'README.md'
TITLES = {
    'amazon-sports': 'Amazon Sports',
    'tiktok': 'TikTok',
    'lastfm2k': 'Last.fm',
    'xwines': 'X-Wines',
    'fake': 'fake data',
}
METRICS = ('recall@20', 'ndcg@20')
OURS = ('all-relations',)  # Our ranker without a model.
KINDS = {'alone': '{}', 'ranker': '{} + ranker'}
Runs = dict[str, dict[str, list[Record]]]  # By model and data set.


def main() -> None:
    """Prints the tables, and writes them where asked to."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--write', action='store_true')
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args()
    runs = {
        question: by_dataset(args.results / question)
        for question in ('accuracy', 'ablation', 'cold-start', 'missing')
    }
    texts = {
        'results': accuracy(runs['accuracy']),
        'ablation': ablation.table(runs['ablation'], runs['accuracy'], TITLES),
        'cold-start': cold_start.table(runs['cold-start'], TITLES),
        'missing': missing.table(runs['missing'], TITLES),
    }
    short = summary(runs['accuracy'])
    print(*texts.values(), short, sep='\n\n')
    if args.write:
        for name, text in texts.items():
            replace_between(PAGE, name, text)
        replace_between(README, 'summary', short)


def by_dataset(folder: Path) -> dict[str, list[Record]]:
    """The records of a question, those of known data sets first."""
    paths = {path.stem: path for path in sorted(folder.glob('*.jsonl'))}
    known = [name for name in TITLES if name in paths]
    return {
        name: read(paths[name])
        for name in dict.fromkeys([*known, *sorted(paths)])
    }


def by_model(datasets: dict[str, list[Record]]) -> Runs:
    """The runs of each model on each data set, by the mean recall."""
    out: Runs = defaultdict(lambda: defaultdict(list))
    for name, records in datasets.items():
        for record in sorted(records, key=lambda x: str(x['seed'])):
            out[record['model']][name].append(record)
    return dict(sorted(out.items(), key=lambda item: place(item[1], out)))


def place(groups: dict[str, list[Record]], runs: Runs) -> float:
    """Where a model stands: its recall by that of the most popular items, the
    mean over data sets.
    """
    values = []
    for name, records in groups.items():
        base = runs.get('most-popular', {}).get(name)
        least = score(base, 'recall@20') if base else 1.0
        values.append(score(records, 'recall@20') / least)
    return mean(values)


def score(records: list[Record], metric: str, kind: str = 'alone') -> float:
    """The mean test score of some runs."""
    return mean(values(records, metric, kind))


def values(records: list[Record], metric: str, kind: str) -> list[float]:
    """The test scores of those runs that have one."""
    tests = [record['test'] for record in records]
    return [test[kind][metric] for test in tests if kind in test]


def cell(records: list[Record], kind: str) -> str:
    """Mean and standard deviation of both metrics."""
    parts = []
    for metric in METRICS:
        found = values(records, metric, kind)
        if not found:
            return '-'
        spread = f' ± {stdev(found):.4f}' if len(found) > 1 else ''
        parts.append(f'{mean(found):.4f}{spread}'.replace('0.', '.'))
    return ' / '.join(parts)


def accuracy(datasets: dict[str, list[Record]]) -> str:
    """All models alone and with the ranker, the margins, and the training."""
    runs, titles = by_model(datasets), titles_of(datasets)
    rows, trained = [], []
    for model, groups in runs.items():
        for kind, label in KINDS.items():
            cells = [cell(groups.get(name, []), kind) for name in datasets]
            if set(cells) != {'-'}:
                rows.append([label.format(model), *cells])
        cells = [effort(groups.get(name, [])) for name in datasets]
        if model not in REFERENCES:
            trained.append([model, *cells])
    head = ['Recall@20 / NDCG@20', *titles]
    origin = describe([x for records in datasets.values() for x in records])
    effort_head = ['seeds; best epochs; seconds a run', *titles]
    parts = [grid(head, rows), margins(datasets, runs)]
    parts += [grid(effort_head, trained), origin]
    return '\n\n'.join(filter(None, parts))


def titles_of(datasets: dict[str, list[Record]]) -> list[str]:
    """The names of data sets in a table."""
    return [TITLES.get(name, name) for name in datasets]


def effort(records: list[Record]) -> str:
    """Number of seeds, range of best epochs, and mean seconds on a CPU."""
    if not records:
        return '-'
    parts = [str(len(records))]
    epochs = [x['best_epoch'] for x in records if 'best_epoch' in x]
    if epochs:
        parts.append(' to '.join(map(str, sorted({min(epochs), max(epochs)}))))
    seconds = [
        x['seconds'] for x in records if x['device'] == 'cpu' and 'seconds' in x
    ]
    if seconds:
        parts.append(f'{mean(seconds):.0f}')
    return '; '.join(parts)


def margins(datasets: dict[str, list[Record]], runs: Runs) -> str:
    """What CRANE gains on the best peer, with a t-test over seeds."""
    rows = []
    for name in datasets:
        for kind, label in KINDS.items():
            cells = [gain(runs, name, kind, metric) for metric in METRICS]
            if set(cells) != {'-'}:
                title = TITLES.get(name, name)
                rows.append([label.format(title), *cells])
    return grid(['CRANE against the best other', *METRICS], rows)


def gain(runs: Runs, dataset: str, kind: str, metric: str) -> str:
    """The margin over the best other model, and Welch's p over seeds."""
    groups = {
        model: values(groups.get(dataset, []), metric, kind)
        for model, groups in runs.items()
        if model not in OURS and not model.startswith('crane-')
    }
    ours = groups.pop('crane', [])
    best = max(groups, key=lambda name: mean(groups[name] or [0.0]), default='')
    if not ours or not best or not groups[best]:
        return '-'
    theirs, text = groups[best], ''
    if all(len(set(x)) > 1 for x in (ours, theirs)):
        p = ttest_ind(ours, theirs, equal_var=False).pvalue
        text = f', p = {p:.1g}'
    return f'{mean(ours) / mean(theirs) - 1:+.1%} ({best}{text})'


def summary(datasets: dict[str, list[Record]]) -> str:
    """Recall@20 alone and with the ranker, of the real data sets."""
    datasets = {name: x for name, x in datasets.items() if name != 'fake'}
    rows = []
    for model, groups in by_model(datasets).items():
        cells = []
        for name in datasets:
            found = groups.get(name, [])
            means = [
                f'{score(found, "recall@20", kind):.4f}'[1:]
                for kind in KINDS
                if values(found, 'recall@20', kind)
            ]
            cells.append(' → '.join(means) or '-')
        rows.append([f'**{model}**' if model == 'crane' else model, *cells])
    head = ['Recall@20, alone → with the ranker', *titles_of(datasets)]
    return grid(head, rows)


if __name__ == '__main__':
    main()
