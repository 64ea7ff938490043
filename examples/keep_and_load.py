r"""Keeps a model and its ranker, loads them again, writes what they recommend
to files, and puts the items into an index. The data are fake.

pip install -e '.[hub,parquet]' faiss-cpu
python examples/keep_and_load.py path/to/folder
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch_geometric.nn.pool import MIPSKNNIndex

from crane_pyg import CRANE, BuildDualGraph, Ranker, Recipe, fit
from crane_pyg.datasets import FakeMultimodalDataset

parser = argparse.ArgumentParser()
parser.add_argument('folder', type=Path)
parser.add_argument('--epochs', type=int, default=3)
args = parser.parse_args()
recipe = Recipe(args.epochs)
args.folder.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

print('These are fake data, made up on the spot.')
dataset = FakeMultimodalDataset(600, 400, pre_transform=BuildDualGraph())
data = dataset[0]
sizes = {m: data['item'][f'x_{m}'].size(1) for m in dataset.modalities}
model = CRANE(dataset.num_users, dataset.num_items, sizes)
history = fit(model, data, recipe, progress=False)
for epoch, loss in enumerate(history.loss, 1):
    print(f'Epoch {epoch}: loss {loss:.3f}')
model.save_pretrained(args.folder / 'model')
Ranker.from_model(model, data).save(args.folder / 'ranker.pt')

# Another program would begin here. To embed, it needs the model and the data:
loaded = CRANE.from_pretrained(args.folder / 'model')
equal = torch.equal(loaded.recommend(data, k=10), model.recommend(data, k=10))
print(f'The loaded model recommends the same: {equal}')

# To recommend, the ranker is enough. It writes the lists of all users in
# blocks; Parquet holds the scores as well:
ranker = Ranker.load(args.folder / 'ranker.pt')
for name in ['top10.npy', 'top10.parquet']:
    ranker.export(args.folder / name, k=10)
top10 = torch.from_numpy(np.load(args.folder / 'top10.npy'))
equal = torch.equal(top10, ranker.recommend(k=10))
print(f'The file holds the lists of the ranker: {equal}')

# The index of PyG, for users that come one by one. It knows inner products
# only, and none of the relations between items:
exact = Ranker.from_model(loaded, data, relations=())
index, user = MIPSKNNIndex(exact.item_emb), torch.tensor([3])
seen = exact.history[1, exact.history[0] == user]
links = torch.stack([torch.zeros_like(seen), seen])  # Row 0 of this query.
found = index.search(exact.user_emb[user], 10, exclude_links=links).index
equal = torch.equal(found, exact.recommend(user, k=10))
print(f'The index finds what an exact search does: {equal}')
print(f'User 3 has history {seen.tolist()}; top 10: {found[0].tolist()}')
