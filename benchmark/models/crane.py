import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg.neighborhood import Neighborhood
from crane_pyg.nn import CRANE, CRANEOutput, SampledSoftmaxLoss

from .base import Model, Recipe
from .features import get_features


class CRANEModel(Model):
    r"""CRANE, with its defaults unless told otherwise.

    Args:
        data (torch_geometric.data.HeteroData): Features and node counts.
        loss (dict, optional): Arguments of the loss of CRANE.
            (default: :obj:`None`)
        softmax (dict, optional): Arguments of sampled softmax, which replaces
            that loss; :obj:`num_samples` negatives are shared by a
            mini-batch. (default: :obj:`None`)
        **kwargs (optional): Values of the recipe and arguments of CRANE.
    """

    recipe = Recipe(num_negatives=4, edge_dropping=0.8, lambda_reg=3e-3)

    def __init__(
        self,
        data: HeteroData,
        loss: dict[str, float] | None = None,
        softmax: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        recipe = vars(self.recipe).keys() & kwargs.keys()
        super().__init__(**{name: kwargs.pop(name) for name in recipe})
        sizes = {name: x.size(1) for name, x in get_features(data).items()}
        num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
        self.model = CRANE(num_users, num_items, sizes, **kwargs)
        self.options = {'lambda_reg': self.recipe.lambda_reg, **(loss or {})}
        self.num_samples, self.softmax = 0, None
        if softmax is not None:
            softmax = dict(softmax)
            self.num_samples = int(softmax.pop('num_samples'))
            self.softmax = SampledSoftmaxLoss(**softmax)

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items."""
        self.out = self.model(data)
        return self.out.user, self.out.item

    def neighborhood(self, data: HeteroData) -> Neighborhood | None:
        r"""Returns what CRANE adds to the inner products."""
        return self.model.neighborhood(data, self.out)

    def loss(self, user: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        r"""The loss of a mini-batch, of the latest forward pass."""
        if self.softmax is None:
            return self.model.loss(self.out, user, pos, neg, **self.options)
        num_items = self.model.num_items
        index = torch.randint(num_items, (self.num_samples,), device=pos.device)
        x, y = F.embedding(user, self.out.user), F.embedding(pos, self.out.item)
        mask = pos.unsqueeze(1) == index
        loss = self.softmax(x, y, F.embedding(index, self.out.item), mask)
        reg = x.square().sum() + y.square().sum()
        return loss + self.options['lambda_reg'] * reg / x.size(0)


def add_neighborhood(peer: type[Model], scale: float) -> type[Model]:
    r"""Gives the neighborhood of CRANE to a peer, with its weights times
    :obj:`scale`, as the inner products of peers are of another size.
    """

    class WithNeighborhood(peer):
        def neighborhood(self, data: HeteroData) -> Neighborhood | None:
            # It depends on no parameter of the model:
            crane = CRANE(*self.size, in_channels={'none': 1}, channels=1)
            for relation in crane.neighbor_weights:
                crane.neighbor_weights[relation] *= scale
            out = CRANEOutput(self.user, self.item, self.user)
            return crane.neighborhood(data, out)

    return WithNeighborhood
