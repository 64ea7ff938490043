import torch
from torch import Tensor
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.hetero_data import HeteroData
from torch_geometric.transforms.base_transform import BaseTransform
from torch_geometric.utils import degree

from crane_pyg._check import check_fraction
from crane_pyg._edges import EdgeType, check_edge_type, get_edges
from crane_pyg._rows import as_plain, check_edge_index
from crane_pyg.transforms._utils import edge_attrs, take_attr
from crane_pyg.transforms.dual_graph import set_user_item_graph


def degree_drop(
    edge_index: Tensor,
    num_src: int,
    num_dst: int,
    p: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Samples the edges that survive the degree-sensitive edge dropping of
    the `"A Tale of Two Graphs: Freezing and Denoising Graph Structures for
    Multimodal Recommendation" <https://arxiv.org/abs/2211.06924>`_ paper.

    :math:`\mathrm{round}((1-p) |\mathcal{E}|)` edges are drawn one after the
    other without replacement, each with a probability proportional to

    .. math::
        w_{ui} = \frac{1}{\sqrt{d_u d_i}}

    among the edges that are left. This is the order of the keys
    :math:`\epsilon_{ui} / w_{ui}` with :math:`\epsilon_{ui} \sim
    \mathrm{Exp}(1)`, so that all edges are drawn at once.

    Args:
        edge_index (torch.Tensor): The source and destination indices.
        num_src (int): The number of source nodes.
        num_dst (int): The number of destination nodes.
        p (float): The fraction of edges to drop.
        generator (torch.Generator, optional): The source of randomness, on
            the device of :obj:`edge_index`. (default: :obj:`None`)

    Shapes:
        - **edge_index:** :math:`(2, |\mathcal{E}|)`
        - **output:** the positions of the kept edges in ascending order

    Raises:
        ValueError: If :obj:`p` is not in :math:`[0, 1)`, or if an index is
            out of range.
    """
    check_fraction('p', p)
    check_edge_index(edge_index, num_src, num_dst)
    edge_index = as_plain(edge_index)
    return _draw(edge_index, num_src, num_dst, p, generator).nonzero().view(-1)


def _draw(
    edge_index: Tensor,
    num_src: int,
    num_dst: int,
    p: float,
    generator: torch.Generator | None,
) -> Tensor:
    r"""Returns a mask of the edges that survive."""
    src, dst = edge_index.long()
    num_edges = src.numel()
    num_drops = num_edges - round((1 - p) * num_edges)

    keys = torch.empty(num_edges, device=src.device)
    keys.exponential_(generator=generator)
    keys *= degree(src, num_src).sqrt()[src] * degree(dst, num_dst).sqrt()[dst]
    mask = torch.ones_like(keys, dtype=torch.bool)
    mask[keys.topk(num_drops, sorted=False)[1]] = False
    return mask


def _is_dropped(edge_index: Tensor, num_src: int, kept: Tensor) -> Tensor:
    r"""Returns a mask of the pairs none of which is kept."""
    key = edge_index[1].long() * num_src + edge_index[0]
    if bool((key[1:] > key[:-1]).all()):
        return ~kept
    # A pair may stand twice, and be kept once:
    key = key.unique(return_inverse=True)[1]
    mask = torch.ones_like(kept)
    mask[key[kept]] = False
    return mask[key]


@functional_transform('degree_drop_edges')
class DegreeDropEdges(BaseTransform):
    r"""Drops a random fraction of the user-item edges in both directions,
    those of popular users and items more often, and renormalizes the others
    (functional name: :obj:`degree_drop_edges`).
    See :func:`~crane_pyg.transforms.drop_edges.degree_drop`.

    To be called once per training epoch on the *full* graph that
    :class:`~crane_pyg.transforms.BuildDualGraph` has built: every call draws
    anew and returns new edges, sorted by their second row, and edge weights of
    :obj:`edge_type` and its reverse; what is as long as the edges is cut along.
    All else is shared with the input, which stays as it is.

    The dropped pairs become the :obj:`edge_label_index` of :obj:`edge_type`:
    pairs to train on that carry no message, such that no graph holds the
    answer, as with the :obj:`disjoint_train_ratio` of
    :class:`~torch_geometric.transforms.RandomLinkSplit`. They replace pairs
    that it left there. With :obj:`p=0`, there are none. A pair that stands
    twice, and is kept once, is not among them. An :obj:`edge_label` of the
    training pairs, *e.g.*, of ratings, becomes that of the dropped ones.

    Args:
        p (float): The fraction of edges to drop.
        edge_type (tuple, optional): The edge type that holds the training
            pairs, from users to items.
            (default: :obj:`('user', 'rates', 'item')`)
        generator (torch.Generator, optional): The source of randomness, on
            the device of the data. Its state moves on with every call. Uses
            the global one if not given. (default: :obj:`None`)

    Raises:
        ValueError: If :obj:`p` is not in :math:`[0, 1)`, if the edge type or
            a number of nodes is missing, or if an index is out of range.
    """

    def __init__(
        self,
        p: float,
        edge_type: EdgeType = ('user', 'rates', 'item'),
        generator: torch.Generator | None = None,
    ) -> None:
        check_fraction('p', p)
        self.p = p
        self.edge_type = check_edge_type(edge_type)
        self.generator = generator

    def forward(self, data: HeteroData) -> HeteroData:
        r"""Returns the data with the kept edges of one draw."""
        store, num_src, num_dst = get_edges(data, self.edge_type)
        pairs = as_plain(store.edge_index)
        kept = _draw(pairs, num_src, num_dst, self.p, self.generator)
        dropped = _is_dropped(pairs, num_src, kept).nonzero().view(-1)
        index = kept.nonzero().view(-1)
        label = edge_attrs(store).get('edge_label')
        data = set_user_item_graph(data, self.edge_type, index)
        store.edge_label_index = pairs.index_select(1, dropped)
        store.pop('edge_label', None)  # Of other pairs.
        if label is not None:
            store.edge_label = take_attr('edge_label', label, dropped)
        return data

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(p={self.p}, edge_type={self.edge_type})'
        )
