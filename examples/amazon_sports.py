r"""Trains CRANE on a multimodal data set, and tells what it has learned.

python examples/amazon_sports.py --demo
python examples/amazon_sports.py --data path/to/folder  # MMRec layout
python examples/amazon_sports.py --root data --name sports
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from torch_geometric import seed_everything
from torch_geometric.utils import structured_negative_sampling
from tqdm import tqdm

import crane_pyg.transforms as T
from crane_pyg._files import replacing
from crane_pyg.checkpoint import load_checkpoint, save_checkpoint
from crane_pyg.datasets import (
    AmazonMultimodal,
    FakeMultimodalDataset,
    MMRecDataset,
)
from crane_pyg.nn import CRANE
from crane_pyg.ranking import evaluate
from crane_pyg.reference import evaluate_item_graph, evaluate_popularity

parser = argparse.ArgumentParser()
parser.add_argument('--data', help='a folder in the MMRec layout')
parser.add_argument('--root', default='data', help='holds the Amazon data sets')
parser.add_argument('--name', default='sports')
parser.add_argument('--demo', action='store_true', help='use fake data')
parser.add_argument('--epochs', type=int, default=50)
parser.add_argument('--patience', type=int, default=5)
parser.add_argument('--batch-size', type=int, default=2048)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--device', default='cpu')
parser.add_argument('--checkpoint', help='file to save every epoch to')
parser.add_argument('--resume', action='store_true')
parser.add_argument('--metrics-file', help='JSON file for the results')
args = parser.parse_args()
if args.resume and not args.checkpoint:
    parser.error('--resume needs --checkpoint FILE')
seed_everything(args.seed)

# Data: both graphs are built from the training pairs, once, and cached.
build = T.BuildDualGraph()
if args.demo:
    print('DEMO: these are fake data, made up on the spot.')
    name, dataset = 'fake', FakeMultimodalDataset(pre_transform=build)
elif args.data:
    name, cache = Path(args.data).resolve().name, Path(args.root) / 'processed'
    dataset = MMRecDataset(
        args.data, pre_transform=build, processed_dir=cache / name
    )
else:
    name = args.name
    dataset = AmazonMultimodal(args.root, name, pre_transform=build)
data = dataset[0].to(args.device)
rates = data['user', 'rates', 'item']
pairs = rates.edge_index.as_tensor()
sizes = {m: data['item'][f'x_{m}'].size(1) for m in dataset.modalities}
num_users, num_items = dataset.num_users, dataset.num_items
print(f'{name}: {num_users} users, {num_items} items, {sizes}')

model = CRANE(num_users, num_items, sizes).to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
drop_edges = T.DegreeDropEdges(p=0.8)


def train(bar: tqdm) -> float:
    model.train()
    epoch_data = drop_edges(data)
    negatives = torch.stack(
        [structured_negative_sampling(pairs, num_items)[2] for _ in range(4)],
        dim=1,
    )
    order = torch.randperm(pairs.size(1), device=pairs.device)
    total = torch.zeros((), device=pairs.device)
    for index in order.split(args.batch_size):
        optimizer.zero_grad()
        user, item = pairs[:, index]
        loss = model.loss(model(epoch_data), user, item, negatives[index])
        loss.backward()
        optimizer.step()
        total += loss.detach() * index.numel()
        bar.update()
    return float(total) / pairs.size(1)


@torch.no_grad()
def test(edge_label_index: torch.Tensor) -> dict[str, float]:
    model.eval()
    out = model(data)
    return evaluate(out.user, out.item, edge_label_index, pairs)


# Training: stops early, and keeps all it needs to go on in one dictionary.
meta = {'dataset': name, 'pairs': pairs.size(1), 'model': str(model)}
state = {'epoch': 0, 'best_epoch': 0, 'seconds': 0.0, 'valid': {}, 'best': {}}
if args.resume:
    state = load_checkpoint(args.checkpoint, meta, args.device)
    model.load_state_dict(state.pop('model'))
    optimizer.load_state_dict(state.pop('optimizer'))

try:
    for epoch in range(state['epoch'] + 1, args.epochs + 1):
        if epoch - state['best_epoch'] > args.patience:
            break
        start = time.perf_counter()
        steps = -(-pairs.size(1) // args.batch_size)
        with tqdm(total=steps, desc=f'Epoch {epoch:02d}/{args.epochs}') as bar:
            loss = train(bar)
            valid = test(rates.val_edge_label_index)
            state['seconds'] += time.perf_counter() - start
            left = state['seconds'] / epoch * (args.epochs - epoch)
            bar.set_postfix_str(
                f'loss {loss:.4f}, valid Recall@20 {valid["recall@20"]:.4f}, '
                f'at most {left / 60:.1f} min left'
            )
        state['epoch'] = epoch
        if valid['recall@20'] > state['valid'].get('recall@20', 0.0):
            best = {k: v.clone() for k, v in model.state_dict().items()}
            state.update(best_epoch=epoch, valid=valid, best=best)
        if args.checkpoint:
            weights = {
                'model': model.state_dict(),
                'optimizer': optimizer.state_dict(),
            }
            save_checkpoint(args.checkpoint, {**state, **weights}, meta)
except KeyboardInterrupt:
    raise SystemExit(f'Stopped; --resume goes on from {args.checkpoint}.')

# Results: test at the best validation epoch, beside two that learn nothing.
model.load_state_dict(state['best'])
held_out = rates.test_edge_label_index
results = {
    'most popular': evaluate_popularity(data, held_out),
    'item graph kNN': evaluate_item_graph(data, held_out),
    'CRANE': test(held_out),
}
print(f'Test at epoch {state["best_epoch"]}' + ' (fake data)' * args.demo)
print(f'{"":16}' + ''.join(f'{metric:>11}' for metric in results['CRANE']))
for row, metrics in results.items():
    print(f'{row:16}' + ''.join(f'{v:11.4f}' for v in metrics.values()))

users = held_out[0].unique()[:3]
for user, top in zip(users, model.recommend(data, users, k=5), strict=True):
    history = pairs[1, pairs[0] == user].tolist()
    print(f'User {int(user)} had items {history}; top 5: {top.tolist()}')

if args.metrics_file:
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    metrics = {
        'dataset': name,
        'seed': args.seed,
        'best_epoch': state['best_epoch'],
        'epochs': state['epoch'],
        'seconds_per_epoch': state['seconds'] / state['epoch'],
        'peak_rss_mb': rss,
        'valid': state['valid'],
        'test': results['CRANE'],
    }
    with replacing(args.metrics_file) as temp:
        temp.write_text(json.dumps(metrics, indent=2))
