r"""CRANEConv in place of `SAGEConv`, inside `to_hetero` and `HeteroConv`.

python examples/conv_in_hetero.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv, to_hetero

from crane_pyg import BuildDualGraph, CRANEConv, Ranker, Recipe, fit
from crane_pyg.datasets import FakeMultimodalDataset

parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=15)
recipe, DIM = Recipe(parser.parse_args().epochs, lr=0.01, min_batches=8), 32
CONVS = {  # What is exchanged; the last one needs the edges to have weights.
    'SAGEConv': lambda: SAGEConv(DIM, DIM),
    'CRANEConv()': CRANEConv,
    'CRANEConv, weights': lambda: CRANEConv(normalize=False),
}


class Layer(Module):
    """Knows a single type of nodes and edges, as `to_hetero` expects."""

    def __init__(self, conv: Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, edge_index: Tensor, edge_w: Tensor) -> Tensor:
        """Propagates along the edges."""
        return self.conv(x, edge_index, edge_w)


class Recommender(Module):
    """Sums the layers of a GNN on embeddings of users, features of items."""

    def __init__(self, data: HeteroData, wrapper: str, conv: str) -> None:
        super().__init__()
        self.weighted, self.layers = conv.endswith('weights'), ModuleList()
        self.emb = Parameter(0.1 * torch.randn(data['user'].num_nodes, DIM))
        self.lin = Linear(data['item'].x.size(1), DIM)
        for _ in range(2):
            layer = HeteroConv({t: CONVS[conv]() for t in data.edge_types})
            if wrapper == 'to_hetero':
                layer = to_hetero(Layer(CONVS[conv]()), data.metadata())
            self.layers.append(layer)

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        """Embeds all users and all items."""
        weight_dict = data.edge_weight_dict if self.weighted else {}
        x, y = self.emb, self.lin(data['item'].x)
        out = {'user': x, 'item': y}
        for layer in self.layers:
            out = layer(out, data.edge_index_dict, weight_dict)
            x, y = x + out['user'], y + out['item']
        return x, y

    def loss(self, out: tuple, *index: Tensor) -> Tensor:
        """Ranks each item of a user above another one."""
        user, pos, neg = index
        margin = out[0][user] * (out[1][pos] - out[1][neg[:, 0]])
        return F.softplus(-margin.sum(dim=-1)).mean()


def run(wrapper: str, conv: str, seed: int) -> float:
    """Trains and tests a model on the fake data set of a seed."""
    seed_everything(seed)
    data = BuildDualGraph(k=5)(FakeMultimodalDataset(500, 300, seed=seed)[0])
    data['item'].x = torch.cat([data['item'].x_image, data['item'].x_text], 1)
    model = Recommender(data, wrapper, conv)
    fit(model, data, recipe, progress=False)
    held_out = data['user', 'rates', 'item'].test_edge_label_index
    ranker = Ranker.from_model(model, data, relations=())
    return ranker.evaluate(held_out)['recall@20']


print('Test Recall@20 on FAKE data, mean ± std of 3 seeds')
print(f'{"":10}' + ''.join(f'{conv:>19}' for conv in CONVS))
for wrapper in ('to_hetero', 'HeteroConv'):
    rows = [[run(wrapper, conv, seed) for seed in range(3)] for conv in CONVS]
    std, mean = torch.std_mean(torch.tensor(rows), dim=1)
    cells = [f'{m:.4f} ± {s:.4f}' for m, s in zip(mean, std, strict=True)]
    print(f'{wrapper:10}' + ''.join(f'{cell:>19}' for cell in cells))
