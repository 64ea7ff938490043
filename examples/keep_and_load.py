r"""Keeps a model, loads it again, writes what it recommends to files, and puts
its items into an index. The model is trained for a moment on fake data.

pip install -e '.[hub,parquet]' faiss-cpu
python examples/keep_and_load.py path/to/folder
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from torch_geometric.nn.pool import MIPSKNNIndex

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANE
from crane_pyg.ranking import save_top_k, top_k
from crane_pyg.training import sample_negatives

parser = argparse.ArgumentParser()
parser.add_argument('folder', type=Path)
parser.add_argument('--epochs', type=int, default=3)
args = parser.parse_args()
if args.epochs < 1:
    parser.error(f"'--epochs' needs to be positive (got {args.epochs})")
warnings.filterwarnings('ignore', 'Sparse CSR tensor support is in beta')
torch.manual_seed(0)

print('These are fake data, made up on the spot.')
dataset = FakeMultimodalDataset(600, 400, pre_transform=T.BuildDualGraph())
data = dataset[0]
pairs = data['user', 'rates', 'item'].edge_index
sizes = {m: data['item'][f'x_{m}'].size(1) for m in dataset.modalities}
model = CRANE(dataset.num_users, dataset.num_items, sizes)
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
for epoch in range(1, args.epochs + 1):
    total, negative = 0.0, sample_negatives(pairs, dataset.num_items, 4)
    for index in torch.randperm(pairs.size(1)).split(256):
        optimizer.zero_grad()
        loss = model.loss(model(data), *pairs[:, index], negative[index])
        loss.backward()
        optimizer.step()
        total += loss.item() * index.numel()
    print(f'Epoch {epoch}: loss {total / pairs.size(1):.3f}')

# Another program would begin here: all it needs are the data and the folder.
model.save_pretrained(args.folder / 'model')
loaded = CRANE.from_pretrained(args.folder / 'model')
expected = model.recommend(data, k=10)
equal = torch.equal(loaded.recommend(data, k=10), expected)
print(f'The loaded model recommends the same: {equal}')

# The lists of all users, written in blocks. Parquet holds the scores as well:
with torch.no_grad():
    out = loaded(data)
    neighbors = loaded.neighborhood(data, out)
for name in ['top10.npy', 'top10.parquet']:
    path = args.folder / name
    save_top_k(path, out.user, out.item, 10, pairs, neighbors=neighbors)
top10 = torch.from_numpy(np.load(args.folder / 'top10.npy'))
print(f'The file holds the same: {torch.equal(top10, expected)}')

# The index of PyG, for users that come one by one. It knows inner products
# only, and none of the neighborhood:
items, user = MIPSKNNIndex(out.item), torch.tensor([3])
seen = pairs[1, pairs[0] == user]
links = torch.stack([torch.zeros_like(seen), seen])  # Row 0 of this query.
found = items.search(out.user[user], 10, exclude_links=links).index
exact = top_k(out.user, out.item, 10, user, exclude=pairs)
print(f'The index finds what an exact search does: {torch.equal(found, exact)}')
print(f'User 3 had items {seen.tolist()}; top 10: {found[0].tolist()}')
