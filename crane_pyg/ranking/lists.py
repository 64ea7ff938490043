r"""Lists of items by embeddings and by the relations between items."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from crane_pyg._check import check_option, check_size
from crane_pyg._held_out import IN_TRAINING
from crane_pyg._rows import as_index, check_candidates, check_shape
from crane_pyg.ranking.blend import spread
from crane_pyg.ranking.export import save_lists
from crane_pyg.ranking.metrics import (
    RankingMetrics,
    held_out_pairs,
    without_seen,
)
from crane_pyg.ranking.neighborhood import Neighborhood, product_std
from crane_pyg.ranking.top_k import (
    BARRED,
    Barred,
    Scores,
    TopK,
    as_k,
    blocks,
    check_embeddings,
    join,
    mask_top_k,
)

NO_HISTORY: Final = ('popularity', 'embedding', 'empty')


class Lists:
    r"""The scores of a ranker, and the lists that come of them; its arguments
    are those of :class:`~crane_pyg.ranking.Ranker`.
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
                'candidates', candidates, size[1], device, ordered=False
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
        used = {name: w for name, w in self._weights.items() if w != 0.0}
        self.neighborhood = self.neighborhood.only(
            {name: w * self.scale[name] for name, w in used.items()}
        )

    @property
    def weights(self) -> dict[str, float]:
        r"""The weight of each relation, zero for those left out."""
        return dict(self._weights)

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
        k = as_k(k, self.size[1])
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
        ks: object = (10, 20),
        edge_label: object = None,
        candidates: object = None,
    ) -> dict[str, float]:
        r"""Ranks all items but those of the history for every user that has a
        held-out item, as :func:`~crane_pyg.ranking.evaluate` does.

        Held-out pairs that are training pairs as well are left out, which a
        :class:`UserWarning` counts.
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
                'candidates', candidates, self.size[1], device, ordered=False
            )
            check_candidates('edge_label_index[1]', pairs[1], candidates)
        pairs = without_seen(pairs, self.history, IN_TRAINING, self.size)
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
        k = as_k(k, self.size[1])
        users = self._get_users(None)
        save_lists(path, self._tops(users, k), (self.size[0], k))


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
