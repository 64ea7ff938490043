r"""Measures the peak memory of CRANE above its features (Linux only), and what
it needs on data of the size of Amazon Electronics.

python benchmark/memory.py
"""

import argparse
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
# Large blocks go back as soon as they are free; or come in large pages:
THRESHOLD = {'MALLOC_MMAP_THRESHOLD_': str(2**20)}
HUGE_PAGES = {'THP_MEM_ALLOC_ENABLE': '1'}
Setting = dict[str, str]


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
        *trainings(args),
        ranking(),
        *larges(args),
        knn(args.knn_rows),
    ]
    title = 'Peak memory on fake data of the size of Amazon Sports'
    save(args, 'memory', title, rows)


def trainings(args: argparse.Namespace) -> list[Row]:
    """The peaks as it is and under either setting, each in a process."""
    rows, plain = [], None
    for setting in ({}, THRESHOLD, HUGE_PAGES):
        call = f'training({args.repeats})'
        peak, seconds = in_other_process(args, call, setting)
        plain = plain or seconds
        name = under('training, all but the features', setting)
        detail = f'a step takes {seconds / plain:.2f} x' if setting else ''
        rows.append(row(name, peak, 'GB', 0.8, detail))
    return rows


def under(name: str, setting: Setting) -> str:
    """What is measured, and the setting, if any."""
    return ', '.join([name, *(f'`{key}`' for key in setting)])


def in_other_process(
    args: argparse.Namespace, call: str, setting: Setting
) -> list[float]:
    """What a function of this module returns in an environment."""
    code = (
        f'import memory, speed, torch; torch.set_num_threads({args.threads}); '
        f'memory.SPORTS = {SPORTS}; memory.SIZES = speed.SIZES = {SIZES}; '
        f'print(*memory.{call})'
    )
    out = subprocess.check_output(
        [sys.executable, '-W', 'ignore', '-c', code],
        text=True,
        env={**os.environ, **setting},
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


def larges(args: argparse.Namespace) -> list[Row]:
    """Training on many items, as it is and with huge pages."""
    size = tuple(args.large)
    names = f'{size[0]:,} users, {size[1]:,} items, {size[2]:,} pairs'
    peaks, ratios = [], []
    for setting in ({}, HUGE_PAGES):
        call = f'large({size}, {args.repeats})'
        peak, many, few = in_other_process(args, call, setting)
        name = under('training on Electronics, all', setting)
        peaks.append(row(name, peak, 'GB', 4, '' if setting else names))
        name = under('step for each pair, Electronics / Sports', setting)
        detail = f'{many * 1e3:.0f} ms against {few * 1e3:.0f} ms'
        ratio = many / size[2] / (few / SPORTS[2])
        ratios.append(row(name, ratio, 'x', 1.3, detail))
    return [*peaks, *ratios]


def large(
    size: tuple[int, int, int], repeats: int
) -> tuple[float, float, float]:
    """The peak of training on many items in gigabytes, and the seconds of its
    steps and of those on few, in turns.
    """
    data, _ = build(size)
    step = crane_step(make_crane(data), data)
    reset_peak()
    for _ in range(3):
        step()
    peak = memory('VmHWM') / GIGABYTE
    small, _ = build(SPORTS)
    steps = {'large': step, 'small': crane_step(make_crane(small), small)}
    times = medians(steps, repeats)
    return peak, times['large'], times['small']


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
