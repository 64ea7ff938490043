r"""Measures the speed of CRANE beside others', in one process, in turns.

python benchmark/speed.py
"""

import copy
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from floors import ceilings, parts, probes
from measure import (
    SPORTS,
    Row,
    fake_graph,
    get_parser,
    medians,
    prepare_epoch,
    row,
    save,
    set_features,
)
from models.lightgcn import normalized_adjacency
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn.models import LightGCN

import crane_pyg.transforms as T
from crane_pyg.nn import CRANE
from crane_pyg.ranking import Ranker, evaluate

SIZES, CHANNELS, BATCH_SIZE = {'image': 4096, 'text': 384}, 64, 2048
RELATIONS = ('co_rated', 'similar_to', 'refined')
CHANNELS_KEPT, FEW_ROWS = 128, 20_000
IMPORT = """
import time, torch, torch_geometric.nn, torch_geometric.transforms
import torch_geometric.datasets, torch_geometric.metrics
start = time.perf_counter()
import crane_pyg.nn, crane_pyg.transforms, crane_pyg.datasets, crane_pyg.ranking
print(time.perf_counter() - start)
"""


def main() -> None:
    """Measures everything, and keeps it."""
    parser = get_parser(__doc__)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--knn-rows', nargs='+', type=int, default=[4096])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    data, _ = build(SPORTS)
    rows = [
        *steps(data, args.repeats),
        *parts(make_crane(data), data, batch(data), args.repeats),
        *(knn(num_rows, args.repeats) for num_rows in args.knn_rows),
        *rankings(data, args.repeats),
        imports(args.repeats),
    ]
    title = 'Speed on fake data of the size of Amazon Sports'
    save(args, 'speed', title, rows)


def build(size: tuple[int, int, int]) -> tuple[HeteroData, int]:
    """Graphs of narrow features, and wide ones, and the bytes of these."""
    data = fake_graph(*size)
    set_features(data, {'image': 64, 'text': 32})
    data = T.BuildDualGraph()(data)
    return data, set_features(data, SIZES)


def batch(data: HeteroData) -> tuple[Tensor, Tensor, Tensor]:
    """The users, items and negatives of one mini-batch."""
    pairs = data['user', 'rates', 'item'].edge_index
    pairs = pairs[:, torch.randperm(pairs.size(1))[:BATCH_SIZE]]
    size, num_items = (pairs.size(1), 4), data['item'].num_nodes
    return *pairs, torch.randint(num_items, size, device=pairs.device)


def make_crane(data: HeteroData) -> CRANE:
    """The model with its defaults, and RCA, so that nothing is left out."""
    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    sizes = {name: data['item'][f'x_{name}'].size(1) for name in SIZES}
    model = CRANE(num_users, num_items, sizes, CHANNELS, mode='correlation')
    return model.to(device_of(data))


def device_of(data: HeteroData) -> torch.device:
    """Where the data are."""
    return data['user', 'rates', 'item'].edge_index.device


def crane_step(model: CRANE, data: HeteroData) -> Callable[[], object]:
    """A whole step of CRANE."""
    pairs = batch(data)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    return lambda: take_step(model, optimizer, data, pairs)


def take_step(
    model: CRANE,
    optimizer: torch.optim.Optimizer,
    data: HeteroData,
    pairs: tuple[Tensor, Tensor, Tensor],
) -> None:
    """One step, of users, items and negatives."""
    optimizer.zero_grad()
    model.loss(model(data), *pairs).backward()
    optimizer.step()


def lightgcn_step(
    data: HeteroData, compressed: bool = False
) -> Callable[[], object]:
    """A whole step as in the example of PyG, on a plain `edge_index`, or on
    compressed rows that are normalized once, and by a fused Adam.
    """
    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    if compressed:
        edge_index = normalized_adjacency(data)
    else:
        user, item = data['user', 'rates', 'item'].edge_index
        edge_index = torch.stack([user, item + num_users])
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    model = LightGCN(
        num_users + num_items, CHANNELS, num_layers=2, normalize=not compressed
    ).to(edge_index.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=compressed)
    users, items, negatives = batch(data)
    label = torch.stack([users, items + num_users])
    negative = torch.stack([users, negatives[:, 0] + num_users])
    label = torch.cat([label, negative], dim=1)

    def step() -> None:
        optimizer.zero_grad()
        positive_rank, negative_rank = model(edge_index, label).chunk(2)
        model.recommendation_loss(
            positive_rank, negative_rank, node_id=label.unique()
        ).backward()
        optimizer.step()

    return step


