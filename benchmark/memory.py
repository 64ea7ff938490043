r"""Measures the peak memory of CRANE above its features (Linux only).

python benchmark/memory.py
"""

import torch
from measure import (
    SPORTS,
    fake_graph,
    get_parser,
    memory,
    reset_peak,
    row,
    save,
    set_features,
)
from speed import SIZES, crane_step, make_crane

import crane_pyg.transforms as T
from crane_pyg.ranking import evaluate


def main() -> None:
    """Measures one phase after the other, and keeps the peaks."""
    parser = get_parser(__doc__)
    parser.add_argument('--knn-rows', type=int, default=SPORTS[1])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    gigabyte, rows = 1e9, []
    rows.append(
        row('the interpreter and its imports', memory('VmRSS') / gigabyte, 'GB')
    )

    data = fake_graph(*SPORTS)
    set_features(data, {'image': 64, 'text': 32})
    data = T.BuildDualGraph()(data)
    features = set_features(data, SIZES)
    detail = f'features: {features / gigabyte:.2f} GB'

    model = make_crane(data)
    step = crane_step(model, data)
    reset_peak()
    for _ in range(3):
        step()
    peak = (memory('VmHWM') - features) / gigabyte
    rows.append(row('training, all but the features', peak, 'GB', 0.8, detail))

    rates = data['user', 'rates', 'item']
    seen, held_out = rates.edge_index.as_tensor(), rates.test_edge_label_index
    del step
    reset_peak()
    with torch.no_grad():
        out = model.eval()(data)
        neighbors = model.neighborhood(data, out)
        evaluate(*out[:2], held_out, seen, neighbors=neighbors)
    peak = (memory('VmHWM') - features) / gigabyte
    rows.append(row('ranking, all but the features', peak, 'GB', None, detail))

    del data, model, out, neighbors
    x = torch.randn(args.knn_rows, SIZES['image'])
    before = reset_peak()
    T.knn_item_graph(x, 10)
    peak = (memory('VmHWM') - before) / gigabyte
    detail = (
        f'{args.knn_rows:,} x {SIZES["image"]}: {x.nbytes / gigabyte:.2f} GB'
    )
    rows.append(row('kNN graph, above its features', peak, 'GB', 0.5, detail))
    title = 'Peak memory on fake data of the size of Amazon Sports'
    save(args, 'memory', title, rows)


if __name__ == '__main__':
    main()
