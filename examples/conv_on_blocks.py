r"""CRANEConv on sampled blocks of a graph: with weights made for it, their mean
is what the full graph gives. The degrees of the blocks do not lead there.

python examples/conv_on_blocks.py  # Needs pyg-lib or torch_sparse.
"""

import argparse
import warnings

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import HeteroConv
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
from torch_geometric.utils import degree

from crane_pyg import BuildDualGraph, CRANEConv
from crane_pyg.datasets import FakeMultimodalDataset

parser = argparse.ArgumentParser()
parser.add_argument('--draws', type=int, nargs='+', default=[1, 8, 64])
args = parser.parse_args()
if not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
    raise SystemExit('Blocks need pyg-lib or torch_sparse, none is installed')
warnings.filterwarnings('ignore', "Using 'NeighborSampler' without a")
torch.manual_seed(0)

data = BuildDualGraph(k=5)(FakeMultimodalDataset(500, 300)[0])
for store in data.node_stores:
    store.x = torch.rand(store.num_nodes, 32)
# Weights by which a mean of edges estimates their sum:
for store in data.edge_stores:
    col = store.edge_index[1]
    store.edge_weight = store.edge_weight * degree(col, store.size(1))[col]


def embed(data: HeteroData, weighted: bool) -> Tensor:
    """Embeds the users of a graph, or of a block, by two layers."""
    kwargs = {'normalize': False, 'aggr': 'mean'} if weighted else {}
    conv = HeteroConv({t: CRANEConv(**kwargs) for t in data.edge_types})
    weights = data.edge_weight_dict if weighted else {}
    x_dict = data.x_dict
    for _ in range(2):
        x_dict = conv(x_dict, data.edge_index_dict, weights)
    return x_dict['user']


# Without `replace`, `torch_sparse` does not draw uniformly:
size = {'batch_size': data['user'].num_nodes, 'replace': True}
loader = NeighborLoader(data, [3, 3], input_nodes='user', **size)
print('Distance from the full graph, by blocks of three neighbors')
print(f'{"draws":>5}{"CRANEConv()":>19}{"CRANEConv, weights":>19}')
for num_draws in args.draws:
    row = f'{num_draws:5}'
    for weighted in (False, True):
        full = embed(data, weighted)
        blocks = [next(iter(loader)) for _ in range(num_draws)]
        outs = [embed(block, weighted)[: full.size(0)] for block in blocks]
        mean = torch.stack(outs).mean(dim=0)
        row += f'{(mean - full).norm() / full.norm():19.3f}'
    print(row)
