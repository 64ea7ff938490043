r"""Measures the peak memory of CRANE above its features (Linux only), and what
it needs on data of the size of Amazon Electronics.

python benchmark/memory.py
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from measure import (
    SPORTS,
    Row,
    get_parser,
    medians,
    memory,
    reset_peak,
    row,
    save,
)
from speed import SIZES, build, crane_step, make_crane, rank

import crane_pyg.transforms as T

ELECTRONICS = (192_403, 63_001, 1_254_441)  # Users, items, training pairs.
GIGABYTE = 1e9
THRESHOLD = 'MALLOC_MMAP_THRESHOLD_'


def main() -> None:
    """Measures one phase after the other, and keeps the peaks."""
    parser = get_parser(__doc__)
    sizes = ELECTRONICS
    parser.add_argument('--knn-rows', type=int, default=sizes[1])
    parser.add_argument('--large', nargs=3, type=int, default=sizes)
    parser.add_argument('--repeats', type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rss = memory('VmRSS') / GIGABYTE
    rows = [
        row('the interpreter and its imports', rss, 'GB'),
        *trainings(args.threads, args.repeats),
        ranking(),
        *large(tuple(args.large), args.repeats),
        knn(args.knn_rows),
    ]
    title = 'Peak memory on fake data of the size of Amazon Sports'
    save(args, 'memory', title, rows)


def trainings(threads: int, repeats: int) -> list[Row]:
    """The peaks as it is, and where large blocks go back to the system as soon
    as they are free, each in a process of its own.
    """
    peak, seconds = in_other_process(threads, repeats)
    other_peak, other_seconds = in_other_process(
        threads, repeats, {THRESHOLD: str(2**20)}
    )
    name = 'training, all but the features'
    detail = f'a step takes {other_seconds / seconds:.2f} x'
    return [
        row(name, peak, 'GB', 0.8),
        row(f'the same with `{THRESHOLD}`', other_peak, 'GB', 0.8, detail),
    ]


def in_other_process(
    threads: int, repeats: int, setting: dict[str, str] | None = None
) -> list[float]:
    """What :meth:`training` returns in an environment."""
    code = (
        f'import memory, speed, torch; torch.set_num_threads({threads}); '
        f'memory.SPORTS = {SPORTS}; memory.SIZES = speed.SIZES = {SIZES}; '
        f'print(*memory.training({repeats}))'
    )
    out = subprocess.check_output(
        [sys.executable, '-W', 'ignore', '-c', code],
        text=True,
        env={**os.environ, **(setting or {})},
        cwd=Path(__file__).parent,
    )
    return [float(value) for value in out.split()]


def training(repeats: int) -> tuple[float, float]:
    """The peak of training in gigabytes, and the seconds of a step."""
    data, features = build(SPORTS)
    step = crane_step(make_crane(data), data)
    reset_peak()
    seconds = medians({'step': step}, repeats)['step']
    return (memory('VmHWM') - features) / GIGABYTE, seconds


def ranking() -> Row:
    """The peak of a ranking."""
    data, features = build(SPORTS)
    model = make_crane(data)
    reset_peak()
    rank(model, data)
    peak = (memory('VmHWM') - features) / GIGABYTE
    detail = f'features: {features / GIGABYTE:.2f} GB'
    return row('ranking, all but the features', peak, 'GB', None, detail)


def large(size: tuple[int, int, int], repeats: int) -> list[Row]:
    """Training on many items, and its steps in turns with those on few."""
    data, features = build(size)
    step = crane_step(make_crane(data), data)
    reset_peak()
    for _ in range(3):
        step()
    peak = memory('VmHWM') / GIGABYTE
    names = f'{size[0]:,} users, {size[1]:,} items, {size[2]:,} pairs'
    detail = f'{names}; features: {features / GIGABYTE:.2f} GB'
    rows = [row('training on Electronics, all', peak, 'GB', 4, detail)]

    small = build(SPORTS)[0]
    steps = {'large': step, 'small': crane_step(make_crane(small), small)}
    times = medians(steps, repeats)
    ratio = times['large'] / size[2] / (times['small'] / SPORTS[2])
    detail = ' against '.join(f'{t * 1e3:.0f} ms' for t in times.values())
    name = 'step for each pair, Electronics / Sports'
    return [*rows, row(name, ratio, 'x', 1.3, detail)]


def knn(num_rows: int) -> Row:
    """The peak of the exact search."""
    x = torch.randn(num_rows, SIZES['image'])
    before = reset_peak()
    T.knn_item_graph(x, 10)
    peak = (memory('VmHWM') - before) / GIGABYTE
    detail = f'{num_rows:,} x {SIZES["image"]}: {x.nbytes / GIGABYTE:.2f} GB'
    return row('kNN graph, above its features', peak, 'GB', 0.5, detail)


if __name__ == '__main__':
    main()
