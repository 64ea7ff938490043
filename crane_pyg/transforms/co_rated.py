import torch
from torch import Tensor
from torch_geometric.utils import coalesce, cumsum, degree

from crane_pyg._rows import block_sizes
from crane_pyg.transforms._utils import (
    as_plain,
    check_edge_index,
    check_positive,
)


def co_rated_graph(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    k: int = 100,
    block_size: int = 1 << 22,
) -> tuple[Tensor, Tensor]:
    r"""Connects the items that the same users had: two steps over the
    user-item graph :math:`\mathbf{R}`, as those of item-based collaborative
    filtering.

    .. math::
        w_{ji} = \sum_{u} \frac{r_{uj} \, r_{ui}}
        {\sqrt{d_u} \sqrt[4]{d_j d_i}}, \qquad j \neq i

    A pair of items counts for more if its users had few other items, and if
    few other users had them. The roots, milder than those of
    :func:`~crane_pyg.transforms.symmetric_norm`, are a choice of this package.

    Args:
        edge_index (torch.Tensor): The users above the items of the training
            pairs; repeated pairs count once.
        num_users (int): The number of users.
        num_items (int): The number of items.
        k (int, optional): The number of edges kept out of an item, those of
            largest weight. (default: :obj:`100`)
        block_size (int, optional): The number of paths from item to item that
            are held at a time, unless a single item has more of them.
            (default: :obj:`4194304`)

    Shapes:
        - **edge_index:** :math:`(2, |\mathcal{E}|)`
        - **output:** :math:`(2, |\mathcal{E}'|)`, sorted by source, then by
          descending weight, then by destination; and the weights
          :math:`(|\mathcal{E}'|)`

    Raises:
        ValueError: If :obj:`k` or :obj:`block_size` is not positive, or an
            index is out of range.
    """
    check_positive(k, 'k')
    check_positive(block_size, 'block_size')
    check_edge_index(edge_index, num_users, num_items)
    user, item = coalesce(
        as_plain(edge_index).long(), num_nodes=max(num_users, num_items)
    )
    user_degree, item_degree = degree(user, num_users), degree(item, num_items)
    # Sorted by user; these are the pairs sorted by item:
    perm = item.argsort(stable=True)
    paths = user_degree[user[perm]].long()
    ptr = cumsum(user_degree.long())

    outs = []
    index = torch.arange(item.numel(), device=item.device)
    for pairs in index.split(block_sizes(item[perm], block_size, paths)):
        count = paths[pairs]
        src = item[perm[pairs]].repeat_interleave(count)
        via = user[perm[pairs]].repeat_interleave(count)
        rank = torch.arange(via.numel(), device=via.device)
        rank = rank - cumsum(count)[:-1].repeat_interleave(count)
        dst = item[ptr[via] + rank]
        keep = src != dst
        outs.append(
            _heaviest(
                torch.stack([src, dst])[:, keep],
                user_degree[via[keep]].rsqrt(),
                item_degree,
                k,
            )
        )
    if len(outs) == 0:
        return edge_index.new_empty(2, 0).long(), user_degree.new_empty(0)
    return (
        torch.cat([edges for edges, _ in outs], dim=1),
        torch.cat([weight for _, weight in outs]),
    )


def _heaviest(
    edge_index: Tensor, value: Tensor, item_degree: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    (src, dst), value = coalesce(edge_index, value, item_degree.numel())
    value = value * (item_degree[src] * item_degree[dst]).pow(-0.25)
    perm = value.argsort(descending=True, stable=True)
    perm = perm[src[perm].argsort(stable=True)]
    src, dst, value = src[perm], dst[perm], value[perm]
    rank = torch.arange(src.numel(), device=src.device)
    count = degree(src, item_degree.numel(), dtype=torch.long)
    keep = rank - cumsum(count)[src] < k
    return torch.stack([src[keep], dst[keep]]), value[keep]
