r"""The relations between items that a ranker may add to inner products."""

import warnings
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg._edges import get_graph
from crane_pyg.ranking.blend import Judge, blend_metric, make_pool
from crane_pyg.ranking.ease import (
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
L2: Final = 200.0
L2S: Final = (25.0, 50.0, 100.0, 200.0, 400.0, 800.0)


def get_relations(
    data: HeteroData,
    relations: Sequence[str] | None,
    item_emb: Tensor,
    history: Tensor,
    size: tuple[int, int],
    item: str,
    judge: Judge | None,
) -> dict[str, Graph]:
    r"""Returns the edges and weights of relations by name; :obj:`None` stands
    for those of :obj:`DEFAULT` that there are.
    """
    graphs: dict[str, Graph] = {}
    for name in DEFAULT if relations is None else relations:
        graph: Graph | None = None
        if name == EASE:
            graph = ease_graph(history, size, judge)
        elif name == REFINED:
            if relations is not None or item_emb.size(1) > 0:
                graph = refined_graph(item_emb)
        elif relations is not None or (item, name, item) in data.edge_types:
            edge_index, value = get_graph(data, (item, name, item))
            graph = (edge_index.to(history.device), value.to(history.device))
        if graph is not None:
            graphs[name] = graph
    return graphs


def ease_graph(
    history: Tensor, size: tuple[int, int], judge: Judge | None = None
) -> Graph | None:
    r"""Returns the weights of :func:`~crane_pyg.ranking.ease.ease_weights`:
    all of them for up to 3,000 items, the 100 largest of each row for up to
    30,000, and none for more.
    """
    if size[1] > MAX_ITEMS:
        warnings.warn(
            f"Relation '{EASE}' is left out: it takes a matrix of all items "
            f'by all items, of which there are more than {MAX_ITEMS} '
            f'(got {size[1]})',
            stacklevel=4,
        )
        return None
    if size[1] > FULL_ITEMS:
        return prune(ease_weights(history, size, L2), NUM_KEPT)
    return choose_ease(history, size, judge)


def choose_ease(
    history: Tensor,
    size: tuple[int, int],
    judge: Judge | None,
    l2s: Sequence[float] = L2S,
) -> Tensor:
    r"""Returns the weights with the regularization that ranks best on its own,
    or with :obj:`L2` if there is nothing to judge by.
    """
    if judge is None:
        return ease_weights(history, size, L2)
    gram = best = gram_matrix(history, size)
    best_value = float('-inf')
    user, item = (torch.empty(n, 0, device=history.device) for n in size)
    for l2 in l2s:
        weights = solve(gram.clone(), l2)
        near = Neighborhood(history, {EASE: weights}, size)
        pool = make_pool(user, item, near, {EASE: 1.0}, judge)
        value = float(blend_metric(pool, [1.0], judge).mean())
        if value > best_value:
            best, best_value = weights, value
    return best
