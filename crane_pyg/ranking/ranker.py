r"""Rankings by a trained model and by the relations between items."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce

from crane_pyg._check import check_option, check_size
from crane_pyg._edges import EdgeType, check_edge_type, get_edges
from crane_pyg._mode import evaluation
from crane_pyg._rows import as_index, as_plain, check_candidates, check_shape
from crane_pyg.ranking.blend import (
    Judge,
    choose_weights,
    get_judge,
    make_pool,
    spread,
)
from crane_pyg.ranking.export import save_lists
from crane_pyg.ranking.metrics import RankingMetrics, held_out_pairs
from crane_pyg.ranking.neighborhood import Neighborhood, product_std
from crane_pyg.ranking.relations import get_relations
from crane_pyg.ranking.saved import load_content, save_content
from crane_pyg.ranking.top_k import (
    BARRED,
    Barred,
    Scores,
    TopK,
    blocks,
    check_embeddings,
    check_k,
    join,
    mask_top_k,
)

__all__ = ['Ranker']

RATES: Final = ('user', 'rates', 'item')
NO_HISTORY: Final = ('popularity', 'embedding', 'empty')


class Ranker:
    r"""Ranks items for users by the inner products of embeddings, those of
    any model, and by what the relations between items say of their history.

    .. math::
        y_{ui} = \mathbf{x}_u^{\top} \mathbf{x}_i + \sum_{j \in
        \mathcal{N}(u)} \sum_g \omega_g \frac{\sigma}{\sigma_g} s^{(g)}_{ji}

    The standard deviations of the inner products :math:`\sigma` and of the
    sums of each relation :math:`\sigma_g` let a weight :math:`\omega_g` mean
    the same on all data. :meth:`fit` chooses the weights on validation pairs.

    No item of their history is ranked again. A user without one has
    embeddings for which nothing was learned, and gets popular items instead.

    Args:
        neighborhood (Neighborhood): The history and the relations, see
            :class:`~crane_pyg.ranking.Neighborhood`; their weights there are
            replaced.
        user_emb (torch.Tensor, optional): User embeddings :math:`(U, d)`.
            (default: :obj:`None`, to rank by relations alone)
        item_emb (torch.Tensor, optional): Item embeddings :math:`(I, d)`.
            (default: :obj:`None`)
        weights (dict[str, float], optional): The weights :math:`\omega_g`,
            zero for relations not named. (default: :obj:`1.0` for each)
        candidates (torch.Tensor, optional): If given, the only items that are
            ranked :math:`(C)`. (default: :obj:`None`)
        no_history (str, optional): What users without history get: the items
            of most training pairs (:obj:`"popularity"`), the inner products
            after all (:obj:`"embedding"`) or an :obj:`"empty"` list.
            (default: :obj:`"popularity"`)
        block_size (int, optional): Number of users scored at a time.
            (default: :obj:`1024`)

    Raises:
        ValueError: If embeddings are of other users and items or not finite,
            if an option is unknown or an index out of range.
    """

    def __init__(
        self,
        neighborhood: Neighborhood,
        user_emb: Tensor | None = None,
        item_emb: Tensor | None = None,
        weights: Mapping[str, float] | None = None,
        candidates: object = None,
        no_history: str = 'popularity',
        block_size: int = 1024,
    ) -> None:
        check_option('no_history', no_history, NO_HISTORY)
        check_size(1, block_size=block_size)
        self.size = size = neighborhood.size
        self.neighborhood = neighborhood
        self.no_history, self.block_size = no_history, block_size
        self.history = neighborhood.history.get_edge_index()
        device = self.history.device
        self.user_emb, self.item_emb = as_embeddings(
            user_emb, item_emb, size, device
        )
        self.candidates: Tensor | None = None
        if candidates is not None:
            self.candidates = as_index(
                'candidates', candidates, size[1], device
            )
        self.has_history = neighborhood.history.ptr.diff() > 0
        self.popularity = torch.bincount(self.history[1], minlength=size[1])
        # Without inner products there is nothing to be equal to:
        deviation = float(product_std(self.user_emb, self.item_emb)) or 1.0
        self.scale = {
            name: deviation / value if value > 0.0 else 0.0
            for name, value in spread(neighborhood).items()
        }
        if weights is None:
            weights = dict.fromkeys(neighborhood.relations, 1.0)
        self._set_weights(weights)
        self._warned = False

    def _set_weights(self, weights: Mapping[str, float]) -> None:
        self._weights = self.neighborhood.with_weights(weights).weights
        weights = {g: w * self.scale[g] for g, w in self._weights.items()}
        self.neighborhood = self.neighborhood.only(
            {name: weight for name, weight in weights.items() if weight != 0.0}
        )

    @property
    def weights(self) -> dict[str, float]:
        r"""The weight of each relation, zero for those left out."""
        return dict(self._weights)

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        data: HeteroData,
        user_emb: Tensor | None = None,
        item_emb: Tensor | None = None,
        relations: Sequence[str] | None = None,
        edge_label_index: object = None,
        edge_label: object = None,
        metric: str = 'ndcg@20',
        weights: Mapping[str, float] | None = None,
        edge_type: EdgeType = RATES,
        **kwargs: Any,  # noqa: ANN401
    ) -> 'Ranker':
        r"""Returns a ranker whose weights are chosen on validation pairs, see
        :func:`~crane_pyg.ranking.blend.choose_weights`: all are zero if the
        inner products rank best by themselves.

        Args:
            data (torch_geometric.data.HeteroData): The training pairs and the
                relations, as :class:`~crane_pyg.transforms.BuildDualGraph`
                leaves them.
            user_emb (torch.Tensor, optional): User embeddings :math:`(U, d)`.
                (default: :obj:`None`, to rank by relations alone)
            item_emb (torch.Tensor, optional): Item embeddings :math:`(I, d)`.
                (default: :obj:`None`)
            relations (list[str], optional): The relations to choose from:
                edge types between items, :obj:`"refined"` for the nearest
                neighbors by :obj:`item_emb`, and :obj:`"ease"` for closed-form
                weights of up to 30,000 items. (default: those of
                :obj:`"co_rated"`, :obj:`"similar_to"`, :obj:`"refined"` and
                :obj:`"ease"` that there are)
            edge_label_index (torch.Tensor, optional): The validation pairs
                :math:`(2, P)`. (default: :obj:`val_edge_label_index` of
                :obj:`edge_type`)
            edge_label (torch.Tensor, optional): Marks each of these pairs;
                those marked zero are left out. (default: :obj:`None`)
            metric (str, optional): The metric to choose by.
                (default: :obj:`"ndcg@20"`)
            weights (dict[str, float], optional): The weights, if they are
                known: no pairs are looked at. (default: :obj:`None`)
            edge_type (tuple, optional): The edge type of the training pairs.
                (default: :obj:`('user', 'rates', 'item')`)
            **kwargs: The :obj:`candidates`, :obj:`no_history` and
                :obj:`block_size` of :class:`Ranker`.

        Raises:
            ValueError: If validation pairs or a relation that is named are
                missing, if the metric is unknown, or if anything else is out
                of its range.
        """
        edge_type = check_edge_type(edge_type)
        store, num_users, num_items = get_edges(data, edge_type)
        history = as_plain(store.edge_index).long()
        if user_emb is not None:
            history = history.to(user_emb.device)
        size = (num_users, num_items)
        history = coalesce(history, num_nodes=max(size))
        out = cls(Neighborhood(history, {}, size), user_emb, item_emb, **kwargs)
        if weights is not None and relations is None:
            relations = list(weights)
        judge = None
        if weights is None and (relations is None or len(relations) > 0):
            if edge_label_index is None:
                edge_label_index = store.get('val_edge_label_index')
            judge = get_judge(
                out.neighborhood,
                edge_label_index,
                edge_label,
                metric,
                out.candidates,
            )
        graphs = get_relations(
            data, relations, out.item_emb, history, size, edge_type[2], judge
        )
        if len(graphs) == 0:
            return out
        out = cls(
            Neighborhood(history, graphs, size), user_emb, item_emb, **kwargs
        )
        if judge is not None:
            weights = out._choose_weights(judge)
        out._set_weights(weights or {})
        return out

    @classmethod
    @torch.no_grad()
    def from_model(
        cls,
        model: Module,
        data: HeteroData,
        **kwargs: Any,  # noqa: ANN401
    ) -> 'Ranker':
        r"""Returns :meth:`fit` of the embeddings of users and items that a
        model returns first, in evaluation mode.

        Args:
            model (torch.nn.Module): Called as :obj:`model(data)`.
            data (torch_geometric.data.HeteroData): As in :meth:`fit`.
            **kwargs: Other arguments of :meth:`fit`.
        """
        with evaluation(model):
            user_emb, item_emb = model(data)[:2]
        return cls.fit(data, user_emb, item_emb, **kwargs)

    def _choose_weights(self, judge: Judge) -> dict[str, float]:
        pool = make_pool(
            self.user_emb, self.item_emb, self.neighborhood, self.scale, judge
        )
        weights = choose_weights(pool, judge)
        return dict(zip(self.scale, weights, strict=True))

    def _scores(self, users: Tensor) -> Scores:
        r"""Yields blocks of users and their scores of all items."""
        popularity = self.popularity.to(torch.float)
        for index, score in blocks(
            self.user_emb,
            self.item_emb,
            users,
            self.block_size,
            self.neighborhood,
        ):
            if self.no_history != 'embedding':
                row = (~self.has_history[index]).nonzero().view(-1)
                popular = self.no_history == 'popularity'
                value = popularity.to(score.dtype) if popular else BARRED
                score[row, : self.size[1]] = value
            yield index, score

    def _tops(
        self,
        users: Tensor,
        k: int,
        exclude_seen: bool = True,
        candidates: object = None,
    ) -> Iterator[TopK]:
        r"""Yields the lists of blocks of users."""
        check_k(k, self.size[1])
        exclude = self.history if exclude_seen else None
        if candidates is None:
            candidates = self.candidates
        barred = Barred(exclude, candidates, self.size, users.device)
        for index, score in self._scores(users):
            yield mask_top_k(index, score, k, barred)

    def _get_users(self, user_index: object) -> Tensor:
        device = self.history.device
        if user_index is None:
            users = torch.arange(self.size[0], device=device)
        else:
            users = as_index('user_index', user_index, self.size[0], device)
        num = int((~self.has_history[users]).sum())
        if num > 0 and self.no_history == 'popularity' and not self._warned:
            self._warned = True
            warnings.warn(
                f'{num} of {users.numel()} users have no history and get the '
                "most popular items; 'no_history' chooses what they get",
                stacklevel=3,
            )
        return users

    @torch.no_grad()
    def top_k(
        self,
        k: int = 20,
        user_index: object = None,
        exclude_seen: bool = True,
        candidates: object = None,
    ) -> TopK:
        r"""Returns the :math:`k` items of highest score for each user.

        Args:
            k (int, optional): Number of items a user. (default: :obj:`20`)
            user_index (torch.Tensor, optional): The users :math:`(B)`, or all.
                (default: :obj:`None`)
            exclude_seen (bool, optional): If set to :obj:`False`, items of
                their history are ranked as well. (default: :obj:`True`)
            candidates (torch.Tensor, optional): The only items ranked, in
                place of those of the ranker. (default: :obj:`None`)

        Raises:
            ValueError: If :math:`k` or an index is out of its range.
        """
        users = self._get_users(user_index)
        return join(self._tops(users, k, exclude_seen, candidates))

    def recommend(
        self,
        user_index: object = None,
        k: int = 20,
        exclude_seen: bool = True,
        candidates: object = None,
    ) -> Tensor:
        r"""Returns the indices :math:`(B, k)` of :meth:`top_k`."""
        return self.top_k(k, user_index, exclude_seen, candidates).index

    @torch.no_grad()
    def evaluate(
        self,
        edge_label_index: object,
        metrics: Sequence[str] = ('recall', 'ndcg'),
        ks: Sequence[int] | int = (10, 20),
        edge_label: object = None,
        candidates: object = None,
    ) -> dict[str, float]:
        r"""Ranks all items but those of the history for every user that has a
        held-out item, as :func:`~crane_pyg.ranking.evaluate` does.

        Users without history are reported apart: their metrics are called
        :obj:`"no_history/recall@10"` and so on, and their number
        :obj:`"no_history/num_users"`. Either kind is missing from the result
        if there are no such users.

        Args:
            edge_label_index (torch.Tensor): The held-out pairs :math:`(2, P)`.
            metrics (list[str], optional): The metrics.
                (default: :obj:`('recall', 'ndcg')`)
            ks (list[int], optional): The lengths of the lists, or the only
                one. (default: :obj:`(10, 20)`)
            edge_label (torch.Tensor, optional): Marks each of these pairs;
                those marked zero are left out. (default: :obj:`None`)
            candidates (torch.Tensor, optional): The only items ranked, in
                place of those of the ranker. (default: :obj:`None`)

        Raises:
            ValueError: If there is no held-out pair, or one of an item that is
                no candidate, if a metric is unknown, or if an argument is out
                of its range.
        """
        device, out = self.history.device, {}
        pairs = held_out_pairs(edge_label_index, edge_label, self.size, device)
        if candidates is None:
            candidates = self.candidates
        if candidates is not None:
            candidates = as_index(
                'candidates', candidates, self.size[1], device
            )
            check_candidates('edge_label_index[1]', pairs[1], candidates)
        known = self.has_history[pairs[0]]
        for prefix, part in [
            ('', pairs[:, known]),
            ('no_history/', pairs[:, ~known]),
        ]:
            ranking = RankingMetrics(self.size, part, metrics, ks)
            users = part[0].unique()
            if users.numel() == 0:
                continue
            tops = self._tops(users, ranking.k, candidates=candidates)
            for index, top in zip(
                users.split(self.block_size), tops, strict=True
            ):
                ranking.update(index, top.index)
            for name, value in ranking.compute().items():
                out[f'{prefix}{name}'] = value
            if prefix:
                out[f'{prefix}num_users'] = float(users.numel())
        return out

    @torch.no_grad()
    def export(self, path: str | Path, k: int = 20) -> None:
        r"""Writes the :meth:`top_k` items of all users to a file.

        The end of its name tells the format:

        * :obj:`.npy` is a matrix of item indices :math:`(U, k)`, :obj:`-1`
          where a user has fewer than :math:`k` items left.
        * :obj:`.parquet` is a table of the columns :obj:`user`, :obj:`rank`
          (from one), :obj:`item` and :obj:`score`, sorted by the first two. A
          user with fewer than :math:`k` items left has fewer rows.

        Args:
            path (str): The file, which gets its name once it is complete.
            k (int, optional): Number of items a user. (default: :obj:`20`)

        Raises:
            ImportError: If :obj:`pyarrow`, which Parquet needs, is missing.
            ValueError: If the name has another end, or :math:`k` is out of its
                range.
        """
        check_k(k, self.size[1])
        users = self._get_users(None)
        save_lists(path, self._tops(users, k), (self.size[0], int(k)))

    def save(self, path: str | Path) -> None:
        r"""Saves the ranker in one file that loads without running code.

        Args:
            path (str): The file, which gets its name once it is complete.
        """
        content = {
            'user_emb': self.user_emb,
            'item_emb': self.item_emb,
            'weights': self._weights,
            'scale': self.scale,
            'candidates': self.candidates,
            'no_history': self.no_history,
            'block_size': self.block_size,
        }
        save_content(path, self.neighborhood, content)

    @classmethod
    def load(
        cls, path: str | Path, map_location: torch.device | str = 'cpu'
    ) -> 'Ranker':
        r"""Loads a ranker that :meth:`save` left.

        Args:
            path (str): The file.
            map_location (torch.device, optional): Where to put its tensors.
                (default: :obj:`"cpu"`)

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or no ranker.
        """
        return load_content(path, map_location, cls._build)

    @classmethod
    def _build(cls, near: Neighborhood, content: dict[str, Any]) -> 'Ranker':
        weights, scale = content.pop('weights'), content.pop('scale')
        out = cls(near, **content)
        out._weights, out.scale = dict(weights), dict(scale)
        out.neighborhood = near.only(
            {g: weights[g] * scale[g] for g in near.relations}
        )
        return out

    def check(self, data: HeteroData, edge_type: EdgeType = RATES) -> None:
        r"""Refuses other data than those of the ranker.

        Args:
            data (torch_geometric.data.HeteroData): The training pairs.
            edge_type (tuple, optional): Their edge type.
                (default: :obj:`('user', 'rates', 'item')`)

        Raises:
            ValueError: If the numbers of users and items or the training pairs
                differ.
        """
        store, *size = get_edges(data, edge_type)
        if tuple(size) != self.size:
            raise ValueError(
                f"'data' needs to have the {self.size} users and items of the "
                f'ranker (got {tuple(size)})'
            )
        history = as_plain(store.edge_index).to(self.history)
        history = coalesce(history, num_nodes=max(size))
        if not torch.equal(history, coalesce(self.history)):
            raise ValueError(
                f"'data' needs to hold the {self.history.size(1)} training "
                f'pairs of the ranker (got {history.size(1)}, or others)'
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_users={self.size[0]}, '
            f'num_items={self.size[1]}, weights={self._weights}, '
            f"no_history='{self.no_history}')"
        )


def as_embeddings(
    user_emb: Tensor | None,
    item_emb: Tensor | None,
    size: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    r"""Returns checked embeddings, of no channels if there are none."""
    if user_emb is None and item_emb is None:
        user, item = (torch.empty(n, 0, device=device) for n in size)
        return user, item
    if user_emb is None or item_emb is None:
        raise ValueError("'user_emb' and 'item_emb' need to come together")
    embs = [x.detach() for x in (user_emb, item_emb)]
    for name, x, num in zip(('user_emb', 'item_emb'), embs, size, strict=True):
        check_shape(name, x, num, x.size(-1))
    check_embeddings(*embs)
    return embs[0], embs[1]
