r"""Rankings by a trained model and by the relations between items."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce

from crane_pyg._edges import EdgeType, check_edge_type, get_edges
from crane_pyg._mode import evaluation
from crane_pyg._rows import as_plain
from crane_pyg.ranking.blend import (
    Judge,
    choose_weights,
    get_judge,
    make_pool,
)
from crane_pyg.ranking.lists import Lists
from crane_pyg.ranking.neighborhood import Neighborhood
from crane_pyg.ranking.relations import get_relations
from crane_pyg.ranking.saved import load_content, save_content

__all__ = ['Ranker']

RATES: Final = ('user', 'rates', 'item')


class Ranker(Lists):
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

    l2: float | None = None

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
        l2: float | None = None,
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
                known: no pairs are looked at. For candidates that nobody
                interacted with, take those of a ranker of all items.
                (default: :obj:`None`)
            l2 (float, optional): The regularization of :obj:`"ease"`; the
                ranker keeps it as :obj:`l2`. (default: chosen on validation
                pairs for up to 3,000 items, and for more as in
                :func:`~crane_pyg.ranking.relations.default_l2`)
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
        if weights is not None:
            weights = {g: weight for g, weight in weights.items() if weight}
            relations = list(weights) if relations is None else relations
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
        graphs, l2 = get_relations(
            data, relations, out.item_emb, history, size, edge_type, judge, l2
        )
        if len(graphs) == 0:
            return out
        out = cls(
            Neighborhood(history, graphs, size), user_emb, item_emb, **kwargs
        )
        out.l2 = l2
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
            'l2': self.l2,
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
        l2 = content.pop('l2')
        out = cls(near, **content)
        out._weights, out.scale, out.l2 = dict(weights), dict(scale), l2
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
