r"""Measures how the cost of CRANE grows with the number of interactions.

python benchmark/scaling.py

Users and items grow with them. The exact search for nearest neighbors compares
all pairs of items, and is measured on its own, up to some number of items;
propagation runs over random neighbors at every size.
"""

import argparse
import time
from statistics import median

import torch
from measure import (
    fake_graph,
    get_parser,
    memory,
    prepare_epoch,
    reset_peak,
    row,
    save,
    set_features,
    slope,
)
from speed import take_step
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg.nn import CRANE
from crane_pyg.transforms.dual_graph import set_user_item_graph

FEATURES = {'image': 64, 'text': 32}
PAIRS_PER_USER, PAIRS_PER_ITEM, BATCH_SIZE = 6, 12, 2048
SIZES = [100_000, 316_000, 1_000_000, 3_160_000, 10_000_000]
SEARCH, BUILD = 'exact kNN search, s', 'all graphs but for that, s'
LINEAR = 1.05


def main() -> None:
    """Measures all sizes, and fits a line through the logarithms."""
    parser = get_parser(__doc__)
    parser.add_argument('--sizes', nargs='+', type=int, default=SIZES)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--channels', type=int, default=16)
    parser.add_argument('--knn-items', type=int, default=100_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    costs: dict[str, dict[int, float]] = {}
    for size in args.sizes:
        for name, value in measure(size, args).items():
            costs.setdefault(name, {})[size] = value
    rows = []
    for name, values in costs.items():
        text = ', '.join(f'{value:.3g}' for value in values.values())
        text += f' (up to {max(values):,})'
        exponent = slope(list(values), list(values.values()))
        target = None if name == SEARCH else LINEAR
        rows.append(row(name, exponent, '', target, text))
    sizes = f'{args.sizes[0]:,} to {args.sizes[-1]:,}'
    title = f'Exponents of the cost, {sizes} interactions (fake data)'
    save(args, 'scaling', title, rows)


def measure(num_pairs: int, args: argparse.Namespace) -> dict[str, float]:
    """The costs at one size, in seconds and GB."""
    num_users, num_items = (
        num_pairs // per for per in (PAIRS_PER_USER, PAIRS_PER_ITEM)
    )
    data = fake_graph(num_users, num_items, num_pairs)
    set_features(data, FEATURES)
    costs = {}
    if num_items <= args.knn_items:
        start = time.perf_counter()
        for name in FEATURES:
            T.knn_item_graph(data['item'][f'x_{name}'], 10)
        costs[SEARCH] = time.perf_counter() - start
    costs[BUILD] = build(data)
    print(f'{num_pairs:,} pairs: {costs}', flush=True)
    return costs | train(data, args)


def build(data: HeteroData) -> float:
    """Builds all graphs, that of random neighbors among them, in place."""
    transform = T.BuildDualGraph()
    num_items = data['item'].num_nodes
    for name in FEATURES:
        index = torch.randint(num_items, (num_items, transform.k))
        data['item'][f'neighbor_{name}'] = index
        data['item'][f'similarity_{name}'] = torch.rand(index.size())
    start = time.perf_counter()
    transform.set_item_graph(data)
    transform.set_co_rated_graph(data)
    set_user_item_graph(data, transform.edge_type)
    return time.perf_counter() - start


def train(data: HeteroData, args: argparse.Namespace) -> dict[str, float]:
    """What a step and what comes before an epoch take."""
    size = (data['user'].num_nodes, data['item'].num_nodes)
    model = CRANE(*size, FEATURES, args.channels, mode='correlation')
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    before = reset_peak()
    steps, epochs = [], []
    for _ in range(args.repeats + 1):
        begin = time.perf_counter()
        epoch_data, pairs, negatives = prepare_epoch(data)
        middle = time.perf_counter()
        index = torch.randperm(pairs.size(1))[:BATCH_SIZE]
        batch = (*pairs[:, index], negatives[index])
        take_step(model, optimizer, epoch_data, batch)
        steps.append(time.perf_counter() - middle)
        epochs.append(middle - begin)
    return {
        'training step, s': median(steps[1:]),
        'sampling and edge dropping of an epoch, s': median(epochs[1:]),
        'memory of training, GB': (memory('VmHWM') - before) / 1e9,
    }


if __name__ == '__main__':
    main()
