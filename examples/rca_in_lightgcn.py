r"""RCA in models that know nothing of it: PyG's `LightGCN`, and a recommender
of `HeteroConv`s. Each is trained plain, with item features, and with item
features that RCA refines. The two `Multimodal*` classes are all it takes.

python examples/rca_in_lightgcn.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Identity, Linear, Module, ModuleList, ParameterDict
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, LightGCN, SAGEConv
from torch_geometric.transforms import ToUndirected

from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import RCA
from crane_pyg.ranking import evaluate
from crane_pyg.training import sample_negatives

DIM = 32


class PlainLightGCN(LightGCN):
    """PyG's own, on a `HeteroData` object."""

    def __init__(self, data: HeteroData) -> None:
        super().__init__(data.num_nodes, DIM, num_layers=2)

    def forward(self, data: HeteroData) -> tuple[Tensor, ...]:
        """Embeds all users and all items."""
        sizes = list(data.num_nodes_dict.values())
        user, item = data['user', 'rates', 'item'].edge_index
        node = torch.cat([user, item + sizes[0]])
        edge_index = torch.stack([node, node.roll(user.numel())])
        return self.get_embedding(edge_index).split(sizes)


class MultimodalLightGCN(PlainLightGCN):
    """The same, with features added to the embeddings of items."""

    def __init__(self, data: HeteroData, fuse: Module) -> None:
        super().__init__(data)
        self.xs, self.fuse = [data['item'].x_image, data['item'].x_text], fuse
        self.lins = ModuleList(Linear(x.size(1), DIM) for x in self.xs)

    def get_embedding(self, edge_index: Tensor) -> Tensor:
        """Propagates the embeddings of all nodes."""
        xs = [lin(x) for lin, x in zip(self.lins, self.xs, strict=True)]
        pad = (0, 0, self.num_nodes - xs[0].size(0), 0)  # Users come first.
        outs = [self.embedding.weight + F.pad(sum(self.fuse(xs)), pad)]
        for conv in self.convs:
            outs.append(conv(outs[-1], edge_index))
        return torch.stack(outs, dim=-1) @ self.alpha


class PlainHeteroConv(Module):
    """A recommender as one would write it with PyG alone."""

    def __init__(self, data: HeteroData) -> None:
        super().__init__()
        self.embs = ParameterDict(
            {t: torch.randn(n, DIM) / 8 for t, n in data.num_nodes_dict.items()}
        )
        self.convs = ModuleList(
            HeteroConv({t: SAGEConv(DIM, DIM) for t in data.edge_types})
            for _ in range(2)
        )

    def inputs(self) -> dict[str, Tensor]:
        """Returns the embeddings of all nodes."""
        return dict(self.embs.items())

    def forward(self, data: HeteroData) -> tuple[Tensor, ...]:
        """Embeds all users and all items."""
        x_dict = self.inputs()
        for conv in self.convs:
            x_dict = conv(x_dict, data.edge_index_dict)
        return x_dict['user'], x_dict['item']


class MultimodalHeteroConv(PlainHeteroConv):
    """The same, with features added to the embeddings of items."""

    def __init__(self, data: HeteroData, fuse: Module) -> None:
        super().__init__(data)
        self.xs, self.fuse = [data['item'].x_image, data['item'].x_text], fuse
        self.lins = ModuleList(Linear(x.size(1), DIM) for x in self.xs)

    def inputs(self) -> dict[str, Tensor]:
        """Returns the embeddings of all nodes."""
        xs = [lin(x) for lin, x in zip(self.lins, self.xs, strict=True)]
        x_dict = super().inputs()
        return {**x_dict, 'item': x_dict['item'] + sum(self.fuse(xs))}


def train_and_test(model: Module, data: HeteroData, num_epochs: int) -> float:
    """Trains by BPR, and tests the epoch that is best in validation."""
    rates = data['user', 'rates', 'item']
    pairs = rates.edge_index
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    best, best_epoch, epoch = -1.0, 0, 0
    while epoch < min(num_epochs, best_epoch + 10):
        epoch += 1
        model.train()
        negative = sample_negatives(pairs, data['item'].num_nodes)[:, 0]
        for index in torch.randperm(pairs.size(1)).chunk(4):
            optimizer.zero_grad()
            (x_user, x_item), (user, item) = model(data), pairs[:, index]
            margin = x_user[user] * (x_item[item] - x_item[negative[index]])
            F.softplus(-margin.sum(dim=-1)).mean().backward()
            optimizer.step()
        out = [x.detach() for x in model.eval()(data)]
        valid = evaluate(*out, rates.val_edge_label_index, pairs)['recall@20']
        if valid > best:
            best, best_epoch, best_out = valid, epoch, out
    return evaluate(*best_out, rates.test_edge_label_index, pairs)['recall@20']


def main() -> None:
    """Trains and tests all models, on another fake data set for each seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--epochs', type=int, default=60)
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"'--epochs' needs to be positive (got {args.epochs})")

    print('Test Recall@20 on FAKE data, mean ± std of 3 seeds')
    columns = ['plain', '+ features', '+ features, RCA', 'what RCA adds']
    print(f'{"":10}' + ''.join(f'{column:>19}' for column in columns))
    for multimodal in (MultimodalLightGCN, MultimodalHeteroConv):
        plain, rows = multimodal.__base__, []
        for seed in range(3):
            seed_everything(seed)
            data = ToUndirected()(FakeMultimodalDataset(600, 400, seed=seed)[0])
            models = [plain(data), multimodal(data, Identity())]
            models.append(multimodal(data, RCA(DIM, num_modalities=2)))
            row = [train_and_test(model, data, args.epochs) for model in models]
            rows.append([*row, row[2] - row[1]])
        std, mean = torch.std_mean(torch.tensor(rows), dim=0)
        cells = [f'{m:.4f} ± {s:.4f}' for m, s in zip(mean, std, strict=True)]
        print(f'{plain.__name__[5:]:10}' + ''.join(f'{c:>19}' for c in cells))


if __name__ == '__main__':
    main()
