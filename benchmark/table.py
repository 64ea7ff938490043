r"""Writes the tables of results from `benchmark/results/*.json`.

python benchmark/table.py          # print
python benchmark/table.py --write  # and put them into README and docs
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy
from provenance import describe
from readme import replace_between
from scipy.stats import ttest_ind, ttest_rel

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / 'docs' / 'results.md'
BEGIN, END = '<!-- results:begin -->', '<!-- results:end -->'
README = FOLDER.parent / 'README.md'
SHORT_BEGIN, SHORT_END = '<!-- summary:begin -->', '<!-- summary:end -->'
METRICS = ['recall@10', 'recall@20', 'ndcg@10', 'ndcg@20']
TITLES = {
    'amazon-sports': 'Amazon Sports (LATTICE split; features reconstructed '
    'from published neighbor graphs)',
    'tiktok': 'TikTok (visual and acoustic features)',
    'fake': '`FakeMultimodalDataset` (another draw of the data per seed)',
}


def main() -> None:
    """Prints the tables, and writes them where asked to."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--write', action='store_true')
    parser.add_argument('--results', type=Path, default=FOLDER / 'results')
    args = parser.parse_args()
    records = [load(path) for path in args.results.glob('*.json')]
    text, short = tables(records), summary(records)
    print(text, short, sep='\n\n')
    if args.write:
        replace_between(PAGE, BEGIN, END, text)
        replace_between(README, SHORT_BEGIN, SHORT_END, short)


def load(path: Path) -> dict:
    """One result, with the metrics of each user where they are kept."""
    record = json.loads(path.read_text())
    users = path.with_suffix('.npz')
    if users.exists():
        with numpy.load(users, allow_pickle=False) as file:
            record['users'] = {
                key: file[key].astype(numpy.float64) for key in file.files
            }
    return record


def group(records: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """The runs of each model on each data set."""
    groups = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda run: str(run['seed'])):
        groups[record['dataset']][record['model']].append(record)
    known = [name for name in TITLES if name in groups]
    others = sorted(groups.keys() - TITLES.keys())
    return {name: groups[name] for name in [*known, *others]}


def tables(records: list[dict]) -> str:
    """One table per data set, best model last."""
    return '\n\n'.join(
        table(TITLES.get(name, name), models)
        for name, models in group(records).items()
    )


def summary(records: list[dict]) -> str:
    """One table of what was trained on real data sets."""
    groups = group(records)
    groups.pop('fake', None)
    titles = {name: TITLES.get(name, name).split(' (')[0] for name in groups}
    header = ['test pairs']
    for title in titles.values():
        header += [f'{title}, recall@20', 'ndcg@20']
    rows = [' | '.join(header), ' | '.join(['---'] * len(header))]
    # By the recall on the first data set that a model was trained on:
    ranks = {
        name: score(runs, 'recall@20')
        for models in reversed(groups.values())
        for name, runs in models.items()
        if 'seconds' in runs[0] and 'all-pairs' not in name
    }
    for name in sorted(ranks, key=ranks.__getitem__):
        cells = [
            cell([run['test'][metric] for run in models.get(name, [])])
            for models in groups.values()
            for metric in ('recall@20', 'ndcg@20')
        ]
        rows.append(' | '.join([name, *cells]))
    parts = ['\n'.join(f'| {row} |' for row in rows)]
    for name, models in groups.items():
        if text := versus(models):
            parts.append(f'{titles[name]}: {text}')
    return '\n\n'.join(parts)


def table(title: str, models: dict[str, list[dict]]) -> str:
    """The table of one data set."""
    rows = sorted(models.items(), key=lambda kv: score(kv[1], 'recall@20'))
    header = ['model', 'seeds', *METRICS, 'best epoch', 'CPU, s']
    lines = [' | '.join(header), ' | '.join(['---'] * len(header))]
    for name, runs in rows:
        cells = [
            cell([run['test'][metric] for run in runs]) for metric in METRICS
        ]
        trained = 'seconds' in runs[0]
        seeds = epochs = '-'
        if runs[0]['seed'] is not None:
            seeds = ', '.join(str(run['seed']) for run in runs)
        if trained:
            epochs = ', '.join(str(run['epoch']) for run in runs)
        seconds = training_time(runs)
        lines.append(' | '.join([name, seeds, *cells, epochs, seconds]))
    body = '\n'.join(f'| {line} |' for line in lines)
    parts = [f'**{title}**', body, versus(models)]
    parts.append(describe([run for runs in models.values() for run in runs]))
    return '\n\n'.join(filter(None, parts))


def training_time(runs: list[dict]) -> str:
    """The mean seconds of those runs that were trained on a CPU."""
    seconds = [
        run['seconds']
        for run in runs
        if 'seconds' in run and run.get('device', 'cpu') == 'cpu'
    ]
    return f'{mean(seconds):.0f}' if seconds else '-'


def versus(models: dict[str, list[dict]]) -> str:
    """CRANE against the best peers: one that has no part of it, and one that
    has its neighborhood.
    """
    if 'crane' not in models:
        return ''
    trained = [
        name
        for name, runs in models.items()
        if not name.startswith('crane') and 'seconds' in runs[0]
    ]
    has = [name for name in trained if '-neighborhood' in name]
    lacks = [name for name in trained if name not in has]
    return ' '.join(
        compare(models, names, kind, metric)
        for names, kind in [
            (lacks, 'without a part of it'),
            (has, 'with its neighborhood'),
        ]
        for metric in ('recall', 'ndcg')
        if len(names) > 0
    )


def compare(
    models: dict[str, list[dict]], peers: list[str], kind: str, metric: str
) -> str:
    """What CRANE gains on the best of some peers, tested by user."""
    key = f'{metric}@20'
    peer = max(peers, key=lambda name: score(models[name], key))
    pair = [models['crane'], models[peer]]
    ours, theirs = (score(runs, key) for runs in pair)
    return (
        f'{key} of *crane* is {ours / theirs - 1:+.1%} against *{peer}*, the '
        f'best peer {kind} ({significance(*pair, metric)}).'
    )


def significance(ours: list[dict], theirs: list[dict], metric: str) -> str:
    """The p of a paired t-test over users, of means over seeds, and of a t-test
    over seeds: Welch's, or a paired one where each seed has data of its own.
    """
    pair, values = (ours, theirs), []
    if all('users' in run for runs in pair for run in runs):
        x, y = (
            numpy.mean([run['users'][metric] for run in runs], axis=0)
            for runs in pair
        )
        p = ttest_rel(x, y).pvalue
        values.append(f'p = {p:.1g} over {x.size:,} users')
    if min(len(runs) for runs in pair) > 1:
        x, y = ([run['test'][f'{metric}@20'] for run in runs] for runs in pair)
        if ours[0]['dataset'] == 'fake':
            p = ttest_rel(x, y).pvalue
        else:
            p = ttest_ind(x, y, equal_var=False).pvalue
        values.append(f'p = {p:.1g} over seeds')
    return ', '.join(values) or 'not tested'


def score(runs: list[dict], metric: str) -> float:
    """The mean test score of some runs."""
    return mean(run['test'][metric] for run in runs)


def cell(values: list[float]) -> str:
    """The mean, and the standard deviation, where there are any."""
    if len(values) == 0:
        return '-'
    spread = f' ± {stdev(values):.4f}' if len(values) > 1 else ''
    return f'{mean(values):.4f}{spread}'


if __name__ == '__main__':
    main()
