r"""Why this item: the parts of a score, and the items that carry it."""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import HeteroData

from crane_pyg._mode import evaluation
from crane_pyg._rows import as_index, as_plain, check_candidates
from crane_pyg.nn.crane import CRANE
from crane_pyg.nn.objective import CRANEOutput
from crane_pyg.ranking import Neighborhood, Ranker

__all__ = ['ScoreParts', 'explain_scores']

PART_SIZE: Final = 256


class ScoreParts(NamedTuple):
    r"""What :func:`explain_scores` returns for :math:`B` items.

    Args:
        score (torch.Tensor): The scores by which the items are ranked
            :math:`(B)`.
        parts (dict[str, torch.Tensor]): Its summands :math:`(B)`:
            :obj:`"behavior"`, one :obj:`"semantic_<modality>"` each,
            :obj:`"item_graph"`, and one :obj:`"neighbors_<relation>"` for
            every other relation of the neighborhood.
        history (torch.Tensor): The history of the user :math:`(H)`.
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
    user_index: object,
    item_index: object,
    ranker: Ranker | None = None,
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

    with the neighborhood sums :math:`n^{(g)}_{ui} = \sum_{j \in
    \mathcal{N}(u)} \omega_g s^{(g)}_{ji}` of a ranker, whose terms are what
    the item :math:`j` of the user carries, exactly.

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
        ranker (Ranker, optional): What ranks by the embeddings of the same
            model and data, and may add relations between items to their inner
            products. (default: :obj:`None`)

    Raises:
        ValueError: If there is no such user or item, if an item is not among
            the candidates of the ranker, or if this is one of other data, of
            another model, or one that ranks the user by popularity.
    """
    num_users, num_items = model.size
    device = next(model.parameters()).device
    users = as_index('user_index', user_index, num_users, device)
    if users.numel() != 1:
        raise ValueError(
            f"'user_index' needs to be one user (got {users.numel()} of them)"
        )
    user_index = int(users)
    items = as_index('item_index', item_index, num_items, device)
    with evaluation(model):
        out, gradient = _gradients(model, data, user_index, items)
    if ranker is not None:
        check_ranker(ranker, model, data, out.user)
        check_users(ranker, users)
        if ranker.candidates is not None:
            check_candidates('item_index', items, ranker.candidates)

    row, item = as_plain(data[model.edge_type].edge_index)
    history = item[row == user_index].unique()
    carriers = {'embeddings': gradient[:, history]}
    user, item = out.user[user_index], out.item[items]
    product = plain = user * item
    if out.user_semantic is not None and out.item_semantic is not None:
        user = user - out.user_semantic[user_index]
        plain = user * (item - out.item_semantic[items])
    parts = _stream_parts(model, plain)
    parts['item_graph'] = (product - plain).sum(dim=-1)
    if ranker is not None:
        near = _neighbors(ranker.neighborhood, user_index, items, history)
        for relation, carried in near.items():
            name = f'neighbors_{relation}'
            carriers[name] = carried
            key = 'item_graph' if relation == model.item_edge else name
            parts[key] = parts.get(key, 0.0) + carried.sum(dim=1)
    score = torch.stack(list(parts.values())).sum(dim=0)
    return ScoreParts(score, parts, history, carriers)


@torch.inference_mode(False)  # Which a caller may have entered.
@torch.enable_grad()
def _gradients(
    model: CRANE, data: HeteroData, user: int, items: Tensor
) -> tuple[CRANEOutput, Tensor]:
    r"""Returns the embeddings, and the derivatives of inner products
    :math:`(B, I)` by what multiplies the edges from and to a user.
    """
    (to_item, _), (to_user, _), _ = model.graphs(data)
    items = items.clone()  # One of inference mode has no gradient.
    more = torch.zeros(model.size[1], device=to_item.device)
    more.requires_grad_()

    # Adding zero times the edges of one user to what a layer returns leaves
    # the layer its fast path, which has no gradient with respect to weights:
    def add(
        _: Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> Tensor | None:
        (x, _), edge_index, *weight = args
        forth = are_same(edge_index, to_item)
        if not forth and not are_same(edge_index, to_user):
            return None
        src, dst = as_plain(edge_index)
        keep = (src if forth else dst) == user
        src, dst = src[keep], dst[keep]
        value = more[dst if forth else src]
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
    dtype = torch.promote_types(out.user.dtype, torch.float)  # As in ranking.
    views = (x if x is None else x.detach().to(dtype) for x in out)
    return CRANEOutput._make(views), gradient


def are_same(x: Tensor, y: Tensor) -> bool:
    r"""Returns whether edges are the same ones, and not only equal."""
    # The layout in which a model passes them on shares their memory:
    return as_plain(x).data_ptr() == as_plain(y).data_ptr()


def _stream_parts(model: CRANE, product: Tensor) -> dict[str, Tensor]:
    names = [f'semantic_{name}' for name in model.in_channels]
    if model.user_id is not None:
        names = ['behavior', *names]
    streams = product.split(model.channels, dim=-1)
    return {
        name: stream.sum(dim=-1)
        for name, stream in zip(names, streams, strict=True)
    }


def _neighbors(
    neighborhood: Neighborhood, user: int, items: Tensor, history: Tensor
) -> dict[str, Tensor]:
    r"""Returns what every relation sends from each item of the history to the
    items that are explained :math:`(B, H)`.
    """
    _, had, _ = neighborhood.history[items.new_tensor([user])]
    position, out = torch.searchsorted(history, had), {}
    for name, weight in neighborhood.weights.items():
        if weight != 0.0:
            out[name] = torch.zeros(
                items.numel(), history.numel(), device=items.device
            )
            # In parts, as each of them has scores of all items:
            for src, index in zip(
                had.split(PART_SIZE), position.split(PART_SIZE), strict=True
            ):
                score = items.new_zeros(
                    src.numel(), neighborhood.size[1], dtype=torch.float
                )
                row = torch.arange(src.numel(), device=src.device)
                neighborhood.relations[name].add_to(score, row, src, weight)
                out[name].index_add_(1, index, score[:, items].t())
    return out


def check_ranker(
    ranker: Ranker, model: CRANE, data: HeteroData, user_emb: Tensor
) -> None:
    r"""Refuses a ranker of other data, or of other embeddings."""
    ranker.check(data, model.edge_type)
    found = ranker.user_emb
    expected = user_emb.to(found)
    if found.size() != expected.size() or not torch.allclose(
        found, expected, rtol=1e-3, atol=1e-5
    ):
        raise ValueError(
            "'ranker' needs to hold the embeddings of 'model' for 'data' (got "
            'others)'
        )


def check_users(ranker: Ranker, users: Tensor) -> None:
    r"""Refuses users whose ranking has nothing to do with embeddings."""
    users = users[~ranker.has_history[users]]
    if users.numel() > 0 and ranker.no_history != 'embedding':
        raise ValueError(
            f"Users need to have a history, as 'ranker' has "
            f"'no_history={ranker.no_history!r}' (got user {int(users[0])})"
        )
