r"""Trains on one modality, on several, one of them a table of prices and tags,
and on items that lack some of them. The data are fake.

python examples/many_modalities.py
"""

import argparse
import copy
import warnings

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANE
from crane_pyg.ranking import evaluate
from crane_pyg.training import sample_negatives

NUM_USERS, NUM_ITEMS, NUM_TAGS = 600, 400, 12
SIZES = {'image': 64, 'text': 32, 'audio': 24, 'table': 1 + NUM_TAGS}

parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=10)
args = parser.parse_args()
if args.epochs < 1:
    parser.error(f"'--epochs' needs to be positive (got {args.epochs})")
warnings.filterwarnings('ignore', 'Sparse CSR tensor support is in beta')


def make_table(price: Tensor, tags: Tensor) -> Tensor:
    """Any table will do whose columns are of similar size."""
    price = price.log()
    price = (price - price.nanmean()) / price[~price.isnan()].std()
    return torch.cat([price.unsqueeze(1), tags], dim=1)


def keep(data: HeteroData, names: list[str]) -> HeteroData:
    """Data with some of the modalities only."""
    data = copy.copy(data)
    for name in SIZES.keys() - set(names):
        del data['item'][f'x_{name}']
    return T.BuildDualGraph()(data)


def train(data: HeteroData, names: list[str]) -> float:
    """Returns Recall@20 on the test pairs."""
    torch.manual_seed(0)
    rates = data['user', 'rates', 'item']
    pairs = rates.edge_index
    sizes = {name: SIZES[name] for name in names}
    model = CRANE(NUM_USERS, NUM_ITEMS, sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(args.epochs):
        negative = sample_negatives(pairs, NUM_ITEMS, 4)
        for index in torch.randperm(pairs.size(1)).split(512):
            optimizer.zero_grad()
            loss = model.loss(model(data), *pairs[:, index], negative[index])
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        out = model(data)
    neighbors = model.neighborhood(data, out)
    held_out = rates.test_edge_label_index
    metrics = evaluate(*out[:2], held_out, pairs, neighbors=neighbors)
    return metrics['recall@20']


def load(missing_rate: float) -> HeteroData:
    """A row of NaN is an item that lacks the modality."""
    dataset = FakeMultimodalDataset(
        NUM_USERS, NUM_ITEMS, SIZES, missing_rate=missing_rate
    )
    data = dataset[0]
    x = data['item'].x_table
    tags = (x[:, 1:] > 0).float().masked_fill(x[:, 1:].isnan(), float('nan'))
    data['item'].x_table = make_table(price=x[:, 0].exp(), tags=tags)
    return data


print('Test Recall@20 on FAKE data')
data, every = load(missing_rate=0.0), list(SIZES)
for names in [['text'], ['image', 'text'], every]:
    print(f'{", ".join(names):26} {train(keep(data, names), names):.4f}')

data = load(missing_rate=0.3)
lacks = torch.stack([data['item'][f'x_{name}'][:, 0].isnan() for name in every])
counts = ', '.join(f'{n} {m}' for n, m in zip(lacks.sum(1), every, strict=True))
print(f'Of {NUM_ITEMS} items, so many lack each: {counts}')
print(f'{int(lacks.all(dim=0).sum())} lack all of them')
print(f'{", ".join(every):26} {train(keep(data, every), every):.4f}')
