r"""What the compared models share."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.data import HeteroData
from torch_geometric.nn.models.lightgcn import BPRLoss

from crane_pyg.nn import CRANEConv
from crane_pyg.nn.loss import hardest_negative
from crane_pyg.nn.propagate import propagate
from crane_pyg.ranking import Neighborhood, evaluate

CHANNELS = 64
TO_ITEM = ('user', 'rates', 'item')
TO_USER = ('item', 'rev_rates', 'user')


@dataclass(frozen=True)
class Recipe:
    r"""How a model is trained.

    A learning rate or a batch size of :obj:`None` is that of the harness.
    :obj:`disjoint` trains on those pairs only whose edges are dropped, if any.
    """

    num_negatives: int
    edge_dropping: float
    lambda_reg: float
    lr: float | None = None
    batch_size: int | None = None
    disjoint: bool = False


class Model(torch.nn.Module):
    r"""A model with a recipe, whose values are overridden by name."""

    recipe: Recipe

    def __init__(self, **recipe: float | None) -> None:
        super().__init__()
        self.recipe = replace(self.recipe, **recipe)

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items."""
        raise NotImplementedError

    def neighborhood(self, data: HeteroData) -> Neighborhood | None:
        r"""Returns what is added to the inner products of the latest forward
        pass, if anything.
        """
        return None

    def validate(
        self, data: HeteroData, user: Tensor, item: Tensor
    ) -> dict[str, float]:
        r"""Ranks the validation pairs by the embeddings that the latest
        forward pass returned, and chooses by them what is left open, if
        anything.
        """
        rates = data[TO_ITEM]
        return evaluate(
            user,
            item,
            rates.val_edge_label_index,
            rates.edge_index,
            neighbors=self.neighborhood(data),
        )

    def end_epoch(self, data: HeteroData, epoch: int) -> None:
        r"""Does what is due after some epochs of training, if anything."""

    def loss(self, user: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        r"""The loss of a mini-batch, of the latest forward pass.

        Args:
            user (torch.Tensor): The users :math:`(B)`.
            pos (torch.Tensor): Their items :math:`(B)`.
            neg (torch.Tensor): Items that are not theirs :math:`(B, S)`.
        """
        raise NotImplementedError


class Peer(Model):
    r"""A model of users and items with IDs, trained by BPR on the hardest of
    the given negatives.

    As published, the peers are trained with one negative, by Adam with a
    learning rate of 0.001 and mini-batches of 2048 pairs.

    Args:
        data (torch_geometric.data.HeteroData): The node counts.
        channels (int, optional): The size of the embeddings.
            (default: :obj:`64`)
        **recipe (optional): Values of the recipe.
    """

    recipe = Recipe(
        num_negatives=1,
        edge_dropping=0.0,
        lambda_reg=1e-4,
        lr=1e-3,
        batch_size=2048,
    )

    def __init__(
        self,
        data: HeteroData,
        channels: int = CHANNELS,
        **recipe: float | None,
    ) -> None:
        super().__init__(**recipe)
        self.channels = channels
        self.size = (data['user'].num_nodes, data['item'].num_nodes)
        self.user_id = Parameter(torch.empty(self.size[0], channels))
        self.item_id = Parameter(torch.empty(self.size[1], channels))
        self.conv = CRANEConv(normalize=False)

    def reset_parameters(self) -> None:
        r"""Resets matrices to Xavier's uniform values, and vectors to zero."""
        for weight in self.parameters():
            if weight.dim() > 1:
                torch.nn.init.xavier_uniform_(weight)
            else:
                torch.nn.init.zeros_(weight)

    def embed(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items."""
        raise NotImplementedError

    def auxiliary_loss(
        self, user: Tensor, pos: Tensor, neg: Tensor
    ) -> Tensor | float:
        r"""What a model adds to BPR, for one negative a pair :math:`(B)`."""
        return 0.0

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items."""
        self.user, self.item = self.embed(data)
        return self.user, self.item

    def loss(self, user: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        r"""BPR on the hardest negative, and what the model adds to it."""
        x = F.embedding(user, self.user)
        neg = hardest_negative(x, self.item, neg)
        x_pos, x_neg = F.embedding(torch.stack([pos, neg]), self.item)
        loss = bpr_loss(x, x_pos, x_neg, self.recipe.lambda_reg)
        return loss + self.auxiliary_loss(user, pos, neg)

    def to_user(self, data: HeteroData, item: Tensor) -> Tensor:
        r"""Sums the items of each user, symmetrically normalized."""
        return self.conv((item, None), *_graph(data, TO_USER), self.size[::-1])

    def propagate(
        self, data: HeteroData, num_layers: int
    ) -> tuple[Tensor, Tensor]:
        r"""LightGCN of the ID embeddings: the mean over all layers."""
        graphs = _graph(data, TO_ITEM), _graph(data, TO_USER)
        embs = (self.user_id, self.item_id)
        return propagate(self.conv, *embs, *graphs, num_layers)


def _graph(
    data: HeteroData, edge_type: tuple[str, str, str]
) -> tuple[Tensor, Tensor]:
    return data[edge_type].edge_index, data[edge_type].edge_weight


def bpr_loss(
    user: Tensor, pos: Tensor, neg: Tensor, lambda_reg: float = 0.0
) -> Tensor:
    r"""BPR of the inner products of three aligned sets of embeddings."""
    return BPRLoss(lambda_reg)(
        (user * pos).sum(dim=-1),
        (user * neg).sum(dim=-1),
        torch.cat([user, pos, neg]),
    )
