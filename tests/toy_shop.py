r"""A small shop, and its scores worked out in double precision."""

import numpy as np
import torch
from torch_geometric.data import HeteroData

RATES = ('user', 'rates', 'item')
USERS, ITEMS = 40, 25


def get_data(lonely=()):
    r"""Users like items near their own place on a ring; those named have
    held-out pairs only.
    """
    generator = torch.Generator().manual_seed(12)
    place = torch.arange(USERS).unsqueeze(1) * ITEMS / USERS
    noise = torch.randn(USERS, ITEMS, generator=generator)
    distance = (torch.arange(ITEMS) - place).abs()
    distance = torch.minimum(distance, ITEMS - distance)
    order = (distance + 2 * noise).argsort(dim=1)
    parts = {
        'train': order[:, :6],
        'val': order[:, 6:8],
        'test': order[:, 8:10],
    }
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = USERS, ITEMS
    for name, items in parts.items():
        user = torch.arange(USERS).repeat_interleave(items.size(1))
        pairs = torch.stack([user, items.reshape(-1)])
        if name == 'train':
            keep = ~torch.isin(user, torch.tensor(lonely, dtype=torch.long))
            data[RATES].edge_index = pairs[:, keep]
        else:
            data[RATES][f'{name}_edge_label_index'] = pairs
    near = torch.arange(ITEMS)
    graph = data['item', 'similar_to', 'item']
    graph.edge_index = torch.stack([near, (near + 1) % ITEMS])
    graph.edge_weight = torch.rand(ITEMS, generator=generator)
    return data


def get_embs(seed=3, dim=4):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(n, dim, generator=generator) for n in (USERS, ITEMS)
    )


def dense(edge_index, size, value=None):
    out = np.zeros(size)
    one = np.ones(edge_index.size(1)) if value is None else value.numpy()
    np.add.at(out, tuple(edge_index.numpy()), one)
    return out


def get_history(data):
    return dense(data[RATES].edge_index, (USERS, ITEMS))


def similar(data):
    store = data['item', 'similar_to', 'item']
    return dense(store.edge_index, (ITEMS, ITEMS), store.edge_weight)


def naive_ease(history, l2):
    inverse = np.linalg.inv(history.T @ history + l2 * np.eye(history.shape[1]))
    out = -inverse / np.diag(inverse)
    np.fill_diagonal(out, 0.0)
    return out


def naive_top(score, history, k):
    score = np.where(history > 0, -np.inf, score)
    return np.argsort(-score, axis=1, kind='stable')[:, :k]


def naive_recall(score, history, pairs, k):
    top, out = naive_top(score, history, k), []
    for user in sorted(set(pairs[0].tolist())):
        items = set(pairs[1][pairs[0] == user].tolist())
        out.append(len(items & set(top[user].tolist())) / len(items))
    return out
