import torch
from torch import Tensor
from torch_geometric.utils import coalesce, cumsum, degree

from crane_pyg._check import check_size
from crane_pyg._rows import as_pairs, block_sizes
from crane_pyg.transforms._search import rank


def co_rated_graph(
    edge_index: object,
    num_users: int,
    num_items: int,
    k: int = 100,
    block_size: int = 1 << 22,
    max_degree: int = 1000,
) -> tuple[Tensor, Tensor]:
    r"""Connects the items that the same users had: two steps over the
    user-item graph :math:`\mathbf{R}`, as those of item-based collaborative
    filtering.

    .. math::
        w_{ji} = \sum_{u} \frac{r_{uj} \, r_{ui}}
        {\sqrt{d_u} \sqrt[4]{d_j d_i}}, \qquad j \neq i

    A pair of items counts for more if its users had few other items, and if
    few other users had them. The roots, milder than those of
    :func:`~crane_pyg.transforms.norm.symmetric_norm`, are a choice of this
    package.

    Over a user with :math:`d_u` items lead :math:`d_u^2` paths. For the cost
    to stay linear in the number of pairs, an item follows no more than
    :obj:`max_degree` of them, to the items of the user that come next in the
    order of their indices, with the first one after the last one.

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
        max_degree (int, optional): The number of paths from an item over a
            user; all of them if the user has no more items.
            (default: :obj:`1000`)

    Shapes:
        - **edge_index:** :math:`(2, |\mathcal{E}|)`
        - **output:** :math:`(2, |\mathcal{E}'|)`, sorted by source, then by
          descending weight, then by destination; and the weights
          :math:`(|\mathcal{E}'|)`

    Raises:
        ValueError: If :obj:`k`, :obj:`block_size` or :obj:`max_degree` is not
            positive, or an index is out of range.
    """
    check_size(1, k=k, block_size=block_size, max_degree=max_degree)
    check_size(0, num_users=num_users, num_items=num_items)
    pairs = as_pairs('edge_index', edge_index, (num_users, num_items))
    user, item = coalesce(pairs, num_nodes=max(num_users, num_items))
    user_degree = degree(user, num_users, dtype=torch.long)
    item_degree = degree(item, num_items)
    ring, start = _rings(user, item, user_degree, max_degree)
    # Sorted by user; these are the pairs sorted by item:
    perm = item.argsort(stable=True)
    paths = user_degree.clamp(max=max_degree)[user[perm]]

    outs = []
    index = torch.arange(item.numel(), device=item.device)
    for block in index.split(block_sizes(item[perm], block_size, paths)):
        count = paths[block]
        src = item[perm[block]].repeat_interleave(count)
        via = user[perm[block]].repeat_interleave(count)
        first = start[perm[block]] - cumsum(count)[:-1]
        first = first.repeat_interleave(count)
        dst = ring[first + torch.arange(via.numel(), device=via.device)]
        keep = src != dst
        outs.append(
            _heaviest(
                torch.stack([src, dst])[:, keep],
                user_degree[via[keep]].float().rsqrt(),
                item_degree,
                k,
            )
        )
    if len(outs) == 0:
        return pairs.new_empty(2, 0), item_degree.new_empty(0)
    return (
        torch.cat([edges for edges, _ in outs], dim=1),
        torch.cat([weight for _, weight in outs]),
    )


def _rings(
    user: Tensor, item: Tensor, count: Tensor, max_degree: int
) -> tuple[Tensor, Tensor]:
    r"""Returns the lists of items of all users, and where in them the paths of
    each pair begin: with the first item of the user, or the next one if not
    all fit. The first items stand once more at the end of such a list.
    """
    busy = count > max_degree
    length = count + busy * max_degree
    ptr, ring_ptr = cumsum(count), cumsum(length)
    owner = torch.arange(count.numel(), device=user.device)
    owner = owner.repeat_interleave(length)
    place = torch.arange(owner.numel(), device=user.device) - ring_ptr[owner]
    ring = item[ptr[owner] + place % count[owner]]
    following = torch.arange(1, user.numel() + 1, device=user.device)
    following = (following - ptr[user]) * busy[user]
    return ring, ring_ptr[user] + following


def _heaviest(
    edge_index: Tensor, value: Tensor, item_degree: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    (src, dst), value = coalesce(edge_index, value, item_degree.numel())
    value = value * (item_degree[src] * item_degree[dst]).pow(-0.25)
    edge_index, value = rank(src, dst, value, k)
    return edge_index.flip(0), value
