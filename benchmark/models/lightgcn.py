import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn.models import LightGCN
from torch_geometric.nn.models.lightgcn import BPRLoss

from crane_pyg.nn.loss import hardest_negative

from .base import CHANNELS


class LightGCNModel(torch.nn.Module):
    r"""PyG's LightGCN, on a normalized sparse matrix."""

    def __init__(
        self, data: HeteroData, channels: int = CHANNELS, num_layers: int = 2
    ) -> None:
        super().__init__()
        self.num_users = data['user'].num_nodes
        num_nodes = self.num_users + data['item'].num_nodes
        self.model = LightGCN(num_nodes, channels, num_layers, normalize=False)
        self.adj: tuple[object, Tensor] | None = None

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items."""
        if self.adj is None or self.adj[0] is not data:
            self.adj = (data, normalized_adjacency(data))
        out = self.model.get_embedding(self.adj[1])
        return out[: self.num_users], out[self.num_users :]

    def loss(
        self,
        out: tuple[Tensor, Tensor],
        user: Tensor,
        pos: Tensor,
        neg: Tensor,
        lambda_reg: float = 1e-4,
    ) -> Tensor:
        r"""BPR on the negative that scores highest among those given."""
        x = F.embedding(user, out[0])
        neg = hardest_negative(x, out[1], neg)
        x_pos, x_neg = F.embedding(torch.stack([pos, neg]), out[1])
        used = torch.cat([user, pos + self.num_users, neg + self.num_users])
        return BPRLoss(lambda_reg)(
            (x * x_pos).sum(dim=-1),
            (x * x_neg).sum(dim=-1),
            F.embedding(used, self.model.embedding.weight),
        )


def normalized_adjacency(data: HeteroData) -> Tensor:
    r"""The weighted edges between users and items, who come after all users,
    in both directions, as compressed rows.
    """
    rates = data['user', 'rates', 'item']
    user, item = rates.edge_index
    item = item + data['user'].num_nodes
    edge_index = torch.stack([torch.cat([user, item]), torch.cat([item, user])])
    size = (data['user'].num_nodes + data['item'].num_nodes,) * 2
    weight = rates.edge_weight.repeat(2)
    return torch.sparse_coo_tensor(edge_index, weight, size).to_sparse_csr()
