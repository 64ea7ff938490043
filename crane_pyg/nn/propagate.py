r"""Propagation over the user-item graph, with what the item graph adds."""

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
    near: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Returns the mean of the inputs and of the outputs of all layers, those
    of LightGCN, plus what items have from elsewhere and pass on to users.

    .. math::
        \mathbf{X}^{(l+1)} = \hat{\mathbf{A}} \mathbf{X}^{(l)}, \qquad
        \mathbf{X} = \frac{1}{L+1} \sum_{l=0}^{L} \mathbf{X}^{(l)}, \qquad
        \mathbf{X}_{\mathcal{I}} \leftarrow \mathbf{X}_{\mathcal{I}} +
        \mathbf{N}, \qquad
        \mathbf{X}_{\mathcal{U}} \leftarrow \mathbf{X}_{\mathcal{U}} +
        \hat{\mathbf{R}} \mathbf{N}

    The sum of all layers up to one is that up to the layer before, propagated,
    plus the input: the mean takes no pass over memory of its own. Nor does
    :math:`\hat{\mathbf{R}} \mathbf{N}`, as :math:`\mathbf{N}` takes the last
    layer to the users together with the items' sum.

    Args:
        conv (CRANEConv): Sums weighted edges.
        user_in (torch.Tensor): The users :math:`(U, d)`.
        item_in (torch.Tensor): The items :math:`(I, d)`.
        to_item (tuple): The edges from users to items, and their weights.
        to_user (tuple): The edges from items to users, and their weights.
        num_layers (int): The number of layers :math:`L`.
        near (torch.Tensor, optional): What is added :math:`\mathbf{N}`.
            (default: :obj:`None`)
    """
    size = (user_in.size(0), item_in.size(0))
    user, item = user_in, item_in
    for n in range(num_layers, 0, -1):
        scale = 1 / (num_layers + 1) if n == 1 else 1
        sent = item
        if n == 1 and near is not None:
            sent = item.add(near, alpha=num_layers + 1)
        users = _scaled_sum(conv, sent, *to_user, scale, size[::-1])
        items = _scaled_sum(conv, user, *to_item, scale, size)
        user = users.add_(user_in, alpha=scale)
        item = items.add_(item_in, alpha=scale)
    if near is None:
        return user, item
    if num_layers == 0:
        user = _scaled_sum(conv, near, *to_user, 1, size[::-1]).add_(user)
    return user, item + near


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
