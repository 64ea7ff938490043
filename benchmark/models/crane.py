import copy

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg.nn import (
    CRANE,
    CRANEOutput,
    InfoNCELoss,
    SampledSoftmaxLoss,
)
from crane_pyg.ranking import Neighborhood
from crane_pyg.ranking.neighborhood import refined_graph
from crane_pyg.transforms import ReduceFeatures

from .base import Model, Recipe
from .features import ItemGraph, get_features


class CRANEModel(Model):
    r"""CRANE, with its defaults unless told otherwise.

    Args:
        data (torch_geometric.data.HeteroData): Features and node counts.
        loss (dict, optional): Arguments of the loss of CRANE.
            (default: :obj:`None`)
        softmax (dict, optional): Arguments of :class:`Softmax`, which replaces
            BPR in that loss. (default: :obj:`None`)
        features (dict, optional): Trains on other features: those of a
            :obj:`dtype`, or reduced to some :obj:`channels`.
            (default: :obj:`None`)
        rebuild (int, optional): Every how many epochs the item graph of the
            training is built anew, of the streams of the items after RCA;
            :obj:`0` keeps that of the features. (default: :obj:`0`)
        **kwargs (optional): Values of the recipe and arguments of CRANE.
    """

    recipe = Recipe(
        num_negatives=4, edge_dropping=0.8, lambda_reg=3e-2, disjoint=True
    )

    def __init__(
        self,
        data: HeteroData,
        loss: dict[str, float] | None = None,
        softmax: dict[str, float] | None = None,
        features: dict[str, object] | None = None,
        rebuild: int = 0,
        **kwargs: object,
    ) -> None:
        recipe = vars(self.recipe).keys() & kwargs.keys()
        super().__init__(**{name: kwargs.pop(name) for name in recipe})
        self.rebuild, self.item_graph = rebuild, None
        self.features = None
        if features is not None:
            self.features = get_features(replace_features(data, **features))
        xs = self.features or get_features(data)
        sizes = {name: x.size(1) for name, x in xs.items()}
        num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
        self.model = CRANE(num_users, num_items, sizes, **kwargs)
        self.options = {'lambda_reg': self.recipe.lambda_reg, **(loss or {})}
        self.softmax = None
        if softmax is not None:
            self.softmax = Softmax(data, self.recipe.lambda_reg, **softmax)

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items."""
        self.out = self.model(self._replace(data))
        return self.out.user, self.out.item

    def neighborhood(self, data: HeteroData) -> Neighborhood | None:
        r"""Returns what CRANE adds to the inner products."""
        return self.model.neighborhood(data, self.out)

    def validate(
        self, data: HeteroData, user: Tensor, item: Tensor
    ) -> dict[str, float]:
        r"""Ranks the validation pairs with and without the neighborhood, and
        keeps what is better.
        """
        held_out = data[self.model.edge_type].val_edge_label_index
        return self.model.tune_neighborhood(data, self.out, held_out)

    def loss(self, user: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        r"""The loss of a mini-batch, of the latest forward pass."""
        if self.softmax is None:
            return self.model.loss(self.out, user, pos, neg, **self.options)
        loss = self.softmax(self.out, user, pos)
        return loss + contrast(self.model, self.out, user, pos)

    @torch.no_grad()
    def end_epoch(self, data: HeteroData, epoch: int) -> None:
        r"""Builds the item graph anew."""
        if self.rebuild > 0 and epoch % self.rebuild == 0:
            x = torch.cat(self.model._encode_items(self._replace(data)), dim=-1)
            graph = ItemGraph(*refined_graph(x), self.model.num_items)
            self.item_graph = (graph.edge_index, graph.edge_weight)

    def _replace(self, data: HeteroData) -> HeteroData:
        if self.features is None and self.item_graph is None:
            return data
        data = copy.copy(data)
        for name, x in (self.features or {}).items():
            data['item'][f'x_{name}'] = x
        if self.item_graph is not None:
            store = data['item', 'similar_to', 'item']
            store.edge_index, store.edge_weight = self.item_graph
        return data


def replace_features(
    data: HeteroData, dtype: str | None = None, channels: int | None = None
) -> HeteroData:
    r"""Returns the data with features of another type or fewer of them."""
    data = copy.copy(data)
    if channels is not None:
        data = ReduceFeatures(channels)(data)
    if dtype is not None:
        for name, x in get_features(data).items():
            data['item'][f'x_{name}'] = x.to(getattr(torch, dtype))
    return data


def contrast(
    model: CRANE,
    out: CRANEOutput,
    user: Tensor,
    item: Tensor,
    weight: float = 1e-2,
    size: int = 1024,
) -> Tensor:
    r"""The contrastive part of the loss of CRANE, for use with others than BPR.

    Args:
        model (CRANE): The model.
        out (CRANEOutput): The output of its forward pass.
        user (torch.Tensor): The users :math:`(B)`.
        item (torch.Tensor): Their items :math:`(B)`.
        weight (float, optional): Its weight. (default: :obj:`1e-2`)
        size (int, optional): The number of pairs it takes.
            (default: :obj:`1024`)
    """
    user, item, loss_fn = user[:size], item[:size], InfoNCELoss()
    embs = F.embedding(user, out.user), F.embedding(item, out.item)
    views = model._views(out, user, item, *embs)
    losses = [loss_fn(*views[0], user), loss_fn(*views[1], item)]
    return weight * sum(losses)


class Softmax(torch.nn.Module):
    r"""Sampled softmax over the cosines, with negatives that a mini-batch
    shares.

    Args:
        data (torch_geometric.data.HeteroData): The training pairs.
        lambda_reg (float): The :math:`L_2` regularization strength.
        num_samples (int): The number of negatives.
        temperature (float): The temperature.
        popular (bool, optional): If set to :obj:`True`, items are drawn as
            often as users had them, instead of equally often.
            (default: :obj:`False`)
        correct (bool, optional): If set to :obj:`True`, logits are corrected
            for how often items are drawn. (default: :obj:`False`)
    """

    def __init__(
        self,
        data: HeteroData,
        lambda_reg: float,
        num_samples: int,
        temperature: float,
        popular: bool = False,
        correct: bool = False,
    ) -> None:
        super().__init__()
        num_items = data['item'].num_nodes
        item = data['user', 'rates', 'item'].edge_index.as_tensor()[1]
        count = torch.ones(num_items, device=item.device)
        if popular:  # One more, as any item needs to be drawn at times.
            count += torch.bincount(item, minlength=num_items)
        self.register_buffer('share', count / count.sum(), persistent=False)
        self.lambda_reg, self.num_samples = lambda_reg, num_samples
        self.loss_fn, self.correct = SampledSoftmaxLoss(temperature), correct

    def forward(self, out: CRANEOutput, user: Tensor, pos: Tensor) -> Tensor:
        r"""The loss of a mini-batch of training pairs."""
        neg = self.share.multinomial(self.num_samples, replacement=True)
        x, y = F.embedding(user, out.user), F.embedding(pos, out.item)
        reg = x.square().sum() + y.square().sum()
        log_q = (None, None)
        if self.correct:
            log_q = self.share[pos].log(), self.share[neg].log()
        mask, z = pos.unsqueeze(1) == neg, F.embedding(neg, out.item)
        loss = self.loss_fn(x, y, z, mask, *log_q)
        return loss + self.lambda_reg * reg / x.size(0)


def add_neighborhood(peer: type[Model]) -> type[Model]:
    r"""Gives the neighborhood of CRANE to a peer, each of its graphs with the
    weight 7 times :obj:`scale`, which is tuned.
    """

    class WithNeighborhood(peer):
        def __init__(
            self, data: HeteroData, scale: float = 1.0, **recipe: float | None
        ) -> None:
            super().__init__(data, **recipe)
            self.scale = scale

        def neighborhood(self, data: HeteroData) -> Neighborhood | None:
            near = Neighborhood.from_embeddings(data, self.user, self.item)
            return near.scaled(7 * self.scale / near.weights[0])

    return WithNeighborhood
