r"""Users, items and pairs of theirs."""

import torch

NUM_USERS, NUM_ITEMS = 13, 23


def random_pairs(num_pairs, seed, users=NUM_USERS):
    r"""Distinct pairs in random order."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(users * NUM_ITEMS, generator=generator)[:num_pairs]
    return torch.stack([index // NUM_ITEMS, index % NUM_ITEMS])


def pairs_by_user(edge_index):
    out = {}
    if edge_index is not None:
        for user, item in edge_index.t().tolist():
            out.setdefault(user, set()).add(item)
    return out


def naive_ranking(user_emb, item_emb, user, excluded):
    score = (user_emb[user].double() @ item_emb.double().t()).tolist()
    items = [item for item in range(len(score)) if item not in excluded]
    return sorted(items, key=lambda item: -score[item])
