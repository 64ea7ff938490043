r"""Small things that more than one file of tests needs."""

import copy
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANE
from crane_pyg.ranking import Ranker

RATES = ('user', 'rates', 'item')
REV = ('item', 'rev_rates', 'user')
SIMILAR = ('item', 'similar_to', 'item')

# A folder of three users and four items in the MMRec layout:
HEADER = 'userID\titemID\tx_label'
ROWS = [
    (0, 0, 0),
    (0, 1, 1),
    (0, 2, 2),
    (1, 1, 0),
    (1, 3, 1),
    (2, 2, 0),
    (2, 0, 2),
]

USERS, ITEMS = 30, 40
SIZES = {'image': 8, 'text': 6}
OPTIONS = [
    {},
    {'use_id': False},
    {'profile': 'contrast', 'num_steps': 2},
    {'num_item_layers': 2, 'num_layers': 1},
    {'num_item_layers': 0},
    {'num_layers': 0, 'profile': None},
]
RELATIONS = ('co_rated', 'similar_to', 'refined', 'ease')


def get_data(lonely=None):
    r"""A graph, in which one user may have nothing."""
    dataset = FakeMultimodalDataset(USERS, ITEMS, SIZES, missing_rate=0.1)
    data = dataset[0]
    if lonely is not None:
        edge_index = data[RATES].edge_index
        data[RATES].edge_index = edge_index[:, edge_index[0] != lonely]
    return T.BuildDualGraph(k=5)(data)


def get_model(**kwargs):
    r"""A model for this graph, in which every part has a say."""
    torch.manual_seed(3)
    kwargs = {'profile': 'input', 'mode': 'correlation', **kwargs}
    model = CRANE(USERS, ITEMS, SIZES, channels=16, **kwargs)
    if model.gate is not None:  # Which starts closed.
        with torch.no_grad():
            model.gate.copy_(torch.tensor([0.7, -0.4]))
    return model


def get_ranker(model, data, no_history='embedding', **weights):
    r"""A ranker by this model and the relations of these weights, or all."""
    weights = weights or dict.fromkeys(RELATIONS, 0.5)
    return Ranker.from_model(
        model, data, weights=weights, no_history=no_history
    )


def all_scores(model, data, ranker=None):
    r"""The scores by which users and items are ranked."""
    if ranker is not None:
        top = ranker.top_k(ITEMS, exclude_seen=False)
        return torch.empty(USERS, ITEMS).scatter(1, top.index, top.score)
    with torch.no_grad():
        out = copy.deepcopy(model).eval()(data)
    return out.user @ out.item.t()


@contextmanager
def no_sync():
    r"""Fails what makes the CPU wait for the GPU."""
    torch.cuda.synchronize()
    try:
        set_sync_debug_mode('error')
        yield
    finally:
        set_sync_debug_mode('default')


def set_sync_debug_mode(mode):
    r"""Spares what PyTorch says of it: that it does not find everything."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Synchronization debug mode')
        torch.cuda.set_sync_debug_mode(mode)


class Trap:
    r"""Makes a file when it is unpickled."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)
