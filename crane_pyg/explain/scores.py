r"""Why this item: the parts of a score, and the items that carry it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import HeteroData

from crane_pyg._check import check_integer
from crane_pyg._mode import evaluation
from crane_pyg._rows import (
    CompressedRows,
    as_index,
    as_plain,
    check_candidates,
    check_index,
)
from crane_pyg.nn.crane import CRANE, CRANEOutput
from crane_pyg.ranking.neighborhood import Neighborhood

__all__ = ['ScoreParts', 'explain_scores']


class ScoreParts(NamedTuple):
    r"""What :func:`explain_scores` returns for :math:`B` items.

    Args:
        score (torch.Tensor): The scores that
            :meth:`~crane_pyg.nn.CRANE.recommend` ranks by :math:`(B)`.
        parts (dict[str, torch.Tensor]): Its summands :math:`(B)`:
            :obj:`"behavior"`, one :obj:`"semantic_<modality>"` each,
            :obj:`"item_graph"`, and one :obj:`"neighbors_<relation>"` for
            every other relation of the neighborhood.
        history (torch.Tensor): The items that the user had :math:`(H)`.
        carriers (dict[str, torch.Tensor]): How much each of them carries
            :math:`(B, H)`, by :obj:`"embeddings"` and by
            :obj:`"neighbors_<relation>"`.
    """

    score: Tensor
    parts: dict[str, Tensor]
    history: Tensor
    carriers: dict[str, Tensor]


def explain_scores(
    model: CRANE,
    data: HeteroData,
    user_index: int,
    item_index: Tensor | Sequence[int],
    candidates: Tensor | Sequence[int] | None = None,
    neighbors: Neighborhood | None = None,
) -> ScoreParts:
    r"""Splits the scores of some items for a user into summands, and names
    the items of the user that carry them.

    The embeddings are the streams :math:`m` of the IDs and the modalities side
    by side: the mean :math:`\mathbf{p}` of the layers over the user-item graph,
    and what the item graph adds to it, see :class:`~crane_pyg.nn.CRANE`. Hence,
    exactly but for rounding,

    .. math::
        \hat{r}_{ui} =
        \underbrace{\mathbf{p}_{u,\text{ID}}^{\top}
            \mathbf{p}_{i,\text{ID}}}_{\text{behavior}} +
        \sum_m \underbrace{\mathbf{p}_{u,m}^{\top}
            \mathbf{p}_{i,m}}_{\text{semantic}} +
        \underbrace{\mathbf{x}_u^{\top} \mathbf{x}_i -
            \mathbf{p}_u^{\top} \mathbf{p}_i + n^{(S)}_{ui}}_{
            \text{item graph}} +
        \sum_{g \neq S} n^{(g)}_{ui}

    with the neighborhood sums :math:`n^{(g)}_{ui} = c \, \sigma \sum_{j \in
    \mathcal{N}(u)} \omega_g s^{(g)}_{ji}`, whose terms are what the item
    :math:`j` of the user carries, exactly. There are none where
    :meth:`~crane_pyg.nn.CRANE.tune_neighborhood` chose :math:`c = 0`.

    The inner product is no sum over :math:`j`. What :math:`j` carries of it is
    the derivative

    .. math::
        c_j = \left. \frac{\partial \, \mathbf{x}_u^{\top} \mathbf{x}_i}
        {\partial \mu_j} \right|_{\mu_j = 1}

    where :math:`\mu_j` multiplies the weights of both edges between :math:`u`
    and :math:`j`, wherever they carry a message: gradient times weight. It
    says what the score would lose if these edges became one percent lighter,
    times a hundred. It is not what the score loses without them, and these
    shares do not sum to the inner product: learned IDs and preferences bring
    a share that no item carries, and some paths take two edges of the user.

    Training and evaluation mode are left as they are; the scores are those of
    evaluation. The cost is that of one forward pass and :math:`B` backward
    passes.

    Args:
        model (CRANE): The model.
        data (torch_geometric.data.HeteroData): As in its forward pass.
        user_index (int): The user.
        item_index (torch.Tensor): The items :math:`(B)`.
        candidates (torch.Tensor, optional): If given, the only items that may
            be asked for :math:`(C)`. (default: :obj:`None`)
        neighbors (Neighborhood, optional): What
            :meth:`~crane_pyg.nn.CRANE.neighborhood` returns for the same model
            and data, which may cost more than all else; computed if not given.
            (default: :obj:`None`)

    Raises:
        ValueError: If there is no such user or item, or if an item is not
            among the candidates.
    """
    check_integer(user_index=user_index)
    check_index('user_index', torch.tensor(user_index), model.num_users)
    device = next(model.parameters()).device
    items = as_index('item_index', item_index, model.num_items, device)
    if candidates is not None:
        index = as_index('candidates', candidates, model.num_items, device)
        check_candidates('item_index', items, index)

    with evaluation(model):
        out, gradient = _gradients(model, data, user_index, items)

    user, item = out.user[user_index], out.item[items]
    product = plain = user * item
    if out.user_semantic is not None and out.item_semantic is not None:
        user = user - out.user_semantic[user_index]
        plain = user * (item - out.item_semantic[items])
    parts = _stream_parts(model, plain)
    parts['item_graph'] = (product - plain).sum(dim=-1)

    row, item = as_plain(data[model.edge_type].edge_index)
    history, position = item[row == user_index].unique(return_inverse=True)
    carriers = {'embeddings': gradient[:, history]}
    score = out.user[user_index, None] @ out.item.t()
    if neighbors is None:
        neighbors = model.neighborhood(data, out)
    if neighbors is not None:
        users = items.new_tensor([user_index])
        score = neighbors.add_to(score, users)
        for relation, graph in zip(
            model.neighbor_weights, neighbors.graphs, strict=True
        ):
            name = f'neighbors_{relation}'
            carried = _carried(graph, history[position], items)
            size = (items.numel(), history.numel())
            carriers[name] = carried.new_zeros(size).index_add_(
                1, position, carried
            )
            key = 'item_graph' if relation == model.item_edge else name
            parts[key] = parts.get(key, 0.0) + carriers[name].sum(dim=1)
    return ScoreParts(score[0, items], parts, history, carriers)


@torch.inference_mode(False)  # Which a caller may have entered.
@torch.enable_grad()
def _gradients(
    model: CRANE, data: HeteroData, user: int, items: Tensor
) -> tuple[CRANEOutput, Tensor]:
    r"""Returns the embeddings, and the derivatives of inner products
    :math:`(B, I)` by what multiplies the edges from and to a user.
    """
    (to_item, _), (to_user, _), *_ = model._graphs(data)
    items = items.clone()  # One of inference mode has no gradient.
    more = torch.zeros(model.num_items, device=to_item.device)
    more.requires_grad_()

    # Adding zero times the edges of one user to what a layer returns leaves
    # the layer its fast path, which has no gradient with respect to weights:
    def add(
        _: Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> Tensor | None:
        (x, _), edge_index, *weight = args
        if edge_index is not to_item and edge_index is not to_user:
            return None
        src, dst = as_plain(edge_index)
        keep = (src if edge_index is to_item else dst) == user
        src, dst = src[keep], dst[keep]
        value = more[dst if edge_index is to_item else src]
        if weight:
            value = value * weight[0][keep]
        message = value.unsqueeze(-1) * x[src]
        return out.index_add(0, dst, message.to(out.dtype))

    handle = model.conv.register_forward_hook(add, with_kwargs=True)
    try:
        out = model(data)
    finally:
        handle.remove()
    score = out.item[items] @ out.user[user] + 0.0 * more.sum()
    gradient = torch.zeros(items.numel(), more.numel(), device=more.device)
    for row, value in zip(gradient, score, strict=True):
        row.copy_(torch.autograd.grad(value, more, retain_graph=True)[0])
    out = CRANEOutput._make(x if x is None else x.detach() for x in out)
    return out, gradient


def _stream_parts(model: CRANE, product: Tensor) -> dict[str, Tensor]:
    names = [f'semantic_{name}' for name in model.in_channels]
    if model.user_id is not None:
        names = ['behavior', *names]
    streams = product.split(model.channels, dim=-1)
    return {
        name: stream.sum(dim=-1)
        for name, stream in zip(names, streams, strict=True)
    }


def _carried(graph: CompressedRows, history: Tensor, items: Tensor) -> Tensor:
    r"""Returns the weights of the edges from one of a user's items each
    :math:`(B, H)`.
    """
    index, neighbor, weight = graph[history]
    hit = (items.unsqueeze(1) == neighbor) * weight
    out = hit.new_zeros(items.numel(), history.numel())
    return out.index_add_(1, index, hit)
