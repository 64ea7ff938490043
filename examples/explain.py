r"""Writes a page that shows why the items were recommended: how their scores
split, and which items of the user carry them. Open it in any browser.

python examples/explain.py why.html
python examples/explain.py why.html --data path/to/folder --model path/to/model
"""

import argparse
import warnings
from pathlib import Path

import torch

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset, MMRecDataset
from crane_pyg.explain import explain_scores, save_page
from crane_pyg.nn import CRANE
from crane_pyg.ranking import Ranker
from crane_pyg.training import Recipe, fit

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
    print(note)
    data = dataset[0]
    if args.model is None:
        sizes = {m: data['item'][f'x_{m}'].size(1) for m in dataset.modalities}
        model = CRANE(data['user'].num_nodes, data['item'].num_nodes, sizes)
        fit(model, data, Recipe(epochs=args.epochs), progress=False)
    else:
        model = CRANE.from_pretrained(args.model)

    ranker = Ranker.from_model(model, data)
    shown = (args.users, args.k, ranker, args.items)
    save_page(args.page, model, data, *shown, note=note)
    for user in args.users:
        top = ranker.recommend(user, 1)[0]
        why = explain_scores(model, data, user, top, ranker)
        parts = [f'{name} {float(x):.2f}' for name, x in why.parts.items()]
        score = f'{float(why.score):.2f}'
        print(f'User {user}: Item {int(top)}, {score} = {" + ".join(parts)}')
    print(f'Written to {args.page}')


if __name__ == '__main__':
    warnings.filterwarnings('ignore', 'Sparse CSR tensor support is in beta')
    main()
