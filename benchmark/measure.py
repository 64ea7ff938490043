r"""What the scripts on speed, memory and scale share.

python benchmark/measure.py          # print the tables of what they kept
python benchmark/measure.py --write  # and put them into docs/
"""

import argparse
import ctypes
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from layout import grid, replace_between
from provenance import provenance
from records import RESULTS, put, read
from torch import Tensor
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg.training import sample_negatives

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / 'docs' / 'speed.md'
FILE = Path('speed', 'speed.jsonl')
SPORTS = (35_598, 18_357, 218_409)  # Users, items, training pairs.
Row = dict[str, object]


def main() -> None:
    """Prints the tables, and writes them where asked to."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--write', action='store_true')
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args()
    found = {x['table']: x for x in read(args.results / FILE)}
    names = ('speed', 'memory', 'scaling', 'gpu')
    records = [found[name] for name in names if name in found]
    text = '\n\n'.join(table(record) for record in records)
    print(text)
    if args.write:
        replace_between(PAGE, 'speed', text)


def get_parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all scripts take."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--note', default='', help='what else the machine did')
    return parser


def medians(
    runs: dict[str, Callable[[], object]], repeats: int = 7
) -> dict[str, float]:
    """The median seconds of each, taken in turns after one turn unmeasured;
    without a repeat, that turn is measured.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if n > 0 or repeats == 0:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def row(
    name: str,
    value: float,
    unit: str,
    target: float | None = None,
    detail: str = '',
) -> Row:
    """One line of a table; a target is met by what is not above it."""
    return {
        'name': name,
        'value': value,
        'unit': unit,
        'target': target,
        'detail': detail,
    }


def table(record: dict[str, object]) -> str:
    """The table of one script."""
    rows = []
    for line in record['rows']:
        met, target = '-', '-'
        if line['target'] is not None:
            target = f'{line["target"]:.3g} {line["unit"]}'
            met = 'yes' if line['value'] <= line['target'] else '**missed**'
        value = f'{line["value"]:.3g} {line["unit"]}'
        rows.append([line['name'], value, target, met, line['detail']])
    facts = ['revision', 'date', 'device', 'threads', 'load']
    facts += ['torch', 'torch_geometric']
    parts = [f'{key} {record[key]}' for key in facts if key in record]
    parts += [f'`{key}={value}`' for key, value in record['malloc'].items()]
    text = '; '.join([*parts, record['note']] if record['note'] else parts)
    body = grid(['what', 'measured', 'target', 'met', ''], rows)
    return f'**{record["title"]}**\n\n{body}\n\n<sub>{text}</sub>'


def save(
    args: argparse.Namespace, name: str, title: str, rows: list[Row]
) -> None:
    """Keeps the rows with all that is needed to repeat them, and prints."""
    origin = provenance(vars(args).get('device', 'cpu'))
    record = {
        'table': name,
        'title': title,
        'rows': rows,
        **origin.pop('versions'),
        **origin,
        'threads': args.threads,
        'cpus': os.cpu_count(),
        'load': round(os.getloadavg()[1], 1),
        'malloc': {
            key: value
            for key, value in sorted(os.environ.items())
            if key.startswith(('MALLOC_', 'THP_'))
        },
        'note': args.note,
    }
    put(args.results / FILE, record)
    print(table(record))


def fake_graph(
    num_users: int, num_items: int, num_pairs: int, seed: int = 0
) -> HeteroData:
    """Pairs that favor some users and items, as people do, and held-out ones
    for every user.
    """
    rng = torch.Generator().manual_seed(seed)

    def draw_index(num: int, size: int) -> torch.Tensor:
        share = torch.rand(num, generator=rng, dtype=torch.double)
        return (share.square() * size).long()

    num_draws = 2 * num_pairs
    pair = draw_index(num_draws, num_users) * num_items
    pair = (pair + draw_index(num_draws, num_items)).unique()
    users = torch.arange(num_users)
    held_out = draw_index(num_users, num_items)
    pair = pair[~torch.isin(pair, users * num_items + held_out)]
    order = torch.randperm(pair.numel(), generator=rng)[:num_pairs]
    pair = pair[order.sort()[0]]
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = num_users, num_items
    rates = data['user', 'rates', 'item']
    rates.edge_index = torch.stack([pair // num_items, pair % num_items])
    rates.test_edge_label_index = torch.stack([users, held_out])
    return data


def set_features(data: HeteroData, sizes: dict[str, int], seed: int = 0) -> int:
    """Replaces the features by random ones, and returns their bytes."""
    rng = torch.Generator().manual_seed(seed)
    num_items, total = data['item'].num_nodes, 0
    for name, size in sizes.items():
        x = torch.randn(num_items, size, generator=rng)
        data['item'][f'x_{name}'] = x
        total += x.nbytes
    return total


def prepare_epoch(data: HeteroData) -> tuple[HeteroData, Tensor, Tensor]:
    """The graph of an epoch, the pairs to train on, and their negatives."""
    data = T.DegreeDropEdges(0.8)(data)
    rates = data['user', 'rates', 'item']
    pairs, seen = rates.edge_label_index, rates.edge_index
    negatives = sample_negatives(pairs, data['item'].num_nodes, 4, seen)
    return data, pairs, negatives


def slope(x: list[float], y: list[float]) -> float:
    """The exponent of the power law through the points."""
    xs, ys = ([math.log(value) for value in values] for values in (x, y))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum(
        (a - mean_x) * (b - mean_y) for a, b in zip(xs, ys, strict=True)
    )
    return above / sum((a - mean_x) ** 2 for a in xs)


def reset_peak() -> int:
    """Makes the present memory of this process its peak, and returns it
    (Linux only).
    """
    # What is free already, but kept for later, is no need of what follows:
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')
    return memory('VmRSS')


def memory(key: str) -> int:
    """The peak (`VmHWM`) or present (`VmRSS`) memory in bytes (Linux only)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f'{key}:'))
    return int(line.split()[1]) * 1024


if __name__ == '__main__':
    main()
