r"""RCA in models that know nothing of it: PyG's `LightGCN`, and a recommender
of `HeteroConv`s. Each is trained plain, with item features, and with item
features that RCA refines. `AddFeatures` is all it takes.

python examples/rca_in_lightgcn.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Embedding, Identity, Linear, Module, ModuleList
from torch.nn.utils.parametrize import register_parametrization
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, LightGCN, SAGEConv
from torch_geometric.transforms import ToUndirected

from crane_pyg import RCA, Ranker, Recipe, fit
from crane_pyg.datasets import FakeMultimodalDataset

parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=60)
plain = {'num_negatives': 1, 'edge_dropping': 0.0, 'min_batches': 4}
recipe, DIM = Recipe(parser.parse_args().epochs, lr=0.005, **plain), 32


class AddFeatures(Module):
    """Adds item features to a table of embeddings of all nodes."""

    def __init__(self, data: HeteroData, fuse: Module) -> None:
        super().__init__()
        self.xs, self.fuse = [data['item'].x_image, data['item'].x_text], fuse
        self.lins = ModuleList(Linear(x.size(1), DIM) for x in self.xs)

    def forward(self, weight: Tensor) -> Tensor:
        """Takes and returns the table."""
        xs = [lin(x) for lin, x in zip(self.lins, self.xs, strict=True)]
        num_users = weight.size(0) - xs[0].size(0)  # They come first.
        return weight + F.pad(sum(self.fuse(xs)), (0, 0, num_users, 0))


class BPR(Module):
    """Has the loss that `fit` calls."""

    def loss(self, out: tuple, *index: Tensor) -> Tensor:
        """Ranks each item of a user above another one."""
        user, pos, neg = index
        margin = out[0][user] * (out[1][pos] - out[1][neg[:, 0]])
        return F.softplus(-margin.sum(dim=-1)).mean()


class PlainLightGCN(BPR, LightGCN):
    """PyG's own, on a `HeteroData` object."""

    def forward(self, data: HeteroData) -> tuple[Tensor, ...]:
        """Embeds all users and all items."""
        out = self.get_embedding(data.to_homogeneous().edge_index)
        return out.split(list(data.num_nodes_dict.values()))


class PlainHeteroConv(BPR):
    """A recommender as one would write it with PyG alone."""

    def __init__(self, num_nodes: int, dim: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = Embedding(num_nodes, dim)
        torch.nn.init.normal_(self.embedding.weight, std=0.1)
        edges = [('user', 'rates', 'item'), ('item', 'rev_rates', 'user')]
        self.convs = ModuleList(
            HeteroConv({edge: SAGEConv(dim, dim) for edge in edges})
            for _ in range(num_layers)
        )

    def forward(self, data: HeteroData) -> tuple[Tensor, ...]:
        """Embeds all users and all items."""
        xs = self.embedding.weight.split(list(data.num_nodes_dict.values()))
        x_dict = dict(zip(data.node_types, xs, strict=True))
        for conv in self.convs:
            x_dict = conv(x_dict, data.edge_index_dict)
        return x_dict['user'], x_dict['item']


def run(kind: type[BPR], seed: int, fuse: Module | None) -> float:
    """Trains and tests a model on the fake data set of a seed."""
    seed_everything(seed)
    data = ToUndirected()(FakeMultimodalDataset(600, 400, seed=seed)[0])
    model = kind(data.num_nodes, DIM, num_layers=2)
    if fuse is not None:
        add = AddFeatures(data, fuse)
        register_parametrization(model.embedding, 'weight', add)
    fit(model, data, recipe, progress=False)
    held_out = data['user', 'rates', 'item'].test_edge_label_index
    ranker = Ranker.from_model(model, data, relations=())
    return ranker.evaluate(held_out)['recall@20']


print('Test Recall@20 on FAKE data, mean ± std of 3 seeds')
names = ['plain', '+ features', '+ features, RCA', 'what RCA adds']
print(f'{"":10}' + ''.join(f'{name:>19}' for name in names))
for kind in (PlainLightGCN, PlainHeteroConv):
    rows = []
    for seed in range(3):
        fuses = [None, Identity(), RCA(DIM, num_modalities=2)]
        row = [run(kind, seed, fuse) for fuse in fuses]
        rows.append([*row, row[2] - row[1]])
    std, mean = torch.std_mean(torch.tensor(rows), dim=0)
    cells = [f'{m:.4f} ± {s:.4f}' for m, s in zip(mean, std, strict=True)]
    print(f'{kind.__name__[5:]:10}' + ''.join(f'{cell:>19}' for cell in cells))
