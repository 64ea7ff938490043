r"""Propagation over both graphs."""

from torch import Tensor
from torch_geometric.utils import degree

from crane_pyg._rows import as_plain
from crane_pyg.nn.conv import CRANEConv
from crane_pyg.nn.layout import Graph


def propagate(
    conv: CRANEConv,
    user_in: Tensor,
    item_in: Tensor,
    to_item: Graph,
    to_user: Graph,
    num_layers: int,
) -> tuple[Tensor, Tensor]:
    r"""Returns the mean of the inputs and of the outputs of all layers, those
    of LightGCN.

    .. math::
        \mathbf{X}^{(l+1)} = \hat{\mathbf{A}} \mathbf{X}^{(l)}, \qquad
        \mathbf{X} = \frac{1}{L+1} \sum_{l=0}^{L} \mathbf{X}^{(l)}

    The sum of all layers up to one is that up to the layer before, propagated,
    plus the input: the mean takes no pass over memory of its own.

    Args:
        conv (CRANEConv): Sums weighted edges.
        user_in (torch.Tensor): The users :math:`(U, d)`.
        item_in (torch.Tensor): The items :math:`(I, d)`.
        to_item (tuple): The edges from users to items, and their weights.
        to_user (tuple): The edges from items to users, and their weights.
        num_layers (int): The number of layers :math:`L`.
    """
    size = (user_in.size(0), item_in.size(0))
    user, item = user_in, item_in
    for n in range(num_layers, 0, -1):
        scale = 1 / (num_layers + 1) if n == 1 else 1
        users = _scaled_sum(conv, item, *to_user, scale, size[::-1])
        items = _scaled_sum(conv, user, *to_item, scale, size)
        user = users.add_(user_in, alpha=scale)
        item = items.add_(item_in, alpha=scale)
    return user, item


def smooth(
    conv: CRANEConv,
    item_in: Tensor,
    similar: Graph,
    to_user: Graph,
    num_layers: int,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    r"""Returns the semantic view of users and items: the items propagated over
    the item graph, and what these send to their users.

    .. math::
        \mathbf{N}_{\mathcal{I}} = \mathbf{S}^{K} \mathbf{X}_{\mathcal{I}},
        \qquad
        \mathbf{N}_{\mathcal{U}} = \hat{\mathbf{R}} \mathbf{N}_{\mathcal{I}}

    Args:
        conv (CRANEConv): Sums weighted edges.
        item_in (torch.Tensor): The items :math:`(I, d)`.
        similar (tuple): The edges between items, and their weights.
        to_user (tuple): The edges from items to users, and their weights.
        num_layers (int): The number of layers :math:`K`.
        size (tuple[int, int]): The number of users and items.
    """
    item = item_in
    for _ in range(num_layers):
        item = conv((item, None), *similar)
    return conv((item, None), *to_user, size=size[::-1]), item


def user_mean(
    conv: CRANEConv, x: Tensor, to_user: Tensor, size: tuple[int, int]
) -> Tensor:
    r"""Returns the symmetric user profiles: the mean of the items of each user,
    zero for one without any.

    Args:
        conv (CRANEConv): Sums weighted edges.
        x (torch.Tensor): The items :math:`(I, d)`.
        to_user (torch.Tensor): The edges from items to users.
        size (tuple[int, int]): The number of users and items.
    """
    user = as_plain(to_user)[1]
    weight = degree(user, size[0]).clamp(min=1).reciprocal()[user]
    out: Tensor = conv((x, None), to_user, weight, size=size[::-1])
    return out


def _scaled_sum(
    conv: CRANEConv,
    x: Tensor,
    edge_index: Tensor,
    edge_weight: Tensor,
    scale: float,
    size: tuple[int, int],
) -> Tensor:
    weight = edge_weight if scale == 1 else edge_weight * scale
    out: Tensor = conv((x, None), edge_index, weight, size=size)
    return out
