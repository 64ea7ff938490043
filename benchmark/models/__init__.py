r"""The models that are compared: each embeds users and items, has a loss, and
says which recipe it is trained by. `MODELS[name](data, lr=1e-4)` overrides a
value of that recipe.
"""

from .base import Model, Recipe
from .crane import CRANEModel, add_neighborhood
from .factorization import MF, VBPR
from .freedom import FREEDOM, FREEDOMSameRecipe
from .lightgcn import LightGCNModel, LightGCNSameRecipe
from .mgcn import MGCN, MGCNSameRecipe

__all__ = ['MODELS', 'Model', 'Recipe']

MODELS: dict[str, type[Model]] = {
    'crane': CRANEModel,
    'mf-bpr': MF,
    'vbpr': VBPR,
    'lightgcn': LightGCNModel,
    'lightgcn-same-recipe': LightGCNSameRecipe,
    'freedom': FREEDOM,
    'freedom-same-recipe': FREEDOMSameRecipe,
    'freedom-neighborhood': add_neighborhood(FREEDOMSameRecipe),
    'mgcn': MGCN,
    'mgcn-same-recipe': MGCNSameRecipe,
    'mgcn-neighborhood': add_neighborhood(MGCNSameRecipe),
}
