import torch
from torch import Tensor
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.hetero_data import HeteroData
from torch_geometric.transforms.base_transform import BaseTransform
from torch_geometric.utils import degree

from crane_pyg._check import check_size
from crane_pyg._edges import EdgeType, check_edge_type, get_edges
from crane_pyg._rows import as_pairs, largest_entry
from crane_pyg.transforms._utils import (
    check_features,
    check_no_inf,
    get_modalities,
    warn_partly_missing,
)


def user_profiles(x: Tensor, edge_index: object, num_users: int) -> Tensor:
    r"""Averages the features of the items of every user, which yields the
    symmetric user profiles of the `"Cross-Modal Attention Network with Dual
    Graph Learning in Multimodal Recommendation"
    <https://arxiv.org/abs/2601.11151>`_ paper.

    .. math::
        \mathbf{P} = \mathbf{D}_u^{-1} \mathbf{R} \mathbf{X}

    A row of :obj:`x` that holds a NaN or only zeros (an item that lacks the
    modality) is neither summed nor counted. A user without any other item gets
    a row of NaN: the modality is lacking there, too.

    .. note::
        The profile of a user contains every training item of that user. A
        model which scores training pairs with it can read off the answer.

    Args:
        x (torch.Tensor): The item features.
        edge_index (torch.Tensor): The users above the items of the training
            pairs; repeated pairs count repeatedly.
        num_users (int): The number of users.

    Shapes:
        - **x:** :math:`(|\mathcal{I}|, F)`
        - **edge_index:** :math:`(2, |\mathcal{E}|)`
        - **output:** :math:`(|\mathcal{U}|, F)`

    Raises:
        ValueError: If :obj:`x` is not two-dimensional, not floating or
            infinite, or if an index is out of range.
    """
    check_features(x, 'x')
    check_no_inf(x, 'x')
    check_size(0, num_users=num_users)
    pairs = as_pairs('edge_index', edge_index, (num_users, x.size(0)), x.device)
    lacks = ~(largest_entry(x) > 0)
    pairs = pairs[:, ~lacks[pairs[1]]]

    # A sparse product avoids features on every edge, and sparse kernels know
    # no half precision:
    out = x.masked_fill(lacks.unsqueeze(1), 0.0)
    out = out if x.dtype == torch.double else out.float()
    adj = torch.sparse_coo_tensor(
        pairs,
        out.new_ones(pairs.size(1)),
        size=(num_users, x.size(0)),
        device=x.device,  # Not the default one.
        check_invariants=False,
    )
    count = degree(pairs[0], num_users, dtype=out.dtype)
    out = torch.mm(adj, out) / count.unsqueeze(1)
    return out.to(x.dtype)


@functional_transform('add_user_profiles')
class AddUserProfiles(BaseTransform):
    r"""Adds the mean features of a user's training items as
    :obj:`x_<modality>` to the user nodes, for every modality
    :obj:`x_<modality>` of the item nodes
    (functional name: :obj:`add_user_profiles`).
    See :func:`~crane_pyg.transforms.profile.user_profiles`. A row that holds a
    NaN or only zeros lacks the modality; a :class:`UserWarning` counts those
    with a NaN next to numbers.

    Args:
        edge_type (tuple, optional): The edge type that holds the training
            pairs, from users to items.
            (default: :obj:`('user', 'rates', 'item')`)

    Raises:
        ValueError: If the edge type, a number of nodes or every modality is
            missing, or if features or indices do not fit the nodes.
    """

    def __init__(self, edge_type: EdgeType = ('user', 'rates', 'item')) -> None:
        self.edge_type = check_edge_type(edge_type)

    def forward(self, data: HeteroData) -> HeteroData:
        r"""Returns the data with the profiles of its users."""
        store, num_users, _ = get_edges(data, self.edge_type)
        for name, x in get_modalities(data, self.edge_type[2]).items():
            warn_partly_missing(x, f'x_{name}', stacklevel=3)
            profiles = user_profiles(x, store.edge_index, num_users)
            data[self.edge_type[0]][f'x_{name}'] = profiles
        return data

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(edge_type={self.edge_type})'
