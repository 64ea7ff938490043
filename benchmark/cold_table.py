r"""Writes the tables of cold items from `benchmark/results/cold-start/*.json`.

python benchmark/cold_table.py          # print
python benchmark/cold_table.py --write  # and put them into docs/
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from readme import replace_between

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / 'docs' / 'results.md'
BEGIN, END = '<!-- cold-start:begin -->', '<!-- cold-start:end -->'
METRICS = ['recall@20', 'ndcg@20']


def main() -> None:
    """Prints the tables, and writes them where asked to."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--write', action='store_true')
    folder = FOLDER / 'results' / 'cold-start'
    parser.add_argument('--results', type=Path, default=folder)
    args = parser.parse_args()
    paths = sorted(args.results.glob('*.json'))
    text = tables([json.loads(path.read_text()) for path in paths])
    print(text)
    if args.write:
        replace_between(PAGE, BEGIN, END, text)


def tables(records: list[dict]) -> str:
    """One table per data set."""
    groups = defaultdict(list)
    for record in records:
        groups[record['dataset']].append(record)
    return '\n\n'.join(table(name, runs) for name, runs in groups.items())


def table(name: str, runs: list[dict]) -> str:
    """Cold items among themselves, then warm items before and after."""
    lines = [
        f'**{name}**, seeds {", ".join(str(run["seed"]) for run in runs)}',
        '',
        '| items | ranking | recall@20 | ndcg@20 | chosen |',
        '| --- | --- | --- | --- | --- |',
    ]
    for part in ('cold', 'warm'):
        for label in runs[0][part]:
            groups = [run[part][label] for run in runs]
            metrics = [group.get('test', group) for group in groups]
            cells = [spread([m[key] for m in metrics]) for key in METRICS]
            chosen = {json.dumps(group.get('chosen')) for group in groups}
            chosen = '; '.join(sorted(chosen - {'null'})) or '-'
            label = label if part == 'cold' else f'crane, {label}'
            lines.append(f'| {" | ".join([part, label, *cells, chosen])} |')
    revisions = sorted({run['revision'] for run in runs})
    epochs = sorted({run['arguments']['epochs'] for run in runs})
    return '\n'.join(
        [
            *lines,
            '',
            f'<sub>revision {", ".join(revisions)}; at most '
            f'{", ".join(map(str, epochs))} epochs; torch '
            f'{runs[0]["versions"]["torch"]}</sub>',
        ]
    )


def spread(values: list[float]) -> str:
    """The mean and the standard deviation over the seeds."""
    if len(values) == 1:
        return f'{values[0]:.4f}'
    return f'{mean(values):.4f} ± {stdev(values):.4f}'


if __name__ == '__main__':
    main()
