r"""Writes a page that shows why the items were recommended: how their scores
split, and which items of the user carry them. Open it in any browser.

python examples/explain.py why.html
python examples/explain.py why.html --data path/to/folder --model path/to/model
"""

import argparse
import warnings
from pathlib import Path

import torch
from page import Carrier, Item, Pick, Reader, get_kind, read_items, render
from torch import Tensor
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg._files import replacing
from crane_pyg.datasets import FakeMultimodalDataset, MMRecDataset
from crane_pyg.explain import explain_scores
from crane_pyg.nn import CRANE
from crane_pyg.ranking import Neighborhood, top_k
from crane_pyg.training import sample_negatives

parser = argparse.ArgumentParser()
parser.add_argument('page', type=Path)
parser.add_argument('--data', type=Path, help='a folder in MMRec layout')
parser.add_argument('--root', type=Path, default='data', help='for the cache')
parser.add_argument('--model', type=Path, help="that of 'save_pretrained'")
parser.add_argument('--items', type=Path, help='file of item, title, image')
parser.add_argument('--users', type=int, nargs='+', default=[0, 1, 2])
parser.add_argument('--epochs', type=int, default=10)
parser.add_argument('--k', type=int, default=10)
args = parser.parse_args()
if args.epochs < 1 or not args.page.absolute().parent.is_dir():
    parser.error('needs --epochs above 0, and a folder for the page')

MAX_HISTORY, MAX_CARRIERS, MAX_NEIGHBORS = 40, 3, 4


def train(data: HeteroData, sizes: dict[str, int]) -> CRANE:
    """Trains for a moment; the other examples show how to do better."""
    pairs = data['user', 'rates', 'item'].edge_index
    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    model = CRANE(num_users, num_items, sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(args.epochs):
        negative = sample_negatives(pairs, num_items, 4)
        for index in torch.randperm(pairs.size(1)).split(256):
            optimizer.zero_grad()
            loss = model.loss(model(data), *pairs[:, index], negative[index])
            loss.backward()
            optimizer.step()
    return model


def get_hues(x: Tensor) -> list[int]:
    """Gives similar items similar colors."""
    x = torch.pca_lowrank(x.nan_to_num(), q=min(2, *x.size()))[0]
    angle = torch.atan2(x[:, 0], x[:, -1]).rad2deg()
    return angle.long().remainder(360).tolist()


def get_neighbors(model: CRANE, data: HeteroData, item: int) -> list[int]:
    """Returns the nearest neighbors in the item graph, the nearest first."""
    store = data[model.edge_type[2], model.item_edge, model.edge_type[2]]
    src, dst = store.edge_index
    weight = store.edge_weight[dst == item]
    order = weight.argsort(descending=True)[:MAX_NEIGHBORS]
    return src[dst == item][order].tolist()


def explain(
    model: CRANE,
    data: HeteroData,
    user: int,
    top: Tensor,
    neighbors: Neighborhood | None,
    items: list[Item],
) -> tuple[Reader, list[str]]:
    """Returns what the page shows of a user, and the names of the parts."""
    top = top[top >= 0]  # There may be fewer items than asked for.
    out = explain_scores(model, data, user, top, neighbors=neighbors)
    paths = out.carriers.pop('embeddings')
    edges = sum(out.carriers.values(), torch.zeros_like(paths))
    history, picks = [items[n] for n in out.history.tolist()], []
    for row, item in enumerate(top.tolist()):
        best = (paths + edges)[row].topk(min(MAX_CARRIERS, paths.size(1)))
        carriers = [
            Carrier(history[n], float(edges[row, n]), float(paths[row, n]))
            for n in best.indices[best.values > 0].tolist()
        ]
        parts = [float(part[row]) for part in out.parts.values()]
        score = float(out.score[row])
        near = [items[n] for n in get_neighbors(model, data, item)]
        picks.append(Pick(items[item], score, parts, carriers, near))
    hidden = len(history[MAX_HISTORY:])
    name = f'User {user}'
    return Reader(name, history[:MAX_HISTORY], hidden, picks), list(out.parts)


def main() -> None:
    """Loads or trains a model, and writes the page."""
    torch.manual_seed(0)
    transform = T.BuildDualGraph()
    if args.data is None:
        note = 'These are fake data, made up on the spot.'
        dataset = FakeMultimodalDataset(600, 400, pre_transform=transform)
    else:
        name = args.data.resolve().name
        note, cache = f'Data: {name}.', args.root / 'processed' / name
        dataset = MMRecDataset(args.data, None, transform, cache)
    data = dataset[0]
    xs = {name: data['item'][f'x_{name}'] for name in dataset.modalities}
    hues = get_hues(torch.cat(list(xs.values()), dim=1))
    items = read_items(args.items, hues)
    if args.model is None:
        model = train(data, {name: x.size(1) for name, x in xs.items()})
    else:
        model = CRANE.from_pretrained(args.model)

    with torch.no_grad():
        out = model.eval()(data)
    near, users = model.neighborhood(data, out), torch.tensor(args.users)
    pairs = data[model.edge_type].edge_index
    tops = top_k(*out[:2], args.k, users, exclude=pairs, neighbors=near)
    shown = [
        explain(model, data, user, top, near, items)
        for user, top in zip(args.users, tops, strict=True)
    ]
    kinds = [get_kind(part) for part in shown[0][1]]
    users = [user for user, _ in shown]
    html = render('Why these items?', note, kinds, users)
    with replacing(args.page) as temp:
        temp.write_text(html, encoding='utf-8')
    print(note)
    for user in users:
        for pick in user.picks[:1]:
            parts = zip(kinds, pick.parts, strict=True)
            text = ' + '.join(f'{kind.name} {part:.2f}' for kind, part in parts)
            print(f'{user.name}: {pick.item.title}, {pick.score:.2f} = {text}')
    print(f'Written to {args.page}')


if __name__ == '__main__':
    warnings.filterwarnings('ignore', 'Sparse CSR tensor support is in beta')
    main()
