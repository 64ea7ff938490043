r"""Measures how the cost of CRANE grows with the number of interactions.

python benchmark/scaling.py --sizes 100000 316000 1000000
"""

import time
from pathlib import Path
from statistics import median

import torch
from measure import (
    fake_graph,
    get_parser,
    memory,
    reset_peak,
    row,
    save,
    set_features,
    slope,
)

import crane_pyg.transforms as T
from crane_pyg.checkpoint import replacing
from crane_pyg.nn import CRANE
from crane_pyg.sampling import sample_negatives

FEATURES = {'image': 64, 'text': 32}
PAIRS_PER_USER, PAIRS_PER_ITEM, BATCH_SIZE = 6, 12, 2048
NUM_CO_RATED = 100


def main() -> None:
    """Measures all sizes, and fits a line through the logarithms."""
    parser = get_parser(__doc__)
    sizes = [100_000, 316_000, 1_000_000]
    parser.add_argument('--sizes', nargs='+', type=int, default=sizes)
    parser.add_argument('--repeats', type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    costs: dict[str, list[float]] = {}
    for size in args.sizes:
        for name, value in measure(size, args.repeats).items():
            costs.setdefault(name, []).append(value)
    first, last = (f'{args.sizes[n]:,}' for n in (0, -1))
    rows = []
    for name, values in costs.items():
        text = ', '.join(f'{value:.3g}' for value in values)
        exponent = slope(args.sizes, values)
        rows.append(row(name, exponent, '', 1.05, text))
    title = f'Exponents of the cost, {first} to {last} interactions (fake data)'
    save(args, 'scaling', title, rows)
    draw(args.results / 'scaling.png', args.sizes, costs)


def measure(num_pairs: int, repeats: int) -> dict[str, float]:
    """The costs at one size, in seconds and GB."""
    start = time.perf_counter()
    data = fake_graph(
        num_pairs // PAIRS_PER_USER, num_pairs // PAIRS_PER_ITEM, num_pairs
    )
    set_features(data, FEATURES)
    pairs = data['user', 'rates', 'item'].edge_index
    begin = time.perf_counter()
    T.co_rated_graph(
        pairs, data['user'].num_nodes, data['item'].num_nodes, NUM_CO_RATED
    )
    middle = time.perf_counter()
    data = T.BuildDualGraph(num_co_rated=NUM_CO_RATED)(data)
    end = time.perf_counter()
    co_rated, build = middle - begin, end - middle
    print(f'{num_pairs:,} pairs: {end - start:.0f} s to set up', flush=True)

    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    model = CRANE(num_users, num_items, FEATURES)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    pairs = data['user', 'rates', 'item'].edge_index.as_tensor()
    before = reset_peak()
    steps, epochs = [], []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        negatives = sample_negatives(pairs, num_items, 4)
        epoch_data = T.DegreeDropEdges(0.8)(data)
        middle = time.perf_counter()
        index = torch.randperm(pairs.size(1))[:BATCH_SIZE]
        optimizer.zero_grad()
        out = model(epoch_data)
        model.loss(out, *pairs[:, index], negatives[index]).backward()
        optimizer.step()
        steps.append(time.perf_counter() - middle)
        epochs.append(middle - begin)
    return {
        'training step, s': median(steps[1:]),
        'sampling and edge dropping of an epoch, s': median(epochs[1:]),
        'memory of training, GB': (memory('VmHWM') - before) / 1e9,
        'the graph of co-rated items, s': co_rated,
        'all graphs, with the exact kNN search, s': build,
    }


def draw(path: Path, sizes: list[int], costs: dict[str, list[float]]) -> None:
    """All costs over the size, on logarithmic axes."""
    from matplotlib.figure import Figure  # Of use for pictures only.

    figure = Figure(figsize=(7, 5), layout='constrained')
    axis = figure.add_subplot()
    for name, values in costs.items():
        axis.loglog(sizes, values, marker='o', label=name)
    axis.set_xlabel('interactions')
    axis.legend()
    with replacing(path) as temp, temp.open('wb') as file:
        figure.savefig(file, format='png')


if __name__ == '__main__':
    main()
