r"""Trains on one modality, on several, one of them a table of prices and tags,
and on items that lack some of them. The data are fake.

python examples/many_modalities.py
"""

import argparse
import copy

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg import CRANE, BuildDualGraph, Ranker, Recipe, fit
from crane_pyg.datasets import FakeMultimodalDataset

NUM_USERS, NUM_ITEMS, NUM_TAGS = 600, 400, 12
SIZES = {'image': 64, 'text': 32, 'audio': 24, 'table': 1 + NUM_TAGS}

parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=10)
recipe = Recipe(parser.parse_args().epochs)


def make_table(price: Tensor, tags: Tensor) -> Tensor:
    """Any table will do whose columns are of similar size."""
    price = price.log()
    price = (price - price.nanmean()) / price[~price.isnan()].std()
    return torch.cat([price.unsqueeze(1), tags], dim=1)


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


def train(data: HeteroData, names: list[str]) -> float:
    """Returns Recall@20 on the test pairs, by some of the modalities only."""
    torch.manual_seed(0)
    data = copy.copy(data)
    for name in SIZES.keys() - set(names):
        del data['item'][f'x_{name}']
    data = BuildDualGraph()(data)
    model = CRANE(NUM_USERS, NUM_ITEMS, {name: SIZES[name] for name in names})
    fit(model, data, recipe, progress=False)
    held_out = data['user', 'rates', 'item'].test_edge_label_index
    return Ranker.from_model(model, data).evaluate(held_out)['recall@20']


print('Test Recall@20 on FAKE data')
data, every = load(missing_rate=0.0), list(SIZES)
for names in [['text'], ['image', 'text'], every]:
    print(f'{", ".join(names):26} {train(data, names):.4f}')

data = load(missing_rate=0.3)
lacks = torch.stack([data['item'][f'x_{name}'][:, 0].isnan() for name in every])
counts = ', '.join(f'{n} {m}' for n, m in zip(lacks.sum(1), every, strict=True))
print(f'Of {NUM_ITEMS} items, so many lack each: {counts}')
print(f'{int(lacks.all(dim=0).sum())} lack all of them')
print(f'{", ".join(every):26} {train(data, every):.4f}')
