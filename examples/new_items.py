r"""Ranks items and recommends to users that came after the training, without
any more training. The data are fake.

python examples/new_items.py
"""

import argparse
import copy
import warnings

import torch

from crane_pyg import CRANE, BuildDualGraph, Ranker, Recipe, fit
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.transforms import attach_items, attach_users

parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=10)
recipe = Recipe(parser.parse_args().epochs)
torch.manual_seed(0)

print('These are fake data, made up on the spot.')
num_users, num_items, num_old = 600, 400, 360
everything = FakeMultimodalDataset(num_users, num_items, seed=1)[0]
pairs = everything['user', 'rates', 'item'].edge_index
later = pairs[:, pairs[1] >= num_old]

# The last 40 items are not there yet: no pairs, no features.
data, new = copy.copy(everything), {}
data['item'].num_nodes = num_old
rates = data['user', 'rates', 'item']
for name, pairs in list(rates.items()):
    rates[name] = pairs[:, pairs[1] < num_old]
for name in ['image', 'text']:
    x = everything['item'][f'x_{name}']
    data['item'][f'x_{name}'], new[name] = x[:num_old], x[num_old:]
data = BuildDualGraph()(data)

model = CRANE(num_users, num_old, {m: x.size(1) for m, x in new.items()})
fit(model, data, recipe, progress=False)
weights = Ranker.from_model(model, data).weights  # By the validation pairs.
print(f'Trained: {model}')

# Now they come, and are ranked among themselves by what they look and read
# like. What users had of them tells how well:
data = attach_items(data, new)
model = model.extend(data)
ranker = Ranker.from_model(model, data, weights=weights)
metrics = ranker.evaluate(later, candidates=range(num_old, num_items))
print(f'Extended: {model}')
print(
    f'Recall@10 of the new items {metrics["recall@10"]:.3f}, where chance has '
    f'{10 / (num_items - num_old):.3f}'
)

# Among all items, they have to stand up to what is known of the old ones:
share = (ranker.recommend(k=10) >= num_old).float().mean()
print(f'Of the top 10 among all items, {share:.1%} are new')

# A new user, from a list of items:
history = [3, 141, 59]
data = attach_users(data, [history])
model = model.extend(data)
ranker = Ranker.from_model(model, data, weights=weights)
print(f'A new user has history {history}')
print(f'Top 10: {ranker.recommend([num_users], k=10)[0].tolist()}')

# An item that nobody described: it scores zero for everyone, and says so.
blank = {'image': torch.full((1, 64), float('nan'))}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    data = attach_items(data, blank)
print(f'Warning: {caught[0].message}')
ranker = Ranker.from_model(model.extend(data), data, weights=weights)
score = ranker.top_k(k=1, candidates=[num_items]).score
print(f'Its largest score: {score.abs().max():.1f}')
