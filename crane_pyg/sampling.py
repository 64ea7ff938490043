r"""Negative sampling."""

import torch
from torch import Tensor
from torch_geometric.utils import degree, structured_negative_sampling

__all__ = ['sample_negatives']


def sample_negatives(
    edge_index: Tensor,
    num_items: int,
    num_samples: int = 1,
    exclude: Tensor | None = None,
) -> Tensor:
    r"""Draws, for every pair, items that its user has no pair with, uniformly
    by :func:`torch_geometric.utils.structured_negative_sampling`.

    To be called once per epoch, as it works on the CPU.

    Args:
        edge_index (torch.Tensor): The (user, item) pairs :math:`(2, E)`.
        num_items (int): The number of items.
        num_samples (int, optional): The number of items per pair :math:`S`.
            (default: :obj:`1`)
        exclude (torch.Tensor, optional): Further pairs of these users, whose
            items are not to be drawn either :math:`(2, E^{\prime})`.
            (default: :obj:`None`)

    Returns:
        torch.Tensor: Item indices :math:`(E, S)`.

    Raises:
        ValueError: If :obj:`num_samples` is not positive, or if a user has
            pairs with all items.
    """
    if num_samples <= 0:
        raise ValueError(
            f"'num_samples' needs to be positive (got {num_samples})"
        )
    num_edges = edge_index.size(1)
    if exclude is not None:  # PyG avoids only what it also samples for.
        edge_index = torch.cat([edge_index, exclude], dim=1)
    pairs = edge_index[0] * num_items + edge_index[1]
    deg = degree(pairs.unique() // num_items, dtype=torch.long)
    if deg.numel() > 0 and int(deg.max()) >= num_items:
        raise ValueError(
            f'Every user needs an item to sample (got user '
            f'{int(deg.argmax())} with pairs with all {num_items} items)'
        )
    repeated = edge_index.repeat(1, num_samples)
    negative = structured_negative_sampling(repeated, num_items)[2]
    return negative.view(num_samples, -1)[:, :num_edges].t().contiguous()
