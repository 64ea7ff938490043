from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg.neighborhood import Neighborhood
from crane_pyg.nn import CRANE

from .base import Model, Recipe
from .features import get_features


class CRANEModel(Model):
    r"""CRANE, with its defaults unless told otherwise."""

    recipe = Recipe(num_negatives=4, edge_dropping=0.8, lambda_reg=3e-3)

    def __init__(self, data: HeteroData, **kwargs: object) -> None:
        recipe = vars(self.recipe).keys() & kwargs.keys()
        super().__init__(**{name: kwargs.pop(name) for name in recipe})
        sizes = {name: x.size(1) for name, x in get_features(data).items()}
        num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
        self.model = CRANE(num_users, num_items, sizes, **kwargs)

    def forward(self, data: HeteroData) -> tuple[Tensor, Tensor]:
        r"""Embeds all users and items."""
        self.out = self.model(data)
        return self.out.user, self.out.item

    def neighborhood(self, data: HeteroData) -> Neighborhood | None:
        r"""Returns what CRANE adds to the inner products."""
        return self.model.neighborhood(data)

    def loss(self, user: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        r"""The loss of a mini-batch, of the latest forward pass."""
        reg = self.recipe.lambda_reg
        return self.model.loss(self.out, user, pos, neg, lambda_reg=reg)
