r"""Propagation over the user-item graph."""

from torch import Tensor

from crane_pyg.nn.conv import CRANEConv

Graph = tuple[Tensor, Tensor]


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
