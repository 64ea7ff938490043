r"""Ranks items and recommends to users that came after the training, without
any more training. The model is trained for a moment on fake data.

python examples/new_items.py
"""

import argparse
import copy
import warnings

import torch

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANE
from crane_pyg.ranking import evaluate
from crane_pyg.training import sample_negatives

parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=10)
args = parser.parse_args()
if args.epochs < 1:
    parser.error(f"'--epochs' needs to be positive (got {args.epochs})")
warnings.filterwarnings('ignore', 'Sparse CSR tensor support is in beta')
torch.manual_seed(0)

print('These are fake data, made up on the spot.')
num_users, num_items, num_old = 600, 400, 360
everything = FakeMultimodalDataset(num_users, num_items)[0]
pairs = everything['user', 'rates', 'item'].edge_index
is_old = pairs[1] < num_old
pairs, later = pairs[:, is_old], pairs[:, ~is_old]

# The last 40 items are not there yet: no pairs, no features.
data, new = copy.copy(everything), {}
data['item'].num_nodes = num_old
data['user', 'rates', 'item'].edge_index = pairs
for name in ['image', 'text']:
    x = everything['item'][f'x_{name}']
    data['item'][f'x_{name}'], new[name] = x[:num_old], x[num_old:]
data = T.BuildDualGraph()(data)

model = CRANE(num_users, num_old, {m: x.size(1) for m, x in new.items()})
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
for _ in range(args.epochs):
    negative = sample_negatives(pairs, num_old, 4)
    for index in torch.randperm(pairs.size(1)).split(256):
        optimizer.zero_grad()
        loss = model.loss(model(data), *pairs[:, index], negative[index])
        loss.backward()
        optimizer.step()
print(f'Trained: {model}')

# Now they come, and are ranked among themselves by what they look and read
# like. What users had of them tells how well:
data = T.attach_items(data, new)
model = model.extend(data)
with torch.no_grad():
    out = model(data)
metrics = evaluate(
    out.user,
    out.item,
    later,
    neighbors=model.neighborhood(data, out),
    candidates=range(num_old, num_items),
)
print(f'Extended: {model}')
print(
    f'Recall@10 of the new items {metrics["recall@10"]:.3f}, where chance has '
    f'{10 / (num_items - num_old):.3f}'
)

# Among all items, they have to stand up to what is known of the old ones:
share = (model.recommend(data, k=10) >= num_old).float().mean()
print(f'Of the top 10 among all items, {share:.1%} are new')

# A new user, from a list of items:
history = torch.tensor([3, 141, 59])
data = T.attach_users(data, [history])
model = model.extend(data)
top = model.recommend(data, torch.tensor([num_users]), k=10)[0]
print(f'A new user had items {history.tolist()}')
print(f'Top 10: {top.tolist()}')

# An item that nobody described: it scores zero for everyone, and says so.
blank = {'image': torch.full((1, 64), float('nan'))}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    data = T.attach_items(data, blank)
print(f'Warning: {caught[0].message}')
model = model.extend(data)
with torch.no_grad():
    out = model(data)
print(f'Its largest score: {(out.user @ out.item[-1]).abs().max():.1f}')
