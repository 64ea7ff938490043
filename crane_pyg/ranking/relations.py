r"""The relations between items that a ranker may add to inner products."""

import math
import warnings
from collections.abc import Sequence
from typing import Final

from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg._edges import EdgeType, get_graph
from crane_pyg.ranking.blend import Judge, list_metric
from crane_pyg.ranking.closed_form import (
    DOUBLE_ITEMS,
    ease_weights,
    gram_matrix,
    prune,
    solve,
)
from crane_pyg.ranking.neighborhood import (
    REFINED,
    Graph,
    Neighborhood,
    refined_graph,
)

EASE: Final = 'ease'
DEFAULT: Final = ('co_rated', 'similar_to', REFINED, EASE)
FULL_ITEMS: Final = 3_000
MAX_ITEMS: Final = 30_000
NUM_KEPT: Final = 100
L2S: Final = (25.0, 50.0, 100.0, 200.0, 400.0, 800.0)


def get_relations(
    data: HeteroData,
    relations: Sequence[str] | None,
    item_emb: Tensor,
    history: Tensor,
    size: tuple[int, int],
    edge_type: EdgeType,
    judge: Judge | None,
    l2: float | None,
) -> tuple[dict[str, Graph], float | None]:
    r"""Returns the edges and weights of relations by name, and the
    regularization of the closed-form ones; :obj:`None` stands for those of
    :obj:`DEFAULT` that there are.
    """
    graphs: dict[str, Graph] = {}
    for name in DEFAULT if relations is None else relations:
        named = (edge_type[2], name, edge_type[2])
        if name == EASE:
            if can_solve(size[1]):
                graphs[name], l2 = ease_graph(history, size, judge, l2)
        elif name == REFINED:
            if relations is not None or item_emb.size(1) > 0:
                graphs[name] = refined_graph(item_emb)
        elif relations is not None or named in data.edge_types:
            edge_index, value = get_graph(data, named)
            device = history.device
            graphs[name] = (edge_index.to(device), value.to(device))
    return graphs, l2 if EASE in graphs else None


def can_solve(num_items: int) -> bool:
    r"""Returns whether there are few enough items, and warns if not."""
    if num_items > MAX_ITEMS:
        warnings.warn(
            f"Relation '{EASE}' is left out: it takes a matrix of all items "
            f'by all items, which have to be at most {MAX_ITEMS} '
            f'(got {num_items})',
            stacklevel=5,
        )
    return num_items <= MAX_ITEMS


def ease_graph(
    history: Tensor,
    size: tuple[int, int],
    judge: Judge | None,
    l2: float | None,
) -> tuple[Graph, float]:
    r"""Returns closed-form weights: all of them for up to 3,000 items, else
    the 100 largest of each row; and their regularization.
    """
    if size[1] <= FULL_ITEMS:
        return choose_ease(history, size, judge, l2)
    weights, l2 = choose_ease(history, size, None, l2)
    return prune(weights, NUM_KEPT), l2


def choose_ease(
    history: Tensor,
    size: tuple[int, int],
    judge: Judge | None = None,
    l2: float | None = None,
) -> tuple[Tensor, float]:
    r"""Returns the weights with a given regularization, or with the one that
    ranks best on its own, up to 8,000 items, or else with that of
    :func:`default_l2`; and the regularization.
    """
    if l2 is None and judge is not None and size[1] <= DOUBLE_ITEMS:
        return _best_ease(history, size, judge)
    if l2 is None:
        l2 = default_l2(history, size)
    return ease_weights(history, size, l2), l2


def _best_ease(
    history: Tensor, size: tuple[int, int], judge: Judge
) -> tuple[Tensor, float]:
    gram = best = gram_matrix(history, size)
    best_value, best_l2 = float('-inf'), L2S[0]
    for option in L2S:
        weights = solve(gram.clone(), option)
        near = Neighborhood(history, {EASE: weights}, size)
        value = float(list_metric(near, judge).mean())
        if value > best_value:
            best, best_value, best_l2 = weights, value, option
    return best, best_l2


def default_l2(history: Tensor, size: tuple[int, int]) -> float:
    r"""Returns a regularization for data without validation pairs, 16 times
    the root of the number of pairs per item: 50 to 200 on the data of the
    benchmark, where the best are 50 to 400.
    """
    return max(1.0, 16.0 * math.sqrt(history.size(1) / max(1, size[1])))
