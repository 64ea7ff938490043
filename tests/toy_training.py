r"""A small model and small data to train it on, for tests and subprocesses."""

import torch
import torch.nn.functional as F
from torch.nn import Parameter

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset

RATES = ('user', 'rates', 'item')
SIZE = (60, 40)


def get_data():
    r"""Both graphs of 60 users and 40 items."""
    data = FakeMultimodalDataset(*SIZE, {'image': 4})[0]
    return T.BuildDualGraph(k=3, num_co_rated=5)(data)


class Toy(torch.nn.Module):
    r"""One step over the graph, and dropout."""

    def __init__(self, num_users=SIZE[0], num_items=SIZE[1], channels=8):
        super().__init__()
        self.user = Parameter(torch.empty(num_users, channels))
        self.item = Parameter(torch.empty(num_items, channels))
        self.register_buffer('calls', torch.zeros(()))
        self.graphs = []  # What it was called with.
        self.negatives = []
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.normal_(self.user, std=0.1)
        torch.nn.init.normal_(self.item, std=0.1)

    def forward(self, data):
        src, dst = data[RATES].edge_index
        self.graphs.append((src.numel(), self.training))
        weight = data[RATES].edge_weight.unsqueeze(1)
        item = F.dropout(self.item, 0.1, self.training)
        user = self.user.index_add(0, src, weight * item[dst])
        if self.training:
            self.calls += 1
        return user, item

    def loss(self, out, user_index, pos_index, neg_index, scale=1.0):
        self.negatives.append(neg_index)
        user = out[0][user_index].unsqueeze(1)
        pos = (user * out[1][pos_index].unsqueeze(1)).sum(-1)
        neg = (user * out[1][neg_index]).sum(-1)
        return -scale * F.logsigmoid(pos - neg).mean()


class Terms(Toy):
    r"""The same, in terms that sum up to another loss."""

    def loss_terms(self, out, user_index, pos_index, neg_index):
        bpr = self.loss(out, user_index, pos_index, neg_index)
        return {'bpr': bpr, 'reg': 0.01 * self.user.pow(2).mean()}


def get_model(cls=Toy, seed=1):
    r"""A model, after which the generator stands at its seed."""
    torch.manual_seed(seed)
    return cls()


def get_weights(model):
    r"""A copy of the weights."""
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(x, y):
    r"""Whether two states are the same, bit for bit."""
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
