r"""CRANEConv in models that know nothing of it: in place of `SAGEConv`, inside
`to_hetero` and `HeteroConv`, on the full graph and on sampled blocks of it.

python examples/conv_in_hetero.py
"""

import argparse
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData
from torch_geometric.loader import LinkNeighborLoader
from torch_geometric.nn import HeteroConv, SAGEConv, to_hetero
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
from torch_geometric.utils import degree

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANEConv
from crane_pyg.ranking import evaluate

parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=15)
args = parser.parse_args()
if args.epochs < 1:
    parser.error(f"'--epochs' needs to be positive (got {args.epochs})")
warnings.filterwarnings('ignore', "Using 'NeighborSampler' without a")
DIM, RATES = 32, ('user', 'rates', 'item')
CONVS = {  # What is exchanged; the last one needs the edges to have weights.
    'SAGEConv': lambda: SAGEConv(DIM, DIM),
    'CRANEConv()': CRANEConv,
    'CRANEConv, weights': lambda: CRANEConv(normalize=False, aggr='mean'),
}


class Layer(Module):
    """Knows a single type of nodes and edges, as `to_hetero` expects."""

    def __init__(self, conv: Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, edge_index: Tensor, edge_w: Tensor) -> Tensor:
        """Propagates along the edges."""
        return self.conv(x, edge_index, edge_w)


def build_layer(wrapper: Callable, conv: Callable, data: HeteroData) -> Module:
    """Makes a layer for all edge types of a layer for one of them."""
    if wrapper is HeteroConv:
        return HeteroConv({edge_type: conv() for edge_type in data.edge_types})
    return to_hetero(Layer(conv()), data.metadata())


class Recommender(Module):
    """Sums the layers of a GNN on embeddings of users, features of items."""

    def __init__(self, data: HeteroData, wrapper: Callable, conv: str) -> None:
        super().__init__()
        self.weighted = conv.endswith('weights')
        self.emb = Parameter(0.1 * torch.randn(data['user'].num_nodes, DIM))
        self.lin = Linear(data['item'].x.size(1), DIM)
        layers = [build_layer(wrapper, CONVS[conv], data) for _ in range(2)]
        self.layers = ModuleList(layers)

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        """Embeds the users and items of a graph, or of a block."""
        x, y = self.emb[data['user'].n_id], self.lin(data['item'].x)
        weight_dict = data.edge_weight_dict if self.weighted else {}
        out = {'user': x, 'item': y}
        for layer in self.layers:
            out = layer(out, data.edge_index_dict, weight_dict)
            x, y = x + out['user'], y + out['item']
        return x, y


def load(seed: int) -> HeteroData:
    """Returns both graphs, such that a mean of edges estimates their sum."""
    seed_everything(seed)
    data = T.BuildDualGraph(k=5)(FakeMultimodalDataset(500, 300, seed=seed)[0])
    data['user'].n_id = torch.arange(data['user'].num_nodes)
    data['item'].x = torch.cat([data['item'].x_image, data['item'].x_text], 1)
    for store in data.edge_stores:
        col = store.edge_index[1]
        store.edge_weight = store.edge_weight * degree(col, store.size(1))[col]
    return data


def full(data: HeteroData) -> Iterator[tuple]:
    """Yields users, positives and negatives, next to the full graph."""
    pairs, num_items = data[RATES].edge_index, data['item'].num_nodes
    for index in torch.randperm(pairs.size(1)).split(512):
        yield data, *pairs[:, index], torch.randint(num_items, index.size())


def blocks(data: HeteroData) -> Iterator[tuple]:
    """Yields the same, next to a block with three neighbors by edge type."""
    for block in LinkNeighborLoader(
        data,
        num_neighbors=[3, 3],
        edge_label_index=(RATES, data[RATES].edge_index),
        neg_sampling='triplet',
        replace=True,  # Otherwise, `torch_sparse` does not draw uniformly.
        batch_size=512,
        shuffle=True,
    ):
        user, item = block['user'], block['item']
        yield block, user.src_index, item.dst_pos_index, item.dst_neg_index


def run(model: Module, data: HeteroData, batches: Callable) -> float:
    """Trains by BPR, and tests the epoch that is best in validation."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rates, pairs = data[RATES], data[RATES].edge_index
    best, best_out = -1.0, None
    for _ in range(args.epochs):
        for graph, user, pos, neg in batches(data):
            optimizer.zero_grad()
            x_user, x_item = model(graph)
            margin = x_user[user] * (x_item[pos] - x_item[neg])
            F.softplus(-margin.sum(dim=-1)).mean().backward()
            optimizer.step()
        out = [x.detach() for x in model(data)]
        valid = evaluate(*out, rates.val_edge_label_index, pairs)['recall@20']
        if valid > best:
            best, best_out = valid, out
    return evaluate(*best_out, rates.test_edge_label_index, pairs)['recall@20']


runs = [(to_hetero, full), (HeteroConv, full), (HeteroConv, blocks)]
if not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
    runs.pop()
    print('No blocks, as neither pyg-lib nor torch_sparse is installed')
print('Test Recall@20 on FAKE data, mean ± std of 3 seeds')
print(' ' * 18 + ''.join(f'{conv:>19}' for conv in CONVS))
for wrapper, batches in runs:
    rows = []
    for seed in range(3):
        data = load(seed)
        models = [Recommender(data, wrapper, conv) for conv in CONVS]
        rows.append([run(model, data, batches) for model in models])
    std, mean = torch.std_mean(torch.tensor(rows), dim=0)
    cells = [f'    {m:.4f} ± {s:.4f}' for m, s in zip(mean, std, strict=True)]
    print(f'{wrapper.__name__:>10}, {batches.__name__:6}' + ''.join(cells))
