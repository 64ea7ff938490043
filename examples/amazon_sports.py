r"""Trains CRANE on a multimodal data set, and shows what it has learned.

python examples/amazon_sports.py --demo
python examples/amazon_sports.py --data path/to/folder  # MMRec layout
python examples/amazon_sports.py --root data --name sports
"""

import argparse
import json
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

from torch_geometric import seed_everything

from crane_pyg import CRANE, BuildDualGraph, Ranker, Recipe, datasets, fit
from crane_pyg.ranking import ease, item_knn, popularity

parser = argparse.ArgumentParser()
parser.add_argument('--data', help='a folder in the MMRec layout')
parser.add_argument('--root', default='data', help='holds the Amazon data sets')
parser.add_argument('--name', default='sports')
parser.add_argument('--demo', action='store_true', help='use fake data')
parser.add_argument('--epochs', type=int, default=200)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--mode', choices=['correlation', 'token'], help='of RCA')
parser.add_argument('--device', default='cpu')
parser.add_argument('--checkpoint', help='file to save every epoch to')
parser.add_argument('--resume', action='store_true')
parser.add_argument('--metrics-file', help='JSON file for the results')
parser.add_argument('--plot', help='folder for two pictures')
args = parser.parse_args()
for file in (args.metrics_file, args.plot and f'{args.plot}/items.png'):
    if file and (Path(file).is_dir() or not Path(file).parent.is_dir()):
        parser.error(f'{file} needs to be a file in a folder that exists')
if args.plot:
    from plots import save_plots  # Needs matplotlib, and says so up front.
recipe = Recipe(args.epochs)
seed_everything(args.seed)

# Both graphs are built from the training pairs, once, and cached:
graphs, name = BuildDualGraph(), args.name
if args.demo:
    print('DEMO: these are fake data, made up on the spot.')
    name, dataset = 'fake', datasets.FakeMultimodalDataset(pre_transform=graphs)
elif args.data:
    name = Path(args.data).resolve().name
    cache = Path(args.root, 'processed', name)
    dataset = datasets.MMRecDataset(args.data, None, graphs, cache)
else:
    dataset = datasets.AmazonMultimodal(args.root, name, pre_transform=graphs)
data = dataset[0].to(args.device)
rates = data['user', 'rates', 'item']
sizes = {m: data['item'][f'x_{m}'].size(1) for m in dataset.modalities}
model = CRANE(dataset.num_users, dataset.num_items, sizes, mode=args.mode)
print(f'{name}: {rates.edge_index.size(1)} training pairs, {model}')

# Training stops by the model's own ranking of the validation pairs; these
# then choose which relations between items add to it:
saved = {'checkpoint': args.checkpoint, 'resume': args.resume}
try:
    history = fit(model.to(args.device), data, recipe, **saved)
except KeyboardInterrupt:
    raise SystemExit('Stopped; --resume goes on from --checkpoint.') from None
rankers = {'most popular': popularity(data), 'item-kNN': item_knn(data)}
if dataset.num_items <= 30_000:  # It inverts a matrix of all items.
    rankers['EASE'] = ease(data)
rankers['CRANE'] = Ranker.from_model(model, data, relations=())
rankers['CRANE + ranker'] = ranker = Ranker.from_model(model, data)

test, held_out = {}, rates.test_edge_label_index
print(f'Test at epoch {history.best_epoch}' + ' on FAKE data' * args.demo)
print(f'{"":16}' + ''.join(f'{metric:>11}' for metric in history.best))
for row, each in rankers.items():
    test[row] = each.evaluate(held_out)
    print(f'{row:16}' + ''.join(f'{test[row][m]:11.4f}' for m in history.best))
users = held_out[0].unique()[:3]
for user, top in zip(users, ranker.recommend(users, k=5), strict=True):
    items = rates.edge_index[1, rates.edge_index[0] == user].tolist()
    print(f'User {int(user)} has history {items}; top 5: {top.tolist()}')
if args.metrics_file:
    metrics = {'dataset': name, 'seed': args.seed, 'epochs': len(history)}
    metrics |= {'best_epoch': history.best_epoch, 'valid': history.best}
    metrics |= {'test': test['CRANE + ranker'], 'test_alone': test['CRANE']}
    metrics['weights'] = ranker.weights
    metrics['seconds_per_epoch'] = history.seconds / len(history)
    unit = 2**20 if sys.platform == 'darwin' else 2**10  # Bytes on macOS.
    metrics['peak_rss_mb'] = getrusage(RUSAGE_SELF).ru_maxrss / unit
    Path(args.metrics_file).write_text(json.dumps(metrics, indent=2))
if args.plot:
    save_plots(args.plot, name, model, data, history)
