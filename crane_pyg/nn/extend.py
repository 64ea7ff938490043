r"""Tables of learned rows, with room for new users and items."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter, ParameterDict
from torch_geometric.data import HeteroData

from crane_pyg._edges import EdgeType, get_num_nodes
from crane_pyg._rows import as_plain
from crane_pyg.transforms.norm import row_norm


def empty_tables(
    num_rows: int, names: Iterable[str], channels: int
) -> ParameterDict:
    r"""Returns one table for each modality, to be filled."""
    return ParameterDict(
        {f'x_{name}': torch.empty(num_rows, channels) for name in names}
    )


def grown_size(
    data: HeteroData, edge_type: EdgeType, size: tuple[int, int]
) -> tuple[int, int]:
    r"""Returns the number of users and items in the data, which has no fewer
    of them than before.
    """
    out = get_num_nodes(data, edge_type[0]), get_num_nodes(data, edge_type[2])
    names = ('num_users', 'num_items')
    for name, value, least in zip(names, out, size, strict=True):
        if value < least:
            raise ValueError(
                f"'{name}' of 'data' needs to be at least {least}, the number "
                f'of the model (got {value})'
            )
    return out


@torch.no_grad()
def aim_(weight: Tensor, profile: Tensor, num_old: int) -> None:
    r"""Gives the last rows of a table, those of new users, the direction of
    their profiles and the mean length of the other rows, in place.

    Left at zero, it would be the sign of the gate that says where they point.
    """
    norm = weight[:num_old].norm(dim=-1).mean()
    weight[num_old:] = norm * F.normalize(profile[num_old:], dim=-1)


def pad(weight: Parameter | None, num_rows: int) -> Parameter | None:
    r"""Returns a table with rows of zeros at its end."""
    if weight is None:
        return None
    value = F.pad(weight.detach(), (0, 0, 0, num_rows - weight.size(0)))
    return Parameter(value, requires_grad=weight.requires_grad)


def pad_(tables: ParameterDict, num_rows: int) -> None:
    r"""Adds rows of zeros to the end of all tables."""
    for name, weight in tables.items():
        tables[name] = pad(weight, num_rows)


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
