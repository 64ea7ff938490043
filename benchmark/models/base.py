r"""What the compared models share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Parameter
from torch_geometric.data import HeteroData
from torch_geometric.nn.models.lightgcn import BPRLoss

from crane_pyg.nn import CRANEConv
from crane_pyg.nn.layout import DualGraph, GraphCache
from crane_pyg.nn.loss import hardest_negative
from crane_pyg.nn.propagate import propagate
from crane_pyg.training import Recipe

CHANNELS = 64
RATES = ('user', 'rates', 'item')
# Some fall for many epochs before they rise; all peers may do so:
LONG = {'patience': 20, 'min_epochs': 40}
PUBLISHED = Recipe(
    lr=1e-3,
    batch_size=2048,
    num_negatives=1,
    edge_dropping=0.0,
    disjoint=False,
    **LONG,
)
SAME = Recipe(**LONG)


@dataclass(frozen=True)
class Entry:
    r"""A model by name: what makes it from data and options, the recipe it is
    trained by, and options of its loss other than their defaults.
    """

    make: Callable[..., Module]
    recipe: Recipe = PUBLISHED
    loss: Mapping[str, Any] = field(default_factory=dict)


class Peer(Module):
    r"""A model of users and items with IDs, trained by BPR on the hardest of
    the given negatives.

    Its output begins with the embeddings of all users and of all items; what
    follows is for its loss.

    Args:
        data (torch_geometric.data.HeteroData): The node counts.
        channels (int, optional): The size of the embeddings.
            (default: :obj:`64`)
    """

    def __init__(self, data: HeteroData, channels: int = CHANNELS) -> None:
        super().__init__()
        self.channels = channels
        self.size = (data['user'].num_nodes, data['item'].num_nodes)
        self.user_id = Parameter(torch.empty(self.size[0], channels))
        self.item_id = Parameter(torch.empty(self.size[1], channels))
        self.conv = CRANEConv(normalize=False)
        self._cache = GraphCache()

    def reset_parameters(self) -> None:
        r"""Resets matrices to Xavier's uniform values, and vectors to zero, but
        for features that are trained.
        """
        for name, weight in self.named_parameters():
            if name.startswith('project.x_'):
                continue
            if weight.dim() > 1:
                torch.nn.init.xavier_uniform_(weight)
            else:
                torch.nn.init.zeros_(weight)

    def loss(
        self,
        out: tuple[Any, ...],
        user: Tensor,
        pos: Tensor,
        neg: Tensor,
        lambda_reg: float = 1e-4,
    ) -> Tensor:
        r"""BPR on the negative that scores highest among those given.

        Args:
            out (tuple): The output of the forward pass.
            user (torch.Tensor): The users :math:`(B)`.
            pos (torch.Tensor): Their items :math:`(B)`.
            neg (torch.Tensor): Items that are not theirs :math:`(B, S)`.
            lambda_reg (float, optional): The :math:`L_2` regularization.
                (default: :obj:`1e-4`)
        """
        x = F.embedding(user, out[0])
        neg = hardest_negative(x, out[1], neg)
        x_pos, x_neg = F.embedding(torch.stack([pos, neg]), out[1])
        return bpr_loss(x, x_pos, x_neg, lambda_reg)

    def graphs(self, data: HeteroData) -> DualGraph:
        r"""Returns the user-item graph in both directions."""
        return self._cache.read(data, RATES, None, self.size)

    def to_user(self, data: HeteroData, item: Tensor) -> Tensor:
        r"""Sums the items of each user, symmetrically normalized."""
        graph = self.graphs(data).to_user
        return self.conv((item, None), *graph, self.size[::-1])

    def propagate(
        self, data: HeteroData, num_layers: int
    ) -> tuple[Tensor, Tensor]:
        r"""LightGCN of the ID embeddings: the mean over all layers."""
        graphs, embs = self.graphs(data), (self.user_id, self.item_id)
        return propagate(
            self.conv, *embs, graphs.to_item, graphs.to_user, num_layers
        )


def bpr_loss(
    user: Tensor, pos: Tensor, neg: Tensor, lambda_reg: float = 0.0
) -> Tensor:
    r"""BPR of the inner products of three aligned sets of embeddings."""
    return BPRLoss(lambda_reg)(
        (user * pos).sum(dim=-1),
        (user * neg).sum(dim=-1),
        torch.cat([user, pos, neg]),
    )
