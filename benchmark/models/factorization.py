import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.data import HeteroData

from .base import CHANNELS, Peer
from .features import Projection


class MF(Peer):
    r"""Matrix factorization from the `"BPR: Bayesian Personalized Ranking from
    Implicit Feedback" <https://arxiv.org/abs/1205.2618>`_ paper.

    .. math::
        s_{ui} = \mathbf{p}_u^{\top} \mathbf{q}_i
    """

    def __init__(self, data: HeteroData, channels: int = CHANNELS) -> None:
        super().__init__(data, channels)
        self.reset_parameters()

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Returns the embeddings of all users and items."""
        return self.user_id, self.item_id


class VBPR(Peer):
    r"""The recommender from the `"VBPR: Visual Bayesian Personalized Ranking
    from Implicit Feedback" <https://arxiv.org/abs/1510.01784>`_ paper, with
    the features of all modalities :math:`m` next to each other in place of
    those of images.

    .. math::
        s_{ui} = \mathbf{p}_u^{\top} \mathbf{q}_i + b_i + \sum_m \left(
        \mathbf{t}_u^{\top} \mathbf{E}_m \mathbf{f}_{i,m} +
        \boldsymbol{\beta}_m^{\top} \mathbf{f}_{i,m} \right)

    Features :math:`\mathbf{f}_{i,m}` are scaled to a mean square of one:
    tastes for shorter ones are learned too slowly.
    """

    def __init__(self, data: HeteroData, channels: int = CHANNELS) -> None:
        super().__init__(data, channels)
        num_users, num_items = self.size
        self.taste = Parameter(torch.empty(num_users, self.channels))
        self.bias = Parameter(torch.empty(num_items))
        # The last channel is the bias of the features:
        size = self.channels + 1
        self.project = Projection(data, size, bias=False, scale=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all parameters; all biases start at zero."""
        super().reset_parameters()
        for linear in self.project.linear:
            torch.nn.init.zeros_(linear.weight[-1])

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items, with all biases in the last channel."""
        seen, bias = sum(self.project()).tensor_split([-1], dim=1)
        one = self.user_id.new_ones(self.size[0], 1)
        user = [self.user_id, self.taste, one]
        item = [self.item_id, seen, bias + self.bias.unsqueeze(1)]
        return torch.cat(user, dim=1), torch.cat(item, dim=1)
