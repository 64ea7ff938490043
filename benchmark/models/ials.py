import itertools
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg.ranking import Ranker

from .base import CHANNELS, RATES

REGULARIZATION, ALPHA = (1.0, 10.0, 100.0), (1.0, 10.0)


def ials(
    data: HeteroData,
    seed: int = 0,
    channels: int = CHANNELS,
    iterations: int = 15,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    r"""Returns the embeddings of users and items of the `"Collaborative
    Filtering for Implicit Feedback Datasets"
    <https://doi.org/10.1109/ICDM.2008.22>`_ paper, by the library
    :obj:`implicit`, with the options that do best on the validation pairs, and
    these.

    Raises:
        ImportError: If that library is missing.
    """
    best = -1.0
    for regularization, alpha in itertools.product(REGULARIZATION, ALPHA):
        setting = {
            'factors': channels,
            'iterations': iterations,
            'regularization': regularization,
            'alpha': alpha,
        }
        embs = factorize(data, random_state=seed, **setting)
        ranker = Ranker.fit(data, *embs, relations=())
        valid = ranker.evaluate(data[RATES].val_edge_label_index)
        if valid['recall@20'] > best:
            best, out = valid['recall@20'], (*embs, setting)
    return out


def factorize(data: HeteroData, **kwargs: Any) -> tuple[Tensor, Tensor]:
    r"""Returns the embeddings of one setting."""
    # Not needed by those who leave it out:
    import implicit.als
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    device = data[RATES].edge_index.device
    pairs = data[RATES].edge_index.cpu().numpy()
    size = (data['user'].num_nodes, data['item'].num_nodes)
    ones = torch.ones(pairs.shape[1]).numpy()
    # It has threads of its own, which those of BLAS would get in the way of:
    with threadpool_limits(1, 'blas'):
        model = implicit.als.AlternatingLeastSquares(
            num_threads=torch.get_num_threads(), **kwargs
        )
        model.fit(csr_matrix((ones, pairs), size), show_progress=False)
    embs = (model.user_factors, model.item_factors)
    user, item = (torch.from_numpy(x).to(device) for x in embs)
    return user, item
