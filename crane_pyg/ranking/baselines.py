r"""Rankings without training, to tell what a model has learned."""

from typing import Any, Final

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce, degree

from crane_pyg._check import check_size
from crane_pyg._edges import EdgeType, get_edges
from crane_pyg._rows import as_plain
from crane_pyg.ranking.blend import Judge, get_judge
from crane_pyg.ranking.closed_form import shared_users
from crane_pyg.ranking.neighborhood import Neighborhood
from crane_pyg.ranking.ranker import Ranker
from crane_pyg.ranking.relations import MAX_ITEMS, choose_ease

__all__ = ['ease', 'item_knn', 'popularity']

RATES: Final = ('user', 'rates', 'item')


@torch.no_grad()
def popularity(
    data: HeteroData,
    edge_type: EdgeType = RATES,
    **kwargs: Any,  # noqa: ANN401
) -> Ranker:
    r"""Ranks the items by their number of training pairs, for every user.

    Args:
        data (torch_geometric.data.HeteroData): The training pairs.
        edge_type (tuple, optional): Their edge type.
            (default: :obj:`('user', 'rates', 'item')`)
        **kwargs: Other arguments of :class:`~crane_pyg.ranking.Ranker`.

    Raises:
        ValueError: If the pairs are missing.
    """
    history, size = get_history(data, edge_type)
    item_emb = degree(history[1], size[1]).unsqueeze(-1)
    user_emb = item_emb.new_ones(size[0], 1)
    kwargs = {'no_history': 'embedding', **kwargs}  # It is the same.
    return Ranker(Neighborhood(history, {}, size), user_emb, item_emb, **kwargs)


@torch.no_grad()
def item_knn(
    data: HeteroData,
    k: int = 1000,
    edge_type: EdgeType = RATES,
    **kwargs: Any,  # noqa: ANN401
) -> Ranker:
    r"""Ranks the items by their cosine similarity to those of the history, as
    in the `"Item-based Top-N Recommendation Algorithms"
    <https://doi.org/10.1145/963770.963776>`_ paper.

    .. math::
        s_{ji} = \frac{|\mathcal{N}(j) \cap \mathcal{N}(i)|}
        {\sqrt{|\mathcal{N}(j)|} \sqrt{|\mathcal{N}(i)|}}, \qquad j \neq i

    with the users :math:`\mathcal{N}(i)` of an item.

    Args:
        data (torch_geometric.data.HeteroData): The training pairs.
        k (int, optional): The number of other items that an item of the
            history speaks for, those most similar to it.
            (default: :obj:`1000`)
        edge_type (tuple, optional): Their edge type.
            (default: :obj:`('user', 'rates', 'item')`)
        **kwargs: Other arguments of :class:`~crane_pyg.ranking.Ranker`.

    Raises:
        ValueError: If the pairs are missing, or :obj:`k` is not positive.
    """
    check_size(1, k=k)
    history, size = get_history(data, edge_type)
    root = degree(history[1], size[1]).clamp(min=1.0).rsqrt()
    edges, values = [], []
    for items, count in shared_users(history, size, torch.float):
        count *= root * root[items].unsqueeze(1)
        count.scatter_(1, items.unsqueeze(1), 0.0)
        value, index = count.topk(min(k, size[1]), dim=1)
        row = items.unsqueeze(1).expand_as(index)
        keep = value > 0
        edges.append(torch.stack([row[keep], index[keep]]))
        values.append(value[keep])
    graph = torch.cat(edges, dim=1), torch.cat(values)
    return Ranker(Neighborhood(history, {'item_knn': graph}, size), **kwargs)


@torch.no_grad()
def ease(
    data: HeteroData,
    l2: float | None = None,
    metric: str = 'ndcg@20',
    edge_type: EdgeType = RATES,
    **kwargs: Any,  # noqa: ANN401
) -> Ranker:
    r"""Ranks the items by the closed-form weights of the `"Embarrassingly
    Shallow Autoencoders for Sparse Data" <https://arxiv.org/abs/1905.03257>`_
    paper, see :func:`~crane_pyg.ranking.closed_form.ease_weights`: all of them.

    Args:
        data (torch_geometric.data.HeteroData): The training pairs.
        l2 (float, optional): The strength of the regularization. (default:
            the best of six for :obj:`val_edge_label_index`, up to 8,000 items;
            else as in :func:`~crane_pyg.ranking.relations.default_l2`)
        metric (str, optional): The metric to choose by.
            (default: :obj:`"ndcg@20"`)
        edge_type (tuple, optional): Their edge type.
            (default: :obj:`('user', 'rates', 'item')`)
        **kwargs: Other arguments of :class:`~crane_pyg.ranking.Ranker`.

    Raises:
        ValueError: If the pairs are missing, if :obj:`l2` is not positive, or
            if there are more than 30,000 items, as it takes a matrix of all
            items by all items.
    """
    history, size = get_history(data, edge_type)
    if size[1] > MAX_ITEMS:
        raise ValueError(
            f"'data' needs to have at most {MAX_ITEMS} items for a matrix of "
            f'all items by all items (got {size[1]})'
        )
    near = Neighborhood(history, {}, size)
    pairs = data[edge_type].get('val_edge_label_index')
    judge: Judge | None = None
    if l2 is None and pairs is not None:
        judge = get_judge(
            near, pairs, metric=metric, candidates=kwargs.get('candidates')
        )
    weights, l2 = choose_ease(history, size, judge, l2)
    out = Ranker(Neighborhood(history, {'ease': weights}, size), **kwargs)
    out.l2 = l2
    return out


def get_history(
    data: HeteroData, edge_type: EdgeType
) -> tuple[Tensor, tuple[int, int]]:
    r"""Returns the training pairs, each once, and the numbers of users and
    items.
    """
    store, num_users, num_items = get_edges(data, edge_type)
    size = (num_users, num_items)
    history = as_plain(store.edge_index).long()
    return coalesce(history, num_nodes=max(size)), size
