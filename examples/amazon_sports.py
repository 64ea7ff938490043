r"""Trains CRANE on a multimodal data set, and shows what it has learned.

python examples/amazon_sports.py --demo
python examples/amazon_sports.py --data path/to/folder  # MMRec layout
python examples/amazon_sports.py --root data --name sports
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import torch
from torch_geometric import seed_everything
from tqdm import tqdm

import crane_pyg.transforms as T
from crane_pyg import datasets
from crane_pyg._files import replacing
from crane_pyg.nn import CRANE
from crane_pyg.ranking import evaluate, evaluate_item_graph, evaluate_popularity
from crane_pyg.training import (
    load_checkpoint,
    sample_negatives,
    save_checkpoint,
)

parser = argparse.ArgumentParser()
parser.add_argument('--data', help='a folder in the MMRec layout')
parser.add_argument('--root', default='data', help='holds the Amazon data sets')
parser.add_argument('--name', default='sports')
parser.add_argument('--demo', action='store_true', help='use fake data')
parser.add_argument('--epochs', type=int, default=50)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--mode', choices=['correlation', 'token'], help='of RCA')
parser.add_argument('--device', default='cpu')
parser.add_argument('--checkpoint', help='file to save every epoch to')
parser.add_argument('--resume', action='store_true')
parser.add_argument('--metrics-file', help='JSON file for the results')
parser.add_argument('--plot', help='folder for two pictures')
args = parser.parse_args()
if args.epochs < 1 or (args.resume and not args.checkpoint):
    parser.error('needs --epochs above 0, and --checkpoint to --resume')
picture = args.plot and Path(args.plot, 'items.png')
for file in filter(None, [args.checkpoint, args.metrics_file, picture]):
    if not Path(file).absolute().parent.is_dir():
        parser.error(f'there is no folder for {file}')
    if Path(file).is_dir():
        parser.error(f'{file} is a folder')
if args.plot:
    from plots import save_plots  # Needs matplotlib, and says so up front.
warnings.filterwarnings('ignore', 'Sparse CSR tensor support is in beta')
seed_everything(args.seed)

# Data: both graphs are built from the training pairs, once, and cached.
graphs = T.BuildDualGraph()
if args.demo:
    print('DEMO: these are fake data, made up on the spot.')
    name, dataset = 'fake', datasets.FakeMultimodalDataset(pre_transform=graphs)
elif args.data:
    name = Path(args.data).resolve().name
    cache = Path(args.root, 'processed', name)
    dataset = datasets.MMRecDataset(args.data, None, graphs, cache)
else:
    name = args.name
    dataset = datasets.AmazonMultimodal(args.root, name, pre_transform=graphs)
data = dataset[0].to(args.device)
rates = data['user', 'rates', 'item']
pairs = rates.edge_index.as_tensor()
sizes = {m: data['item'][f'x_{m}'].size(1) for m in dataset.modalities}
size = (dataset.num_users, dataset.num_items)
model = CRANE(*size, sizes, mode=args.mode).to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.003, fused=True)
drop_edges = T.DegreeDropEdges(p=0.8)
batch_size = min(8192, pairs.size(1) // 25 + 1)
print(f'{name}: {pairs.size(1)} training pairs, {model}')


def train(bar: tqdm) -> float:
    """One epoch: a fifth of the pairs carry messages, the others train."""
    model.train()
    epoch_data, total = drop_edges(data), 0.0
    edges = epoch_data['user', 'rates', 'item']
    positive, seen = edges.edge_label_index, edges.edge_index.as_tensor()
    negative = sample_negatives(positive, dataset.num_items, 4, exclude=seen)
    bar.reset(positive.size(1))
    perm = torch.randperm(positive.size(1), device=positive.device)
    for index in perm.split(batch_size):
        optimizer.zero_grad()
        out = model(epoch_data)
        loss = model.loss(out, *positive[:, index], negative[index])
        loss.backward()
        optimizer.step()
        total += loss.detach() * index.numel()
        bar.update(index.numel())
    return float(total) / positive.size(1)


@torch.no_grad()
def validate() -> dict[str, float]:
    """Ranks all unseen items, with the neighborhood if that is better."""
    out = model.eval()(data)
    return model.tune_neighborhood(data, out, rates.val_edge_label_index)


@torch.no_grad()
def test(held_out: torch.Tensor) -> dict[str, float]:
    """Ranks all unseen items, as the best epoch did in validation."""
    out = model.eval()(data)
    neighbors = model.neighborhood(data, out)
    return evaluate(*out[:2], held_out, pairs, neighbors=neighbors)


# Training stops after ten epochs without gain, and can go on from `state`.
meta = {'dataset': name, 'pairs': pairs.size(1), 'model': str(model)}
meta['mode'] = args.mode
state = dict(epochs=0, best_epoch=0, seconds=0.0, valid={}, history=[])
if args.resume:
    state |= load_checkpoint(args.checkpoint, meta, args.device)
    model.load_state_dict(state['model'])
    optimizer.load_state_dict(state['optimizer'])
try:
    while state['epochs'] < min(args.epochs, 10 + state['best_epoch']):
        start, epoch = time.perf_counter(), state['epochs'] + 1
        with tqdm(desc=f'Epoch {epoch}') as bar:
            loss, valid = train(bar), validate()
            recall = valid['recall@20']
            state['history'].append((loss, recall))
            state['seconds'] += time.perf_counter() - start
            left = state['seconds'] / epoch * (args.epochs - epoch) / 60
            text = f'loss {loss:.3f}, valid Recall@20 {recall:.4f}'
            bar.set_postfix_str(f'{text}, at most {left:.1f} min left')
        if recall > state['valid'].get('recall@20', -1):
            best = {k: v.clone() for k, v in model.state_dict().items()}
            state.update(best_epoch=epoch, valid=valid, best=best)
        state.update(epochs=epoch, model=model.state_dict())
        state['optimizer'] = optimizer.state_dict()
        if args.checkpoint:
            save_checkpoint(args.checkpoint, state, meta)
except KeyboardInterrupt:
    raise SystemExit('Stopped; --resume goes on from --checkpoint.') from None

# Test at the best validation epoch, beside two rankings that learn nothing.
model.load_state_dict(state['best'])
held_out = rates.test_edge_label_index
results = {
    'most popular': evaluate_popularity(data, held_out),
    'item graph kNN': evaluate_item_graph(data, held_out),
    'CRANE': test(held_out),
}
print(f'Test at epoch {state["best_epoch"]}' + ' on FAKE data' * args.demo)
print(f'{"":16}' + ''.join(f'{metric:>11}' for metric in results['CRANE']))
for row, metrics in results.items():
    print(f'{row:16}' + ''.join(f'{v:11.4f}' for v in metrics.values()))
users = held_out[0].unique()[:3]
for user, top in zip(users, model.recommend(data, users, k=5), strict=True):
    history = pairs[1, pairs[0] == user].tolist()
    print(f'User {int(user)} had items {history}; top 5: {top.tolist()}')
if args.metrics_file:
    metrics = {key: state[key] for key in ('best_epoch', 'epochs', 'valid')}
    metrics.update(dataset=name, seed=args.seed, test=results['CRANE'])
    metrics['seconds_per_epoch'] = state['seconds'] / state['epochs']
    unit = 2**20 if sys.platform == 'darwin' else 2**10  # Bytes on macOS.
    metrics['peak_rss_mb'] = getrusage(RUSAGE_SELF).ru_maxrss / unit
    with replacing(args.metrics_file) as temp:
        temp.write_text(json.dumps(metrics, indent=2))
if args.plot:
    save_plots(args.plot, name, model, data, state)
