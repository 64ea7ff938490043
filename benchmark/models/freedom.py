from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg.transforms import merge_item_graphs

from .base import Peer, bpr_loss
from .crane import CRANEModel
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
        mm_weight (float, optional): :math:`\lambda`. (default: :obj:`1e-3`)
        modality_weights (dict, optional): :math:`w_m`; if not given, those of
            the paper for images and texts, and equal ones for other
            modalities. (default: :obj:`None`)
        num_layers (int, optional): The layers of LightGCN.
            (default: :obj:`2`)
        k (int, optional): The number of neighbors. (default: :obj:`10`)
        **recipe (optional): The channels, and values of the recipe.
    """

    recipe = replace(Peer.recipe, edge_dropping=0.8, lambda_reg=0.0)

    def __init__(
        self,
        data: HeteroData,
        mm_weight: float = 1e-3,
        modality_weights: dict[str, float] | None = None,
        num_layers: int = 2,
        k: int = 10,
        **recipe: float | None,
    ) -> None:
        super().__init__(data, **recipe)
        self.mm_weight = mm_weight
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

    def embed(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items."""
        user, item = self.propagate(data, self.num_layers)
        return user, item + self.item_graph(self.item_id)

    def auxiliary_loss(self, user: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        r"""BPR on the projected features of every modality."""
        x = F.embedding(user, self.user)
        index, pair = torch.stack([pos, neg]).unique(return_inverse=True)
        features = [F.embedding(pair, out) for out in self.project(index)]
        return self.mm_weight * sum(bpr_loss(x, *out) for out in features)


class FREEDOMSameRecipe(FREEDOM):
    r"""FREEDOM, trained by CRANE's recipe."""

    recipe = replace(CRANEModel.recipe, lambda_reg=1e-3)
