import copy
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.nn import Parameter, ParameterDict
from torch_geometric.data import HeteroData
from torch_geometric.nn.inits import zeros

from crane_pyg._check import check_option, check_share, check_size
from crane_pyg._edges import check_edge_type
from crane_pyg._mode import evaluation
from crane_pyg.nn.conv import CRANEConv
from crane_pyg.nn.encoder import ModalityEncoder, read_features
from crane_pyg.nn.extend import (
    aim_,
    empty_tables,
    grown_size,
    lend,
    pad,
    pad_,
)
from crane_pyg.nn.layout import DualGraph, GraphCache
from crane_pyg.nn.objective import CRANEOutput, loss_terms
from crane_pyg.nn.pretrained import PretrainedMixin
from crane_pyg.nn.propagate import propagate, smooth, user_mean
from crane_pyg.ranking.top_k import top_k

PROFILES: Final = ('input', 'contrast', None)


class CRANE(PretrainedMixin, torch.nn.Module):
    r"""The CRANE recommender from the `"Cross-Modal Attention Network with
    Dual Graph Learning in Multimodal Recommendation"
    <https://arxiv.org/abs/2601.11151>`_ paper.

    Users and items have one vector, a *stream*, in every modality :math:`m`.
    That of an item is a projection of its features
    :math:`\hat{\mathbf{f}}_{i,m}`, scaled to unit length, which :class:`RCA`
    refines across the modalities if there is a :obj:`mode`, plus an offset
    :math:`\mathbf{o}_{i,m}`, which learns what the features do not say; that of
    a user is a learned preference :math:`\mathbf{q}_{u,m}`, with
    :obj:`profile="input"` plus the mean of the items it is connected to (the
    symmetric user profile), behind a gate :math:`g_m` that starts at zero:

    .. math::
        \mathbf{x}_{i,m} &= \mathrm{RCA}(\mathbf{W}_m
        \hat{\mathbf{f}}_{i,m} + \mathbf{b}_m) + \mathbf{o}_{i,m}

        \mathbf{x}_{u,m} &= \mathbf{q}_{u,m} + g_m \, \frac{1}{d_u}
        \sum_{i \in \mathcal{N}(u)} \mathbf{x}_{i,m}

    A further stream holds the ID embeddings. All streams, side by side, are
    propagated over both graphs, which gives a behavior view :math:`\mathbf{B}`
    and a semantic view :math:`\mathbf{N}`, whose sum embeds users and items:

    .. math::
        \mathbf{X}^{(l+1)} = \hat{\mathbf{A}} \mathbf{X}^{(l)}, \qquad
        \mathbf{B} = \frac{1}{L+1} \sum_{l=0}^{L} \mathbf{X}^{(l)}, \qquad
        \mathbf{N}_{\mathcal{I}} =
        \mathbf{S}^{K} \mathbf{X}^{(0)}_{\mathcal{I}}, \qquad
        \mathbf{N}_{\mathcal{U}} =
        \hat{\mathbf{R}} \mathbf{N}_{\mathcal{I}}, \qquad
        \mathbf{X} = \mathbf{B} + \mathbf{N}

    with the normalized user-item graph :math:`\hat{\mathbf{A}}`, its edges to
    the users :math:`\hat{\mathbf{R}}`, and the item graph :math:`\mathbf{S}`,
    see :class:`~crane_pyg.transforms.BuildDualGraph`. Items are ranked by the
    inner product :math:`\hat{r}_{ui} = \mathbf{x}_u^{\top} \mathbf{x}_i`.

    Args:
        num_users (int): The number of users.
        num_items (int): The number of items.
        in_channels (dict[str, int]): The feature size of each modality.
        channels (int, optional): Size of each stream :math:`d`.
            (default: :obj:`64`)
        num_layers (int, optional): The number of layers :math:`L` over the
            user-item graph. (default: :obj:`2`)
        num_item_layers (int, optional): The number of layers :math:`K` over
            the item graph; :obj:`0` leaves it out. (default: :obj:`1`)
        use_id (bool, optional): If set to :obj:`False`, there is no stream of
            ID embeddings and there are no offsets: an item is nothing but its
            features. (default: :obj:`True`)
        profile (str, optional): Where user profiles enter: the streams of the
            users (:obj:`"input"`), their semantic view in the contrastive
            objective (:obj:`"contrast"`), or nowhere (:obj:`None`).
            (default: :obj:`None`)
        mode (str, optional): The mode of :class:`RCA`, or :obj:`None` to leave
            it out. One modality alone has nothing to attend to, and leaves it
            out too. (default: :obj:`None`)
        num_steps (int, optional): The number of steps of :class:`RCA`.
            (default: :obj:`1`)
        dropout (float, optional): Dropout probability of the features.
            (default: :obj:`0.`)
        edge_type (tuple, optional): The edge type of the training pairs.
            (default: :obj:`('user', 'rates', 'item')`)
        item_edge (str, optional): The name of the relation between items.
            (default: :obj:`"similar_to"`)
        num_new_items (int, optional): The number of items, the last ones, that
            are not trained, see :meth:`extend`. (default: :obj:`0`)
        neighbor_share (float, optional): The share :math:`\lambda` of its
            neighbors in the embedding of a new item, see :meth:`extend`.
            (default: :obj:`0.8`)

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: dict[str, int],
        channels: int = 64,
        num_layers: int = 2,
        num_item_layers: int = 1,
        use_id: bool = True,
        profile: str | None = None,
        mode: str | None = None,
        num_steps: int = 1,
        dropout: float = 0.0,
        edge_type: tuple[str, str, str] = ('user', 'rates', 'item'),
        item_edge: str = 'similar_to',
        num_new_items: int = 0,
        neighbor_share: float = 0.8,
    ) -> None:
        super().__init__()
        sizes = {'num_users': num_users, 'num_items': num_items}
        num_old = {'num_items - num_new_items': num_items - num_new_items}
        check_size(1, **sizes, channels=channels, **num_old)
        layers = {'num_layers': num_layers, 'num_item_layers': num_item_layers}
        check_size(0, **layers, num_new_items=num_new_items)
        check_option('profile', profile, PROFILES)
        check_share('neighbor_share', neighbor_share)

        self.num_new_items = num_new_items
        self.neighbor_share = neighbor_share
        self.channels = channels
        self.num_layers = num_layers
        self.num_item_layers = num_item_layers
        self.profile = profile
        self.size = (num_users, num_items)
        self.edge_type = check_edge_type(edge_type)
        self.item_edge = item_edge

        args = (in_channels, channels, mode, num_steps, dropout)
        self.encoder = ModalityEncoder(*args)
        self.in_channels = self.encoder.in_channels
        table = (self.in_channels, channels)
        self.preference = empty_tables(num_users, *table)
        self.offset = ParameterDict()
        self.user_id: Parameter | None = None
        self.item_id: Parameter | None = None
        if use_id:
            self.offset = empty_tables(num_items, *table)
            self.user_id = Parameter(torch.empty(num_users, channels))
            self.item_id = Parameter(torch.empty(num_items, channels))
        self.gate: Parameter | None = None
        if profile == 'input':
            self.gate = Parameter(torch.empty(len(in_channels)))
        # Abstract to mypy only, as every layer of PyG is:
        self.conv = CRANEConv(normalize=False)  # type: ignore[abstract]
        self._cache = GraphCache()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.encoder.reset_parameters()
        tables = (*self.preference.values(), *self.offset.values())
        for weight in (*tables, self.user_id, self.item_id):
            if weight is not None:
                torch.nn.init.xavier_uniform_(weight)
        zeros(self.gate)

    def forward(self, data: HeteroData) -> CRANEOutput:
        r"""Embeds all users and items.

        Args:
            data (torch_geometric.data.HeteroData): Features and graphs as
                :class:`~crane_pyg.transforms.BuildDualGraph` leaves them; some
                of the user-item edges may be dropped.

        Raises:
            ValueError: If a graph or a modality is missing from
                :obj:`data`, or does not fit the model.
        """
        to_item, to_user, similar = self.graphs(data)
        item_in = torch.cat(self.encode_items(data), dim=-1)
        profile = None
        if self.profile is not None:
            profile = user_mean(self.conv, item_in, to_user[0], self.size)
            profile = profile.view(self.size[0], -1, self.channels)
        user_in = self._encode_users(profile)
        if self.item_id is not None:
            item_in = torch.cat([self.item_id, item_in], dim=-1)

        user, item = propagate(
            self.conv, user_in, item_in, to_item, to_user, self.num_layers
        )
        user_near, item_near = None, None
        if similar is not None and self.num_item_layers > 0:
            graphs = (similar, to_user)
            user_near, item_near = smooth(
                self.conv, item_in, *graphs, self.num_item_layers, self.size
            )
            user, item = user + user_near, item + item_near
        if similar is not None and self.num_new_items > 0:
            new = (self.num_new_items, self.neighbor_share)
            item = lend(item, *similar, *new)
            if item_near is not None:
                item_near = lend(item_near, *similar, *new)
        profile = profile if self.profile == 'contrast' else None
        return CRANEOutput(user, item, profile, user_near, item_near)

    def loss(
        self,
        out: CRANEOutput,
        user_index: Tensor,
        pos_index: Tensor,
        neg_index: Tensor,
        **options: Any,  # noqa: ANN401
    ) -> Tensor:
        r"""Returns the objective of a mini-batch of training pairs: the sum of
        :func:`~crane_pyg.nn.objective.loss_terms`, which takes the same
        arguments.
        """
        batch = (user_index, pos_index, neg_index)
        terms = self.loss_terms(out, *batch, **options)
        return torch.stack(list(terms.values())).sum()

    loss_terms = staticmethod(loss_terms)

    @torch.no_grad()
    def recommend(
        self,
        data: HeteroData,
        user_index: object = None,
        k: int = 20,
        exclude_seen: bool = True,
        candidates: object = None,
    ) -> Tensor:
        r"""Returns the top-:math:`k` items of each user :math:`(B, k)`, best
        first, by inner products, see :func:`~crane_pyg.ranking.top_k`. With
        :obj:`exclude_seen=False`, the history of a user is ranked as well.
        """
        with evaluation(self):
            out = self(data)
        seen = data[self.edge_type].edge_index if exclude_seen else None
        ranked = top_k(
            out.user, out.item, k, user_index, seen, candidates=candidates
        )
        return ranked.index

    def extend(self, data: HeteroData) -> 'CRANE':
        r"""Returns a copy of the model, in evaluation mode, for data with more
        users or items than it was trained on, see
        :func:`~crane_pyg.transforms.attach_items` and
        :func:`~crane_pyg.transforms.attach_users`. Nothing is trained.

        IDs and offsets of the new ones are zero. The preference of a new user
        has the direction of the profile, and the length that preferences have
        in the mean; the items of the user send their messages as to everyone.
        A new item :math:`i` is embedded by its features, which meet the
        statistics of :class:`RCA` that were stored in training, and by the
        message of the item graph, the IDs of its neighbors included. As no
        user sends it anything, it is mixed with the embeddings of its
        neighbors among the other items :math:`\mathcal{N}(i)`, if any:

        .. math::
            \mathbf{x}_i \leftarrow (1 - \lambda) \, \mathbf{x}_i + \lambda
            \sum_{j \in \mathcal{N}(i)}
            \frac{s_{ji}}{\sum_{j^{\prime}} s_{j^{\prime} i}} \, \mathbf{x}_j

        A new item without any modality is embedded as zero.

        Args:
            data (torch_geometric.data.HeteroData): As in the forward pass, the
                new users and items last.

        Raises:
            ValueError: If :obj:`data` has fewer users or items than the model,
                or new users and not what the forward pass needs.
        """
        old, model = self.size, copy.deepcopy(self).eval()
        size = grown_size(data, self.edge_type, old)
        model.size = size
        model.num_new_items += size[1] - old[1]
        model._arguments.update(
            num_users=size[0],
            num_items=size[1],
            num_new_items=model.num_new_items,
        )
        pad_(model.preference, size[0])
        pad_(model.offset, size[1])
        model.user_id = pad(model.user_id, size[0])
        model.item_id = pad(model.item_id, size[1])
        if size[0] > old[0]:
            to_user, _ = model.graphs(data).to_user
            xs, weights = model.encode_items(data), model.preference.values()
            for weight, x in zip(weights, xs, strict=True):
                aim_(weight, user_mean(model.conv, x, to_user, size), old[0])
        return model

    def graphs(self, data: HeteroData) -> DualGraph:
        r"""Returns the graphs that the model propagates over, in the layout
        that takes the least time. The same data give the same tensors.

        Raises:
            ValueError: If a graph is missing from :obj:`data`, or is one of
                other users.
        """
        layers = self.num_item_layers + self.num_new_items
        item_edge = self.item_edge if layers > 0 else None
        return self._cache.read(data, self.edge_type, item_edge, self.size)

    def encode_items(self, data: HeteroData) -> list[Tensor]:
        r"""Returns the streams of the items :math:`(I, d)` before they are
        propagated, one for each modality.

        Raises:
            ValueError: If a modality is missing from :obj:`data`, or does not
                fit the model.
        """
        args = (data[self.edge_type[2]], self.in_channels, self.size[1])
        xs: list[Tensor] = self.encoder(read_features(*args))
        if len(self.offset) == 0:
            return xs
        return [
            x + offset
            for x, offset in zip(xs, self.offset.values(), strict=True)
        ]

    def _encode_users(self, profile: Tensor | None) -> Tensor:
        users = [self.preference[f'x_{name}'] for name in self.in_channels]
        if self.gate is not None:
            profiles = cast(Tensor, profile).unbind(dim=1)
            users = [
                torch.addcmul(*streams)
                for streams in zip(users, self.gate, profiles, strict=True)
            ]
        if self.user_id is not None:
            users = [self.user_id, *users]
        return torch.cat(users, dim=-1)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.size[0]}, {self.size[1]}, '
            f'in_channels={self.in_channels}, channels={self.channels})'
        )
