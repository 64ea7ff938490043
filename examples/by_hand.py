r"""The training loop of `fit`, written by hand for those who want their own:
every epoch drops edges and trains on them, until validation ends it.

python examples/by_hand.py
"""

import argparse
import copy

import torch

from crane_pyg import CRANE, BuildDualGraph, Ranker
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.ranking import evaluate
from crane_pyg.training import sample_negatives
from crane_pyg.transforms import DegreeDropEdges

parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=30)
parser.add_argument('--patience', type=int, default=10)
args = parser.parse_args()
torch.manual_seed(0)

print('These are fake data, made up on the spot.')
dataset = FakeMultimodalDataset(600, 400, pre_transform=BuildDualGraph())
data = dataset[0]
rates = data['user', 'rates', 'item']
pairs, num_items = rates.edge_index, dataset.num_items
sizes = {m: data['item'][f'x_{m}'].size(1) for m in dataset.modalities}
model = CRANE(dataset.num_users, num_items, sizes)
optimizer = torch.optim.Adam(model.parameters(), lr=0.003, fused=True)
drop_edges = DegreeDropEdges(p=0.8)

best, best_epoch, best_state = 0.0, 0, model.state_dict()
for epoch in range(1, args.epochs + 1):
    model.train()
    # The graph of this epoch, and the pairs that carry no message in it:
    graph = drop_edges(data)
    edges = graph['user', 'rates', 'item']
    kept, positive = edges.edge_index, edges.edge_label_index
    negative = sample_negatives(positive, num_items, 4, exclude=kept)
    losses = []
    for index in torch.randperm(positive.size(1)).split(256):
        optimizer.zero_grad()
        loss = model.loss(model(graph), *positive[:, index], negative[index])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    # Ranks all items on the full graph, those of training left out:
    model.eval()
    with torch.no_grad():
        out = model(data)
    held_out = rates.val_edge_label_index
    recall = evaluate(out.user, out.item, held_out, pairs)['recall@20']
    mean = torch.stack(losses).mean()
    print(f'Epoch {epoch}: loss {mean:.4f}, validation recall@20 {recall:.4f}')
    if recall > best:
        best, best_epoch = recall, epoch
        best_state = copy.deepcopy(model.state_dict())
    elif epoch >= best_epoch + args.patience:
        break

model.load_state_dict(best_state)
test = Ranker.from_model(model, data).evaluate(rates.test_edge_label_index)
print(f'Test recall@20 at epoch {best_epoch}: {test["recall@20"]:.4f}')
