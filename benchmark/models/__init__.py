r"""The models that are compared, by name: each a module that embeds users and
items and has a loss, as `crane_pyg.training.fit` asks for, and its recipe.
"""

from dataclasses import replace

from crane_pyg.training import Recipe

from .base import PUBLISHED, RATES, SAME, Entry
from .crane import crane
from .factorization import MF, VBPR
from .freedom import FREEDOM
from .ials import ials
from .lightgcn import LightGCNModel
from .mgcn import MGCN

__all__ = ['MODELS', 'RATES', 'Entry', 'ials']

FAST = replace(PUBLISHED, lr=SAME.lr, batch_size=SAME.batch_size)
DROPS = replace(PUBLISHED, edge_dropping=0.8)

MODELS: dict[str, Entry] = {
    'crane': Entry(crane, Recipe()),
    'mf-bpr': Entry(MF, loss={'lambda_reg': 0.1}),
    'vbpr': Entry(VBPR, loss={'lambda_reg': 0.1}),
    'lightgcn': Entry(LightGCNModel, FAST),
    'lightgcn-same-recipe': Entry(LightGCNModel, SAME, {'lambda_reg': 1e-3}),
    'freedom': Entry(FREEDOM, DROPS),
    'freedom-same-recipe': Entry(FREEDOM, SAME, {'lambda_reg': 1e-3}),
    'mgcn': Entry(MGCN),
    'mgcn-same-recipe': Entry(MGCN, SAME),
}
