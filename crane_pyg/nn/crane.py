from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Final, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, ModuleDict, Parameter, ParameterDict
from torch_geometric.data import HeteroData
from torch_geometric.nn.inits import ones, reset, zeros
from torch_geometric.nn.models.lightgcn import BPRLoss
from torch_geometric.utils import degree

from crane_pyg._check import (
    check_finite,
    check_fraction,
    check_least,
    check_option,
    check_size,
)
from crane_pyg._edges import check_edge_type, get_graph
from crane_pyg._mode import evaluation
from crane_pyg._rows import HALF, as_plain, check_shape
from crane_pyg.nn.conv import CRANEConv
from crane_pyg.nn.extend import extend, lend
from crane_pyg.nn.features import FeatureCache
from crane_pyg.nn.loss import hardest_negative, info_nce_loss
from crane_pyg.nn.pretrained import PretrainedMixin
from crane_pyg.nn.propagate import Graph, propagate
from crane_pyg.nn.rca import MODES, RCA
from crane_pyg.ranking.metrics import evaluate_each
from crane_pyg.ranking.neighborhood import REFINED, WEIGHT, Neighborhood
from crane_pyg.ranking.top_k import top_k

PROFILES: Final = ('input', 'contrast', None)


class CRANEOutput(NamedTuple):
    r"""What :class:`CRANE` returns: the embeddings whose inner product ranks
    items for users; the profiles of the users, summed over the modalities, if
    the model has any; and the semantic views of the users and of the items,
    what the item graph adds to their embeddings, if there is one.
    """

    user: Tensor
    item: Tensor
    profile: Tensor | None = None
    user_semantic: Tensor | None = None
    item_semantic: Tensor | None = None


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

    Features in half precision are projected in it, which saves half of their
    memory and, where the hardware multiplies :obj:`bfloat16`, most of the time
    that wide ones take. A further stream holds the ID embeddings. All streams,
    side by side, are propagated over both graphs, which gives a behavior view
    :math:`\mathbf{B}` and a semantic view :math:`\mathbf{N}` of users and
    items, whose sum embeds them:

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
    see :class:`~crane_pyg.transforms.BuildDualGraph`. Items are ranked by

    .. math::
        \hat{r}_{ui} = \mathbf{x}_u^{\top} \mathbf{x}_i + c \, \sigma
        \sum_{j \in \mathcal{N}(u)} \sum_g \omega_g s^{(g)}_{ji}

    where :math:`\sigma` is the standard deviation of the inner products of all
    users and items. The second part, see :meth:`neighborhood`, takes no part in
    training; its factor :math:`c` is the buffer :obj:`neighbor_scale`, one
    unless :meth:`tune_neighborhood` finds a better one.

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
        neighbor_weights (dict[str, float], optional): The relations between
            items whose edges add to the scores, and their weights
            :math:`\omega_g`; empty for none. The edges of :obj:`"refined"`
            are those of nearest neighbors by the embeddings of the model.
            (default: :obj:`9.0` for each of :obj:`"co_rated"`,
            :obj:`item_edge` and :obj:`"refined"`)
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
        neighbor_weights: dict[str, float] | None = None,
        num_new_items: int = 0,
        neighbor_share: float = 0.8,
    ) -> None:
        super().__init__()
        _check_modalities(in_channels)
        check_size(
            1,
            num_users=num_users,
            num_items=num_items,
            channels=channels,
            num_steps=num_steps,
        )
        check_size(
            0,
            num_layers=num_layers,
            num_item_layers=num_item_layers,
            num_new_items=num_new_items,
        )
        check_size(
            1, **{'num_items - num_new_items': num_items - num_new_items}
        )
        check_option('profile', profile, PROFILES)
        check_option('mode', mode, (*MODES, None))
        check_fraction('dropout', dropout)
        if not 0 <= neighbor_share <= 1:
            raise ValueError(
                f"'neighbor_share' needs to be in [0, 1] (got {neighbor_share})"
            )

        self.num_users = num_users
        self.num_items = num_items
        self.num_new_items = num_new_items
        self.neighbor_share = neighbor_share
        self.in_channels = dict(in_channels)
        self.channels = channels
        self.num_layers = num_layers
        self.num_item_layers = num_item_layers
        self.profile = profile
        self.dropout = dropout
        self.size = (num_users, num_items)
        self.edge_type = check_edge_type(edge_type)
        self.item_edge = item_edge
        if neighbor_weights is None:
            relations = ('co_rated', item_edge, REFINED)
            neighbor_weights = dict.fromkeys(relations, WEIGHT)
        for relation, weight in neighbor_weights.items():
            check_finite(f"neighbor_weights['{relation}']", weight)
        self.neighbor_weights = dict(neighbor_weights)

        # Prefixed, as modules reserve names such as 'training' and 'keys':
        self.encoder = ModuleDict(
            {
                f'x_{name}': Linear(size, channels)
                for name, size in in_channels.items()
            }
        )
        self.preference = ParameterDict(
            {
                f'x_{name}': torch.empty(num_users, channels)
                for name in in_channels
            }
        )
        self.offset = ParameterDict()
        self.user_id: Parameter | None = None
        self.item_id: Parameter | None = None
        if use_id:
            for name in in_channels:
                offset = torch.empty(num_items, channels)
                self.offset[f'x_{name}'] = offset
            self.user_id = Parameter(torch.empty(num_users, channels))
            self.item_id = Parameter(torch.empty(num_items, channels))
        self.gate: Parameter | None = None
        if profile == 'input':
            self.gate = Parameter(torch.empty(len(in_channels)))
        self.rca: RCA | None = None
        if mode is not None and len(in_channels) > 1:
            self.rca = RCA(channels, len(in_channels), num_steps, mode)
        self.neighbor_scale: Tensor
        self.register_buffer('neighbor_scale', torch.empty(()))
        self._features = FeatureCache()
        # Abstract to mypy only, as every layer of PyG is:
        self.conv = CRANEConv(normalize=False)  # type: ignore[abstract]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module, and the factor of
        the neighborhood.
        """
        reset(self.encoder)
        if self.rca is not None:
            self.rca.reset_parameters()
        tables = (*self.preference.values(), *self.offset.values())
        for weight in (*tables, self.user_id, self.item_id):
            if weight is not None:
                torch.nn.init.xavier_uniform_(weight)
        zeros(self.gate)
        ones(self.neighbor_scale)

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
        to_item, to_user, *to_similar = self._graphs(data)
        item_in = torch.cat(self._encode_items(data), dim=-1)
        profile = None
        if self.profile is not None:
            profile = self._by_modality(self._profile(item_in, to_user[0]))
        user_in = self._encode_users(profile)
        if self.item_id is not None:
            item_in = torch.cat([self.item_id, item_in], dim=-1)

        user, item = propagate(
            self.conv, user_in, item_in, to_item, to_user, self.num_layers
        )
        user_near, item_near = None, None
        if self.num_item_layers > 0:
            item_near = item_in
            for _ in range(self.num_item_layers):
                item_near = self.conv((item_near, None), *to_similar[0])
            user_near = self.conv(
                (item_near, None), *to_user, size=self.size[::-1]
            )
            user, item = user + user_near, item + item_near
        if self.num_new_items > 0:
            new = (self.num_new_items, self.neighbor_share)
            item = lend(item, *to_similar[0], *new)
            if item_near is not None:
                item_near = lend(item_near, *to_similar[0], *new)
        total = None if profile is None else profile.sum(dim=1)
        return CRANEOutput(user, item, total, user_near, item_near)

    def loss(
        self,
        out: CRANEOutput,
        user_index: Tensor,
        pos_index: Tensor,
        neg_index: Tensor,
        lambda_reg: float = 3e-2,
        contrast_weight: float = 1e-2,
        temperature: float = 0.2,
        contrast_size: int = 1024,
    ) -> Tensor:
        r"""The objective of a mini-batch of training pairs.

        .. math::
            \mathcal{L} = \mathcal{L}_{\text{BPR}} + \frac{\lambda}{B}
            \sum_{(u, i)} \left( \| \mathbf{x}_u \|^2 +
            \| \mathbf{x}_i \|^2 \right) + \lambda_c
            \left( \mathcal{L}_{\text{InfoNCE}}(\mathcal{U}) +
            \mathcal{L}_{\text{InfoNCE}}(\mathcal{I}) \right)

        BPR takes the negative that scores highest among those given. InfoNCE
        compares the behavior view and the semantic view of the users and of
        the items of the mini-batch; with :obj:`profile="contrast"`, it is the
        profiles that the modalities of the users' behavior view, summed, are
        compared with.

        Args:
            out (CRANEOutput): The output of the forward pass.
            user_index (torch.Tensor): The users :math:`(B)`.
            pos_index (torch.Tensor): Their items :math:`(B)`.
            neg_index (torch.Tensor): Items that are not theirs :math:`(B, S)`
                or :math:`(B)`.
            lambda_reg (float, optional): The :math:`L_2` regularization
                strength :math:`\lambda` of the users and of their items.
                (default: :obj:`3e-2`)
            contrast_weight (float, optional): :math:`\lambda_c`; :obj:`0`
                leaves the contrastive objective out. (default: :obj:`1e-2`)
            temperature (float, optional): The temperature of InfoNCE.
                (default: :obj:`0.2`)
            contrast_size (int, optional): The number of pairs InfoNCE takes,
                the first of the mini-batch; its cost grows with the square.
                (default: :obj:`1024`)

        Raises:
            ValueError: If there is no pair, if items are of another shape,
                if a value is out of its range, or if there is an objective for
                views, and the model has no layer over the item graph.
        """
        check_least(
            0,
            lambda_reg=lambda_reg,
            contrast_weight=contrast_weight,
        )
        check_size(1, contrast_size=contrast_size)
        num_pairs = user_index.numel()
        check_least(1, **{'len(user_index)': num_pairs})
        check_shape('pos_index', pos_index, num_pairs)
        if neg_index.dim() == 1:
            neg_index = neg_index.unsqueeze(1)
        num_samples = max(neg_index.size(-1), 1)
        check_shape('neg_index', neg_index, num_pairs, num_samples)
        user = F.embedding(user_index, out.user)
        neg_index = hardest_negative(user, out.item, neg_index)
        pos, neg = F.embedding(torch.stack([pos_index, neg_index]), out.item)
        loss: Tensor = BPRLoss(lambda_reg)(
            (user * pos).sum(dim=-1),
            (user * neg).sum(dim=-1),
            torch.cat([user, pos]),
        )
        if contrast_weight > 0:
            n = contrast_size
            index = user_index[:n], pos_index[:n]
            views = self._views(out, *index, user[:n], pos[:n])
            loss = loss + contrast_weight * sum(
                info_nce_loss(*pair, temperature, nodes)
                for pair, nodes in zip(views, index, strict=True)
            )
        return loss

    def _views(
        self,
        out: CRANEOutput,
        user_index: Tensor,
        item_index: Tensor,
        user: Tensor,
        item: Tensor,
    ) -> list[tuple[Tensor, Tensor]]:
        r"""Returns the behavior view and the semantic view of some users, and
        those of some items, from their embeddings.
        """
        if out.user_semantic is None or out.item_semantic is None:
            raise ValueError(
                'The semantic view needs the item graph (got '
                "'num_item_layers=0'); 'contrast_weight=0' leaves out the "
                'objective that compares it'
            )
        user_near = F.embedding(user_index, out.user_semantic)
        item_near = F.embedding(item_index, out.item_semantic)
        user, item = user - user_near, item - item_near
        if self.profile == 'contrast':
            # IDs have no profile, and stand before the modalities:
            size = len(self.in_channels) * self.channels
            user = self._by_modality(user[:, -size:]).sum(dim=1)
            user_near = F.embedding(user_index, cast(Tensor, out.profile))
        return [(user, user_near), (item, item_near)]

    @torch.no_grad()
    def neighborhood(
        self, data: HeteroData, out: CRANEOutput
    ) -> Neighborhood | None:
        r"""Returns what the edges from the items of a user add to the scores,
        or :obj:`None` if nothing.

        Args:
            data (torch_geometric.data.HeteroData): As in the forward pass,
                with the edges of all relations in :obj:`neighbor_weights`.
            out (CRANEOutput): The output of the forward pass, whose items
                become the graph of the relation :obj:`"refined"`.

        Raises:
            ValueError: If a relation is missing from :obj:`data`.
        """
        if not self._has_neighborhood():
            return None
        near = self._neighborhood(data, out)
        return near.scaled(float(self.neighbor_scale))

    @torch.no_grad()
    def tune_neighborhood(
        self,
        data: HeteroData,
        out: CRANEOutput,
        edge_label_index: Tensor,
        factors: Sequence[float] = (0.0, 1.0),
        ks: Sequence[int] = (10, 20),
    ) -> dict[str, float]:
        r"""Sets the factor of the neighborhood, :obj:`neighbor_scale`, to that
        which ranks held-out pairs best, as a rule those of validation, and
        returns their metrics, see :func:`~crane_pyg.ranking.evaluate`.

        Direct edges between items help where these are many and users' items
        are few. Where the embeddings say all that the edges do, these add
        nothing but noise: by default, they count as
        :obj:`neighbor_weights` says, or not at all.

        Args:
            data (torch_geometric.data.HeteroData): As in :meth:`neighborhood`.
                The pairs of its user-item graph are left out of the ranking.
            out (CRANEOutput): The output of the forward pass.
            edge_label_index (torch.Tensor): The held-out pairs :math:`(2, P)`.
            factors (list[float], optional): The factors :math:`c` to choose
                from. The first wins a draw. (default: :obj:`(0.0, 1.0)`)
            ks (list[int], optional): The lengths of the lists; the NDCG of
                the longest decides, as it counts the places as well.
                (default: :obj:`(10, 20)`)

        Raises:
            ValueError: If there is no factor or no held-out pair, if an
                argument is out of its range, or if a relation is missing from
                :obj:`data`.
        """
        check_least(1, **{'len(factors)': len(factors)})
        for factor in factors:
            check_finite('factors', factor)
        near = self._neighborhood(data, out)
        if len(self.neighbor_weights) == 0:  # All factors rank alike.
            factors = factors[:1]
        metrics = evaluate_each(
            out.user,
            out.item,
            edge_label_index,
            data[self.edge_type].edge_index,
            ks,
            [
                None if factor == 0 else near.scaled(factor)
                for factor in factors
            ],
        )
        ndcgs = [metric[f'ndcg@{max(ks)}'] for metric in metrics]
        best = ndcgs.index(max(ndcgs))
        self.neighbor_scale.fill_(factors[best])
        return metrics[best]

    def _has_neighborhood(self) -> bool:
        return len(self.neighbor_weights) > 0 and bool(self.neighbor_scale)

    def _neighborhood(self, data: HeteroData, out: CRANEOutput) -> Neighborhood:
        embs = (out.user, out.item)
        return Neighborhood.from_embeddings(
            data, *embs, self.neighbor_weights, self.edge_type
        )

    @torch.no_grad()
    def recommend(
        self,
        data: HeteroData,
        user_index: Tensor | Sequence[int] | None = None,
        k: int = 20,
        exclude_seen: bool = True,
        candidates: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        r"""Returns the top-:math:`k` items of each user, see
        :func:`~crane_pyg.ranking.top_k`.

        Args:
            data (torch_geometric.data.HeteroData): As in the forward pass.
            user_index (torch.Tensor, optional): The users :math:`(B)`, or
                all. (default: :obj:`None`)
            k (int, optional): The number of items. (default: :obj:`20`)
            exclude_seen (bool, optional): If set to :obj:`False`, may return
                the items a user has in the graph. (default: :obj:`True`)
            candidates (torch.Tensor, optional): If given, the only items that
                may be returned, *e.g.*, new ones :math:`(C)`.
                (default: :obj:`None`)

        Returns:
            torch.Tensor: Item indices :math:`(B, k)`, best first.
        """
        with evaluation(self):
            out = self(data)
        seen = data[self.edge_type].edge_index if exclude_seen else None
        return top_k(
            out.user,
            out.item,
            k,
            user_index,
            seen,
            neighbors=self.neighborhood(data, out),
            candidates=candidates,
        )

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
        message of the item graph, the IDs of its neighbors included. No user
        sends it anything, before :func:`~crane_pyg.transforms.attach_users`
        brings users that had it. In place of that, it is mixed with the
        embeddings of its neighbors among the other items
        :math:`\mathcal{N}(i)`, if any:

        .. math::
            \mathbf{x}_i \leftarrow (1 - \lambda) \, \mathbf{x}_i + \lambda
            \sum_{j \in \mathcal{N}(i)}
            \frac{s_{ji}}{\sum_{j^{\prime}} s_{j^{\prime} i}} \, \mathbf{x}_j

        A new item without any modality has the embedding zero: for every user,
        its score is zero, neither that of a popular item nor of an unpopular
        one.

        Args:
            data (torch_geometric.data.HeteroData): As in the forward pass, the
                new users and items last.

        Raises:
            ValueError: If :obj:`data` has fewer users or items than the model,
                or new users and not what the forward pass needs.
        """
        return extend(self, data)

    def _graphs(self, data: HeteroData) -> list[Graph]:
        user, relation, item = self.edge_type
        graphs = [
            get_graph(data, self.edge_type),
            get_graph(data, (item, f'rev_{relation}', user)),
        ]
        if self.num_item_layers > 0 or self.num_new_items > 0:
            graphs.append(get_graph(data, (item, self.item_edge, item)))
        if data[user].num_nodes != self.num_users:
            raise ValueError(
                f"'data' needs to have {self.num_users} nodes of type "
                f"'{user}' (got {data[user].num_nodes})"
            )
        return graphs

    def _encode_items(self, data: HeteroData) -> list[Tensor]:
        xs, masks = [], []
        for name, size in self.in_channels.items():
            x = data[self.edge_type[2]].get(f'x_{name}')
            if x is None or tuple(x.size()) != (self.num_items, size):
                raise ValueError(
                    f"'x_{name}' needs to be of shape "
                    f'{[self.num_items, size]} '
                    f'(got {None if x is None else list(x.size())})'
                )
            x, mask, scale = self._features(f'x_{name}', x, self._precision(x))
            x = F.dropout(x, self.dropout, self.training)
            x = self._project(name, x, scale)
            xs.append(x if mask is None else x * mask.unsqueeze(-1))
            masks.append(mask)
        if self.rca is not None:
            xs = self.rca(xs, _fill_masks(xs, masks))
        if len(self.offset) == 0:
            return xs
        return [
            x + offset
            for x, offset in zip(xs, self.offset.values(), strict=True)
        ]

    def _precision(self, x: Tensor) -> torch.dtype:
        r"""Half precision stays; all other features take that of the model."""
        return x.dtype if x.dtype in HALF else next(self.parameters()).dtype

    def _project(self, name: str, x: Tensor, scale: Tensor) -> Tensor:
        linear = cast(Linear, self.encoder[f'x_{name}'])
        weight, bias = linear.weight, linear.bias
        # Unless autocast says otherwise:
        half = x.dtype != weight.dtype
        with torch.autocast(x.device.type, x.dtype) if half else nullcontext():
            x = F.linear(x, weight).to(weight.dtype)
        return torch.addcmul(bias, x, scale.to(x.dtype))

    def _profile(self, x: Tensor, to_user: Tensor) -> Tensor:
        user = as_plain(to_user)[1]
        weight = degree(user, self.num_users).clamp(min=1).reciprocal()[user]
        size = self.size[::-1]
        out: Tensor = self.conv((x, None), to_user, weight, size=size)
        return out

    def _by_modality(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1, self.channels)

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
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'in_channels={self.in_channels}, channels={self.channels})'
        )


def _check_modalities(in_channels: Mapping[str, int]) -> None:
    if not isinstance(in_channels, Mapping) or len(in_channels) == 0:
        raise ValueError(
            f"'in_channels' needs to hold the feature size of at least one "
            f'modality by its name (got {in_channels})'
        )
    for name, size in in_channels.items():
        check_size(1, **{f"in_channels['{name}']": size})
        if not isinstance(name, str) or '.' in name:  # As no module's.
            raise ValueError(
                f"'in_channels' needs to hold names without dots (got {name!r})"
            )


def _fill_masks(
    xs: list[Tensor], masks: list[Tensor | None]
) -> list[Tensor] | None:
    r"""Returns no masks at all if there is none."""
    if all(mask is None for mask in masks):
        return None
    return [
        x.new_ones(x.size(0), dtype=torch.bool) if mask is None else mask
        for x, mask in zip(xs, masks, strict=True)
    ]
