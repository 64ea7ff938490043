from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.data import HeteroData

from crane_pyg._edges import get_num_nodes
from crane_pyg._rows import as_plain
from crane_pyg.transforms import row_norm

if TYPE_CHECKING:
    from crane_pyg.nn.crane import CRANE


def extend(model: CRANE, data: HeteroData) -> CRANE:
    r"""Returns a copy of a model for more users and items, see
    :meth:`~crane_pyg.nn.CRANE.extend`.
    """
    user, _, item = model.edge_type
    size = (get_num_nodes(data, user), get_num_nodes(data, item))
    for name, value, least in [
        ('num_users', size[0], model.num_users),
        ('num_items', size[1], model.num_items),
    ]:
        if value < least:
            raise ValueError(
                f"'{name}' of 'data' needs to be at least {least}, the number "
                f'of the model (got {value})'
            )
    num_users = model.num_users
    model = copy.deepcopy(model).eval()
    model.num_new_items += size[1] - model.num_items
    model.num_users, model.num_items = model.size = size
    model._arguments.update(
        num_users=size[0],
        num_items=size[1],
        num_new_items=model.num_new_items,
    )
    for name, weight in model.preference.items():
        model.preference[name] = _pad(weight, size[0])
    for name, weight in model.offset.items():
        model.offset[name] = _pad(weight, size[1])
    if model.user_id is not None and model.item_id is not None:
        model.user_id = _pad(model.user_id, size[0])
        model.item_id = _pad(model.item_id, size[1])
    if size[0] > num_users:
        _set_preference(model, data, num_users)
    return model


@torch.no_grad()
def _set_preference(model: CRANE, data: HeteroData, num_old: int) -> None:
    r"""Gives new users the direction of their profiles, in place.

    Left at zero, it would be the sign of the gate that says where they point.
    """
    _, (to_user, _), *_ = model._graphs(data)
    xs = model._encode_items(data)
    for weight, x in zip(model.preference.values(), xs, strict=True):
        profile = model._profile(x, to_user)[num_old:]
        norm = weight[:num_old].norm(dim=-1).mean()
        weight[num_old:] = norm * F.normalize(profile, dim=-1)


def _pad(weight: Parameter, num_rows: int) -> Parameter:
    with torch.no_grad():
        value = F.pad(weight, (0, 0, 0, num_rows - weight.size(0)))
    return Parameter(value, requires_grad=weight.requires_grad)


def lend(
    x: Tensor,
    edge_index: Tensor,
    edge_weight: Tensor,
    num_new: int,
    share: float,
) -> Tensor:
    r"""Mixes each of the last rows, those of new items, with the mean of those
    of its neighbors that are not new, weighted by the edges, if there are any.
    """
    num_old = x.size(0) - num_new
    src, dst = as_plain(edge_index)
    keep = (src < num_old) & (dst >= num_old)
    edge_index, size = torch.stack([src, dst])[:, keep], x.size(0)
    weight = row_norm(edge_index, size, size, edge_weight[keep])
    src, dst = edge_index
    own = torch.ones_like(x[:, :1]).index_fill(0, dst, 1.0 - share)
    weight = share * weight.unsqueeze(-1).to(x.dtype)
    return (own * x).index_add(0, dst, weight * x[src])
