import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, ModuleList, Sequential, Tanh
from torch_geometric.data import HeteroData

from crane_pyg.nn.loss import info_nce_loss

from .base import CHANNELS, Peer
from .features import ItemGraph, Projection, get_features, neighbor_graph

Views = tuple[Tensor, Tensor]


class MGCN(Peer):
    r"""The recommender from the `"Multi-View Graph Convolutional Network for
    Multimedia Recommendation" <https://arxiv.org/abs/2308.03588>`_ paper.

    Item features are purified by the ID embeddings :math:`\mathbf{X}`, and
    propagated over the frozen graph :math:`\hat{\mathbf{S}}_m` of each
    modality and the normalized user-item graph :math:`\hat{\mathbf{R}}`:

    .. math::
        \mathbf{E}_{\mathcal{I},m} = \hat{\mathbf{S}}_m \left(
        \mathbf{X}_{\mathcal{I}} \odot \sigma(g_m(\mathbf{F}_m \mathbf{W}_m +
        \mathbf{b}_m)) \right), \qquad \mathbf{E}_{\mathcal{U},m} =
        \hat{\mathbf{R}} \mathbf{E}_{\mathcal{I},m}

    They are fused into a side view :math:`\mathbf{E}`, where the behavior view
    :math:`\bar{\mathbf{X}}` of LightGCN weighs what is specific to a modality:

    .. math::
        \mathbf{E}_s = \sum_m \alpha_m \mathbf{E}_m, \qquad
        \mathbf{E} = \frac{1}{M + 1} \left( \mathbf{E}_s + \sum_m
        (\mathbf{E}_m - \mathbf{E}_s) \odot
        \sigma(h_m(\bar{\mathbf{X}})) \right), \qquad
        \alpha = \underset{m}{\text{softmax}} \;
        \mathbf{q}^{\top} \tanh(\mathbf{E}_m \mathbf{W} + \mathbf{b})

    with linear layers :math:`g_m`, :math:`h_m`. Items are ranked by
    :math:`\mathbf{H} = \bar{\mathbf{X}} + \mathbf{E}`, and both views
    are aligned by InfoNCE.

    Args:
        data (torch_geometric.data.HeteroData): Features and node counts.
        num_layers (int, optional): The layers of LightGCN.
            (default: :obj:`2`)
        k (int, optional): The number of neighbors. (default: :obj:`10`)
        train_features (bool, optional): If set to :obj:`True`, features are
            trained as well; the graphs stay. (default: :obj:`False`)
        channels (int, optional): The size of the embeddings.
            (default: :obj:`64`)
    """

    def __init__(
        self,
        data: HeteroData,
        num_layers: int = 2,
        k: int = 10,
        train_features: bool = False,
        channels: int = CHANNELS,
    ) -> None:
        super().__init__(data, channels)
        self.num_layers = num_layers
        xs = get_features(data).values()
        self.item_graphs = ModuleList(
            ItemGraph(*neighbor_graph(x, k), self.size[1]) for x in xs
        )
        size = self.channels
        self.project = Projection(data, size, train=train_features)
        self.purify = ModuleList(Linear(size, size) for _ in xs)
        self.query = Sequential(
            Linear(size, size), Tanh(), Linear(size, 1, bias=False)
        )
        self.prefer = ModuleList(Linear(size, size) for _ in xs)
        self.reset_parameters()

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor, Views, Views]:
        r"""Embeds all users and items; returns both of their views as well."""
        items = self._item_views()
        users = self.to_user(data, torch.cat(items, dim=1))
        user, item = self.propagate(data, self.num_layers)
        user_side = self._fuse(users.split(self.channels, dim=1), user)
        item_side = self._fuse(items, item)
        views = (user_side, user), (item_side, item)
        return user + user_side, item + item_side, *views

    def loss(
        self,
        out: tuple[Tensor, Tensor, Views, Views],
        user: Tensor,
        pos: Tensor,
        neg: Tensor,
        lambda_reg: float = 1e-4,
        contrast_weight: float = 0.01,
        temperature: float = 0.2,
        contrast_size: int = 2048,
    ) -> Tensor:
        r"""BPR, and InfoNCE between both views of the users and of the items,
        of so many pairs, the first of the mini-batch, as its cost grows with
        the square.
        """
        loss = super().loss(out, user, pos, neg, lambda_reg)
        for views, index in zip(out[2:], (user, pos), strict=True):
            index = index[:contrast_size]
            pair = [F.embedding(index, x) for x in views]
            contrast = info_nce_loss(*pair, temperature, index)
            loss = loss + contrast_weight * contrast
        return loss

    def _item_views(self) -> list[Tensor]:
        return [
            graph(self.item_id * purify(x).sigmoid())
            for graph, purify, x in zip(
                self.item_graphs, self.purify, self.project(), strict=True
            )
        ]

    def _fuse(self, views: list[Tensor], behavior: Tensor) -> Tensor:
        x = torch.stack(tuple(views))
        shared = (self.query(x).softmax(dim=0) * x).sum(dim=0)
        gate = torch.stack([prefer(behavior) for prefer in self.prefer])
        specific = (x - shared) * gate.sigmoid()
        return (shared + specific.sum(dim=0)) / (len(views) + 1)