def steps(data: HeteroData, repeats: int) -> list[Row]:
    """Whole steps, and what stands between them."""
    dropped = T.DegreeDropEdges(0.8)(data)
    reduced = T.ReduceFeatures(CHANNELS_KEPT)(copy.copy(dropped))
    half = copy.copy(dropped)
    for name in SIZES:
        half['item'][f'x_{name}'] = half['item'][f'x_{name}'].bfloat16()
    num_pairs = dropped['user', 'rates', 'item'].edge_label_index.size(1)
    num_batches = -(-num_pairs // BATCH_SIZE)
    times = medians(
        {
            'lightgcn': lightgcn_step(data),
            'compressed': lightgcn_step(data, compressed=True),
            'full': crane_step(make_crane(data), data),
            'dropped': crane_step(make_crane(data), dropped),
            'half': crane_step(make_crane(half), half),
            'reduced': crane_step(make_crane(reduced), reduced),
            'epoch': lambda: torch.randperm(prepare_epoch(data)[1].size(1)),
        },
        repeats,
    )
    base, out = times['lightgcn'], []
    for name, key in [
        ('all edges', 'full'),
        ('a fifth of them', 'dropped'),
        ('a fifth of them, features in `bfloat16`', 'half'),
        (f'a fifth of them, `ReduceFeatures({CHANNELS_KEPT})`', 'reduced'),
    ]:
        detail = f'{times[key] * 1e3:.0f} ms against {base * 1e3:.0f} ms'
        ratio = times[key] / base
        text = f'step over {name} / step of LightGCN'
        out.append(row(text, ratio, 'x', 0.5, detail))
    fast = times['compressed']
    text = 'the same over a fifth / step of LightGCN on compressed rows'
    detail = f'{times["dropped"] * 1e3:.0f} ms against {fast * 1e3:.0f} ms'
    out.append(row(text, times['dropped'] / fast, 'x', None, detail))
    share = times['epoch'] / num_batches / times['dropped']
    detail = f'{times["epoch"] * 1e3:.0f} ms an epoch of {num_batches} steps'
    name = 'sampling and edge dropping / step'
    return [*out, row(name, 100 * share, '%', 5, detail)]


def knn(num_rows: int, repeats: int) -> Row:
    """The exact item graph against faiss; many rows are searched but once, and
    not at all before.
    """
    import faiss  # Of no use on a GPU.

    faiss.omp_set_num_threads(torch.get_num_threads())
    x = torch.randn(num_rows, SIZES['image'])
    unit = torch.nn.functional.normalize(x, dim=1).numpy()

    def search() -> None:
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        index.search(unit, 11)

    runs = {'ours': lambda: T.knn_item_graph(x, 10), 'faiss': search}
    repeats = repeats if num_rows <= FEW_ROWS else 0
    times = medians(runs, repeats)
    detail = f'{times["ours"]:.1f} s against {times["faiss"]:.1f} s'
    size = f'{num_rows:,} x {SIZES["image"]}'
    if repeats == 0:
        detail += ', one run'
    ratio = times['ours'] / times['faiss']
    return row(f'kNN graph of {size} / faiss', ratio, 'x', 1, detail)


@torch.no_grad()
def rank(model: CRANE, data: HeteroData) -> None:
    """Embeds everything, and ranks all items for every user."""
    pairs = data['user', 'rates', 'item'].test_edge_label_index
    weights = dict.fromkeys(RELATIONS, 1.0)
    Ranker.from_model(model, data, weights=weights).evaluate(pairs)


@torch.no_grad()
def rankings(data: HeteroData, repeats: int) -> list[Row]:
    """Full rankings of all users."""
    model = make_crane(data)
    num_users, num_items = model.size
    width = CHANNELS * (1 + len(SIZES))
    # Each user with each item, and each pair of items once:
    products = 2 * width * num_items * (num_users + num_items / 2)
    rates = data['user', 'rates', 'item']
    held_out, seen = rates.test_edge_label_index, rates.edge_index
    device = device_of(data)
    plain = [torch.randn(n, CHANNELS, device=device) for n in model.size]

    def alone() -> None:
        evaluate(*plain, held_out, seen)

    runs = {'full': lambda: rank(model, data), 'alone': alone}
    times = medians({**runs, **probes(device)}, repeats)
    least = products / ceilings(times)[0]
    return [
        row('ranking of all users, 64 channels', times['alone'], 's', 1.5),
        row(
            'the same of CRANE with a ranker of three relations, made anew',
            times['full'],
            's',
            1.5,
            f'{width} channels; their products alone take {least:.2g} s at '
            'the ceiling',
        ),
    ]


def imports(repeats: int) -> Row:
    """What an import costs beyond PyTorch and PyG, once compiled."""
    command = [sys.executable, '-W', 'ignore', '-c', IMPORT]
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, 'PYTHONPYCACHEPREFIX': cache}
        env.pop('PYTHONDONTWRITEBYTECODE', None)
        run = partial(subprocess.check_output, command, text=True, env=env)
        run()  # Compiles.
        seconds = statistics.median(float(run()) for _ in range(repeats))
    return row('import beyond PyTorch and PyG', 1e3 * seconds, 'ms', 50)


if __name__ == '__main__':
    main()
