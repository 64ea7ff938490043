r"""Measures the speed of CRANE on a GPU beside PyG's LightGCN, in turns.

python benchmark/gpu.py
"""

import torch
from measure import (
    SPORTS,
    Row,
    get_parser,
    medians,
    row,
    save,
)
from speed import SIZES, build, crane_step, make_crane, rankings, steps
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T

MANY_ROWS = 63_001  # The items of Amazon Electronics.


def main() -> None:
    """Measures everything, and keeps it."""
    parser = get_parser(__doc__)
    parser.add_argument('--repeats', type=int, default=21)
    parser.add_argument('--device', default='cuda')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    data = build(SPORTS)[0].to(args.device)
    rows = [
        *steps(data, args.repeats),
        memory(data),
        *rankings(data, args.repeats),
        knn(args.repeats, args.device),
    ]
    for line in rows:
        line['target'] = None  # Which is one for two cores.
    title = 'Speed on a GPU, on fake data of the size of Amazon Sports'
    save(args, 'gpu', title, rows)


def memory(data: HeteroData) -> Row:
    """The peak memory of training above that of the features."""
    step = crane_step(make_crane(data), data)
    step()
    torch.cuda.synchronize()
    num_bytes = sum(data['item'][f'x_{name}'].nbytes for name in SIZES)
    torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated() - num_bytes
    return row('peak memory of training above the features', peak / 1e9, 'GB')


def knn(repeats: int, device: str) -> Row:
    """The exact item graph of many wide rows."""
    x = torch.randn(MANY_ROWS, SIZES['image'], device=device)
    time = medians({'knn': lambda: T.knn_item_graph(x, 10)}, repeats)['knn']
    name = f'kNN graph of {MANY_ROWS:,} x {SIZES["image"]}'
    return row(name, time, 's')


if __name__ == '__main__':
    main()
