import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg.nn.loss import hardest_negative
from crane_pyg.transforms.knn import merge_item_graphs

from .base import CHANNELS, Peer, bpr_loss
from .features import ItemGraph, Projection, get_features, neighbor_graph

IMAGE_TEXT = {'image': 0.1, 'text': 0.9}


class FREEDOM(Peer):
    r"""The recommender from the `"A Tale of Two Graphs: Freezing and Denoising
    Graph Structures for Multimodal Recommendation"
    <https://arxiv.org/abs/2211.06924>`_ paper.

    .. math::
        \mathbf{H}_{\mathcal{U}} = \bar{\mathbf{X}}_{\mathcal{U}}, \qquad
        \mathbf{H}_{\mathcal{I}} = \bar{\mathbf{X}}_{\mathcal{I}} +
        \sum_m w_m \hat{\mathbf{S}}_m \mathbf{X}_{\mathcal{I}}

    with :math:`\bar{\mathbf{X}}` of LightGCN from the ID embeddings
    :math:`\mathbf{X}`, and the frozen graphs :math:`\hat{\mathbf{S}}_m` of
    unweighted neighbors. Projected features are ranked as well:

    .. math::
        \mathcal{L} = \mathcal{L}_{\text{BPR}}(\mathbf{H}_{\mathcal{U}},
        \mathbf{H}_{\mathcal{I}}) + \lambda \sum_m
        \mathcal{L}_{\text{BPR}}(\mathbf{H}_{\mathcal{U}},
        \mathbf{F}_m \mathbf{W}_m + \mathbf{b}_m)

    Args:
        data (torch_geometric.data.HeteroData): Features and node counts.
        modality_weights (dict, optional): :math:`w_m`; if not given, those of
            the paper for images and texts, and equal ones for other
            modalities. (default: :obj:`None`)
        num_layers (int, optional): The layers of LightGCN.
            (default: :obj:`2`)
        k (int, optional): The number of neighbors. (default: :obj:`10`)
        channels (int, optional): The size of the embeddings.
            (default: :obj:`64`)
    """

    def __init__(
        self,
        data: HeteroData,
        modality_weights: dict[str, float] | None = None,
        num_layers: int = 2,
        k: int = 10,
        channels: int = CHANNELS,
    ) -> None:
        super().__init__(data, channels)
        self.num_layers = num_layers
        xs = get_features(data)
        if modality_weights is None:
            known = xs.keys() == IMAGE_TEXT.keys()
            modality_weights = IMAGE_TEXT if known else dict.fromkeys(xs, 1.0)
        graphs = {
            name: neighbor_graph(x, k, cosine=False) for name, x in xs.items()
        }
        graph = merge_item_graphs(graphs, modality_weights, self.size[1])
        self.item_graph = ItemGraph(*graph, self.size[1])
        self.project = Projection(data, self.channels)
        self.reset_parameters()

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items."""
        user, item = self.propagate(data, self.num_layers)
        return user, item + self.item_graph(self.item_id)

    def loss(
        self,
        out: tuple[Tensor, Tensor],
        user: Tensor,
        pos: Tensor,
        neg: Tensor,
        lambda_reg: float = 0.0,
        mm_weight: float = 1e-3,
    ) -> Tensor:
        r"""BPR, and that of the projected features of every modality."""
        x = F.embedding(user, out[0])
        neg = hardest_negative(x, out[1], neg)
        loss = super().loss(out, user, pos, neg.unsqueeze(1), lambda_reg)
        index, pair = torch.stack([pos, neg]).unique(return_inverse=True)
        features = [F.embedding(pair, z) for z in self.project(index)]
        return loss + mm_weight * sum(bpr_loss(x, *z) for z in features)
