r"""What a model is trained on, and what it is validated by."""

import hashlib

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import EdgeStorage

import crane_pyg.transforms as T
from crane_pyg._edges import EdgeType, check_edge_type, get_edges
from crane_pyg._held_out import IN_TRAINING, NO_HISTORY, are_among, leave_out
from crane_pyg._rows import as_pairs, as_plain, as_positive
from crane_pyg.ranking.metrics import evaluate
from crane_pyg.training.recipe import Recipe, parse_metric
from crane_pyg.training.sampling import UnseenItems, warn_of_full

KS = (10, 20)  # Lengths of lists that are shown, whichever one chooses.


class Problem:
    r"""The training pairs, what an epoch makes of them, and validation.

    Args:
        data (torch_geometric.data.HeteroData): Pairs and graphs.
        edge_type (tuple): The edge type of the pairs, from users to items.
        recipe (Recipe): How they are trained on.
    """

    def __init__(
        self, data: HeteroData, edge_type: EdgeType, recipe: Recipe
    ) -> None:
        if not isinstance(data, HeteroData):
            raise ValueError(
                f"'data' needs to be 'HeteroData' (got {type(data).__name__})"
            )
        self.data, self.recipe = data, recipe
        self.edge_type = check_edge_type(edge_type)
        store, *size = get_edges(data, self.edge_type)
        self.size = (size[0], size[1])
        self.pairs = as_plain(store.edge_index).long()
        self.device = self.pairs.device
        self.unseen = UnseenItems(self.pairs, size[1])
        self.num_full = self.unseen.num_full
        self._check_pairs()
        self.drop_edges = T.DegreeDropEdges(
            recipe.edge_dropping, self.edge_type
        )
        self.held_out = self._get_held_out(store)

    def _check_pairs(self) -> None:
        if self.unseen.user.numel() == self.num_full:
            raise ValueError(
                f"'edge_index' of {self.edge_type} needs to hold a training "
                f'pair of a user that does not have all items '
                f'(got {self.pairs.size(1)} pairs)'
            )
        warn_of_full(self.num_full, self.size[1], stacklevel=6)

    def _get_held_out(self, store: EdgeStorage) -> Tensor | None:
        pairs = get_held_out(store, 'val', self.size)
        if pairs is not None:
            pairs = self._findable(pairs)
        if pairs is None or pairs.size(1) == 0:
            if self.recipe.patience is None:
                return None
            raise ValueError(
                f"'val_edge_label_index' of {self.edge_type} needs to hold "
                f'pairs of users with training pairs, and others than these, '
                f'for early stopping, '
                f"which 'patience=None' does without (got "
                f'{0 if pairs is None else list(pairs.shape)})'
            )
        k = parse_metric(self.recipe.metric)[1]
        if k > self.size[1]:
            raise ValueError(
                f"'metric' needs a k of at most {self.size[1]}, the number of "
                f"items (got '{self.recipe.metric}')"
            )
        return pairs

    def _findable(self, pairs: Tensor) -> Tensor:
        reasons = {
            NO_HISTORY: ~torch.isin(pairs[0], self.unseen.user),
            IN_TRAINING: are_among(pairs, self.pairs, self.size[1]),
        }
        return leave_out('val_edge_label_index', pairs, reasons, stacklevel=5)

    def draw(self) -> tuple[HeteroData, Tensor, Tensor]:
        r"""Returns the graph, the pairs and the negatives of an epoch."""
        data, pairs = self.data, self.pairs
        if self.recipe.edge_dropping > 0:
            data = self.drop_edges(data)
            if self.recipe.disjoint:
                pairs = data[self.edge_type].edge_label_index
        # All pairs stay excluded, whichever of them an epoch trains on:
        negative = self.unseen.sample(pairs[0], self.recipe.num_negatives)
        if self.num_full > 0:
            keep = negative[:, 0] >= 0
            pairs, negative = pairs[:, keep], negative[keep]
        if pairs.size(1) == 0:
            raise ValueError(
                f"'edge_dropping' needs to leave out a pair to train on "
                f'(got {self.recipe.edge_dropping} of {self.pairs.size(1)} '
                f'pairs)'
            )
        return data, pairs, negative

    def validate(self, user_emb: Tensor, item_emb: Tensor) -> dict[str, float]:
        r"""Returns the metrics of the ranking by inner products alone."""
        assert self.held_out is not None
        name, k = parse_metric(self.recipe.metric)
        return evaluate(
            user_emb,
            item_emb,
            self.held_out,
            self.pairs,
            metrics=list(dict.fromkeys(['recall', 'ndcg', name])),
            ks=sorted({k, *(x for x in KS if x <= self.size[1])}),
        )

    def describe(self) -> dict[str, object]:
        r"""Returns what tells it from others, in plain values."""
        return {
            'edge_type': list(self.edge_type),
            'num_nodes': list(self.size),
            'training pairs': fingerprint(self.pairs),
            'validation pairs': fingerprint(self.held_out),
        }


def get_held_out(
    store: EdgeStorage, split: str, size: tuple[int, int]
) -> Tensor | None:
    r"""Returns the held-out pairs of a split, if any, without those that are
    marked as negative ones.
    """
    name, label = f'{split}_edge_label_index', f'{split}_edge_label'
    if store.get(name) is None:
        return None
    device = as_plain(store.edge_index).device
    pairs = as_pairs(name, store[name], size, device)
    if store.get(label) is not None:
        mark = as_positive(label, store[label], pairs.size(1), device)
        pairs = pairs[:, mark]
    return pairs


def fingerprint(pairs: Tensor | None) -> str | None:
    r"""Returns the number of pairs and a checksum of them in their order."""
    if pairs is None:
        return None
    content = pairs.contiguous().cpu().numpy().data
    checksum = hashlib.blake2b(content, digest_size=8).hexdigest()
    return f'{pairs.size(1)} ({checksum})'
