import argparse
import copy
import functools
import math

import accuracy
import models
import pytest
import torch
import torch.nn.functional as F
from models.crane import contrast

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANEOutput
from crane_pyg.ranking import evaluate, evaluate_popularity
from crane_pyg.training import sample_negatives

MODELS = models.MODELS

PEERS = ['mf-bpr', 'vbpr', 'freedom', 'mgcn']
SAME = ['freedom-same-recipe', 'mgcn-same-recipe']
MULTIMODAL = ['vbpr', 'freedom', 'mgcn']
NUM_USERS, NUM_ITEMS, CHANNELS = 60, 40, 64
SIZES = {'image': 6, 'text': 5, 'audio': 3}


def get_data(num_modalities=2, **kwargs):
    sizes = dict(list(SIZES.items())[:num_modalities])
    data = FakeMultimodalDataset(NUM_USERS, NUM_ITEMS, sizes, **kwargs)[0]
    return T.BuildDualGraph()(data)


def drop_edges(data, p=0.5):
    return T.DegreeDropEdges(p)(copy.copy(data))


def get_batch(data, num_samples=4):
    torch.manual_seed(7)
    pairs = data['user', 'rates', 'item'].edge_index
    return *pairs, sample_negatives(pairs, NUM_ITEMS, num_samples)


@torch.no_grad()
def get_model(name, data, **kwargs):
    r"""A model where no weight is zero, as after some training."""
    torch.manual_seed(12)
    model = MODELS[name](data, **kwargs)
    for param in model.parameters():
        param += 0.3 * torch.randn_like(param)
    return model


def get_features(data):
    r"""The features, zeros where they lack, and whether they are there."""
    for name, x in data['item'].items():
        if name.startswith('x_'):
            mask = ~x.isnan().any(dim=1)
            yield name[2:], x.nan_to_num(0.0), mask


def dense_rates(data):
    rates = torch.zeros(NUM_USERS, NUM_ITEMS)
    rates[tuple(data['user', 'rates', 'item'].edge_index)] = 1.0
    return normalize(rates, rates.sum(dim=1), rates.sum(dim=0))


def normalize(adj, row, col):
    out = adj / row.sqrt().unsqueeze(1) / col.sqrt().unsqueeze(0)
    return out.nan_to_num(0.0, 0.0, 0.0)


def dense_neighbors(x, mask, k, cosine):
    x = torch.nn.functional.normalize(x, dim=1)
    sim = (x @ x.t()).masked_fill(~(mask & mask.unsqueeze(1)), -1.0)
    is_top = sim >= sim.topk(k, dim=1)[0][:, -1:]
    adj = (sim if cosine else torch.ones_like(sim)) * is_top
    adj = adj.clamp(min=0.0) * mask.unsqueeze(1)
    return normalize(adj, adj.sum(dim=1), adj.sum(dim=1))


def dense_lightgcn(model, rates):
    adj = torch.cat([torch.zeros(NUM_USERS, NUM_USERS), rates], dim=1)
    zeros = torch.zeros(NUM_ITEMS, NUM_ITEMS)
    adj = torch.cat([adj, torch.cat([rates.t(), zeros], dim=1)])
    x = torch.cat([model.user_id, model.item_id])
    out = (x + adj @ x + adj @ adj @ x) / 3
    return out[:NUM_USERS], out[NUM_USERS:]


def bpr(score_pos, score_neg):
    return -(score_pos - score_neg).sigmoid().log().mean()


def inner(x, y):
    return (x * y).sum(dim=-1)


def check(out, expected):
    for x, y in zip(out, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


def test_names():
    assert set(PEERS + SAME) < set(MODELS)
    assert accuracy.MODELS is MODELS


@pytest.mark.parametrize('name', PEERS)
def test_recipe(name):
    published = vars(MODELS[name].recipe)
    assert published['num_negatives'] == 1
    assert published['edge_dropping'] == (0.8 if name == 'freedom' else 0.0)
    assert published['lr'] == 1e-3
    assert published['batch_size'] == 2048

    model = MODELS[name](get_data(), lr=0.5, lambda_reg=0.25)
    expected = {**published, 'lr': 0.5, 'lambda_reg': 0.25}
    assert vars(model.recipe) == expected
    assert vars(MODELS[name].recipe) == published
    with pytest.raises(TypeError, match='weight_decay'):
        MODELS[name](get_data(), weight_decay=0.1)


@pytest.mark.parametrize('name', [*SAME, 'lightgcn-same-recipe'])
def test_same_recipe(name):
    recipe, crane = vars(MODELS[name].recipe), vars(MODELS['crane'].recipe)
    lambda_reg = 1e-4 if name == 'mgcn-same-recipe' else 1e-3
    assert recipe == {**crane, 'lambda_reg': lambda_reg}
    assert recipe['num_negatives'] == 4
    assert recipe['edge_dropping'] == 0.8


def test_recipe_of_crane():
    model = MODELS['crane'](get_data(), lr=0.5, num_layers=3)
    assert model.recipe.lr == 0.5
    assert model.recipe.num_negatives == 4
    assert model.model.num_layers == 3


@pytest.mark.parametrize('name', MODELS)
def test_channels(name):
    data = get_data()
    sizes = {'crane': 3 * 6, 'vbpr': 2 * 6 + 1}
    model = get_model(name, data, channels=6)
    user, item = model(data)
    size = sizes.get(name, 6)
    assert (user.size(), item.size()) == ((NUM_USERS, size), (NUM_ITEMS, size))
    model.loss(*get_batch(data, model.recipe.num_negatives)).backward()


@pytest.mark.parametrize('num_modalities', [1, 3])
@pytest.mark.parametrize('name', PEERS + SAME)
def test_gradients(name, num_modalities):
    data = get_data(num_modalities, missing_rate=0.3)
    model = get_model(name, data)
    for graph in [data, drop_edges(data)]:
        user, item = model(graph)
        assert user.size(0) == NUM_USERS
        assert item.size(0) == NUM_ITEMS
        assert user.size(1) == item.size(1)
        model.zero_grad()
        model.loss(*get_batch(data)).backward()
        for key, param in model.named_parameters():
            assert param.grad.isfinite().all(), key
            # One modality is all shared, and nothing is specific to it:
            is_fuser = key.split('.')[0] in {'query', 'prefer'}
            if num_modalities > 1 or not is_fuser:
                assert param.grad.any(), key


@pytest.mark.parametrize('name', PEERS)
def test_hardest_negative(name):
    data = get_data()
    user, pos, neg = get_batch(data)
    model = get_model(name, data)
    user_emb, item_emb = model(data)
    score = (user_emb @ item_emb.t())[user].gather(1, neg)
    column = score.argmax(dim=1, keepdim=True)
    assert column.unique().numel() == 4
    expected = model.loss(user, pos, neg.gather(1, column))
    torch.testing.assert_close(model.loss(user, pos, neg), expected)
    assert model.loss(user, pos, neg[:, :1]) < expected


def test_mf():
    data = get_data()
    model = get_model('mf-bpr', data, lambda_reg=0.1)
    user, pos, neg = get_batch(data, 1)
    user_emb, item_emb = model(data)
    score = model.user_id @ model.item_id.t()
    check([user_emb @ item_emb.t()], [score])
    rows = [model.user_id[user], model.item_id[pos], model.item_id[neg[:, 0]]]
    reg = sum(inner(x, x).mean() for x in rows)
    expected = bpr(score[user, pos], score[user, neg[:, 0]]) + 0.1 * reg
    torch.testing.assert_close(model.loss(user, pos, neg), expected)


def test_vbpr_score():
    data = get_data(3, missing_rate=0.3)
    model = get_model('vbpr', data)
    user, item = model(data)
    expected = model.user_id @ model.item_id.t() + model.bias
    for m, (_, x, mask) in enumerate(get_features(data)):
        x = x / x[mask].square().mean().sqrt()
        *weight, beta = model.project.linear[m].weight
        expected = expected + model.taste @ torch.stack(weight) @ x.t()
        expected = expected + x @ beta
    check([user @ item.t()], [expected])


def test_vbpr_biases_start_at_zero():
    model = MODELS['vbpr'](get_data())
    assert not model.bias.any()
    for linear in model.project.linear:
        assert not linear.weight[-1].any()
        assert linear.weight[:-1].all()


@pytest.mark.parametrize('num_modalities', [1, 2, 3])
@pytest.mark.parametrize('missing_rate', [0.0, 0.3])
def test_freedom_forward(num_modalities, missing_rate):
    data = get_data(num_modalities, missing_rate=missing_rate)
    model = get_model('freedom', data, k=4)
    adj, total = torch.zeros(NUM_ITEMS, NUM_ITEMS), torch.zeros(NUM_ITEMS, 1)
    for name, x, mask in get_features(data):
        weight = {'image': 0.1, 'text': 0.9}[name] if num_modalities == 2 else 1
        neighbors = dense_neighbors(x, mask, 4, cosine=False)
        assert set(neighbors.unique().tolist()) == {0.0, 0.25}
        assert neighbors.diag()[mask].all()
        adj += weight * neighbors
        total += weight * mask.unsqueeze(1)
    adj = (adj / total).nan_to_num(0.0)

    for graph in [data, drop_edges(data)]:
        user, item = dense_lightgcn(model, dense_rates(graph))
        check(model(graph), [user, item + adj @ model.item_id])


@pytest.mark.parametrize('missing_rate', [0.0, 0.3])
def test_freedom_loss(missing_rate):
    data = get_data(2, missing_rate=missing_rate)
    model = get_model('freedom', data, mm_weight=0.5)
    user, pos, neg = get_batch(data, 1)
    user_emb, item_emb = model(data)
    expected, neg = 0.0, neg.squeeze(1)
    for m, (_, x, mask) in enumerate(get_features(data)):
        linear = model.project.linear[m]
        out = (x @ linear.weight.t() + linear.bias) * mask.unsqueeze(1)
        score = user_emb @ out.t()
        expected += 0.5 * bpr(score[user, pos], score[user, neg])
    score = user_emb @ item_emb.t()
    expected += bpr(score[user, pos], score[user, neg])
    out = model.loss(user, pos, neg.unsqueeze(1))
    torch.testing.assert_close(out, expected)


def dense_mgcn(model, data, graph, k):
    r"""The behavior and the side view of all users, then all items."""
    rates, views = dense_rates(graph), []
    for m, (_, x, mask) in enumerate(get_features(data)):
        x = model.project.linear[m](x) * mask.unsqueeze(1)
        x = model.item_id * model.purify[m](x).sigmoid()
        x = dense_neighbors(*list(get_features(data))[m][1:], k, True) @ x
        views.append(torch.cat([rates @ x, x]))
    behavior = torch.cat(dense_lightgcn(model, rates))
    first, _, last = model.query
    score = [inner(first(x).tanh(), last.weight[0]).exp() for x in views]
    shared = sum(
        x * (s / sum(score)).unsqueeze(1)
        for x, s in zip(views, score, strict=True)
    )
    side = shared
    for x, prefer in zip(views, model.prefer, strict=True):
        side = side + (x - shared) * prefer(behavior).sigmoid()
    return behavior, side / (1 + len(views))


@pytest.mark.parametrize('num_modalities', [1, 2, 3])
@pytest.mark.parametrize('missing_rate', [0.0, 0.3])
def test_mgcn_forward(num_modalities, missing_rate):
    data = get_data(num_modalities, missing_rate=missing_rate)
    model = get_model('mgcn', data, k=4)
    for graph in [data, drop_edges(data)]:
        behavior, side = dense_mgcn(model, data, graph, 4)
        expected = (behavior + side).split([NUM_USERS, NUM_ITEMS])
        check(model(graph), expected)


def info_nce(x, y, index, temperature):
    x = x / x.norm(dim=1, keepdim=True)
    y = y / y.norm(dim=1, keepdim=True)
    total = 0.0
    for a, b in [(x, y), (y, x)]:
        for n in range(index.numel()):
            others = (index != index[n]) | (torch.arange(index.numel()) == n)
            logits = (b[others] @ a[n]) / temperature
            total += logits.logsumexp(dim=0) - a[n] @ b[n] / temperature
    return total / (2 * index.numel())


def test_mgcn_loss():
    data = get_data()
    options = {'contrast_weight': 0.5, 'temperature': 0.3, 'contrast_size': 50}
    model = get_model('mgcn', data, lambda_reg=0.1, **options)
    user, pos, neg = get_batch(data, 1)
    assert user[:50].unique().numel() < 50 < user.numel()
    user_emb, item_emb = model(data)
    rows = [user_emb[user], item_emb[pos], item_emb[neg.squeeze(1)]]
    expected = bpr(inner(rows[0], rows[1]), inner(rows[0], rows[2]))
    expected += 0.1 * sum(inner(x, x).mean() for x in rows)
    views = dense_mgcn(model, data, data, 10)
    for index, offset in [(user[:50], 0), (pos[:50], NUM_USERS)]:
        x, y = (view[index + offset] for view in views)
        expected += 0.5 * info_nce(x, y, index, 0.3)
    torch.testing.assert_close(model.loss(user, pos, neg), expected)


def test_item_without_features():
    data = get_data(2)
    for name in ['x_image', 'x_text']:
        data['item'][name][3] = math.nan
    model = get_model('vbpr', data)
    item = model(data)[1][3]
    assert not item[CHANNELS:-1].any()
    assert item[-1] == model.bias[3]

    model = get_model('freedom', data)
    item = dense_lightgcn(model, dense_rates(data))[1][3]
    torch.testing.assert_close(model(data)[1][3], item)


@functools.cache
def train(name, shuffle=False, num_epochs=4):
    r"""The mean loss of each epoch, and the validation recall of a model and
    of the most popular items.
    """
    data = FakeMultimodalDataset(600, 400)[0]
    torch.manual_seed(5)
    perm = torch.randperm(400) if shuffle else torch.arange(400)
    for key in ['x_image', 'x_text']:
        data['item'][key] = data['item'][key][perm]
    data = T.BuildDualGraph()(data)
    rates = data['user', 'rates', 'item']
    pairs = rates.edge_index

    # So few epochs leave nothing to regularize:
    model = MODELS[name](data, lambda_reg=1e-4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(num_epochs):
        graph = drop_edges(data, model.recipe.edge_dropping)
        neg = sample_negatives(pairs, 400, model.recipe.num_negatives)
        losses.append(0.0)
        for index in torch.randperm(pairs.size(1)).split(150):
            optimizer.zero_grad()
            model(graph)
            loss = model.loss(*pairs[:, index], neg[index])
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item()
    with torch.no_grad():
        out = evaluate(*model(data), rates.val_edge_label_index, pairs)
    popular = evaluate_popularity(data, rates.val_edge_label_index)
    return losses, out['recall@20'], popular['recall@20']


@pytest.mark.parametrize('name', PEERS + SAME)
def test_learns(name):
    losses, recall, popular = train(name)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    assert recall > 1.25 * popular


@pytest.mark.parametrize('name', MULTIMODAL)
def test_features_help(name):
    assert train(name)[1] > train(name, shuffle=True)[1] + 0.03


@pytest.mark.parametrize('name', PEERS + SAME)
def test_harness(name):
    args = {
        'set': [],
        'epochs': 2,
        'patience': 10,
        'batch_size': 8192,
        'lr': 0.003,
    }
    data = get_data(2, missing_rate=0.1)
    result = accuracy.fit(name, data, 0, argparse.Namespace(**args))
    assert result['epochs'] == 2
    assert result['test']['recall@20'] > 0


@pytest.mark.parametrize('name', ['freedom', 'mgcn'])
def test_peer_with_the_neighborhood_of_crane(name):
    data = get_data()
    torch.manual_seed(0)
    model = MODELS[f'{name}-neighborhood'](data, scale=0.5)
    torch.manual_seed(0)
    peer = MODELS[f'{name}-same-recipe'](data)
    embeddings = accuracy.embed(model, data)
    for a, b in zip(embeddings, accuracy.embed(peer, data), strict=True):
        assert torch.equal(a, b)
    assert peer.neighborhood(data) is None

    users = torch.arange(NUM_USERS)
    score = model.neighborhood(data).add_to(
        torch.zeros(NUM_USERS, NUM_ITEMS), users
    )
    crane = models.CRANEModel(data)
    full = crane.model.neighborhood(data, CRANEOutput(*embeddings)).add_to(
        torch.zeros(NUM_USERS, NUM_ITEMS), users
    )
    assert full.sum() > 0
    products = embeddings[0] @ embeddings[1].t()
    weight = crane.model.neighbor_weights['co_rated']
    scale = 7 * 0.5 / (weight * products.std(unbiased=False))
    torch.testing.assert_close(score, full * scale)


@pytest.mark.parametrize(
    ('features', 'dtype', 'size'),
    [({'dtype': 'bfloat16'}, torch.bfloat16, 6), ({'channels': 2}, None, 2)],
)
def test_crane_on_other_features(features, dtype, size):
    data = get_data()
    model = MODELS['crane'](data, features=features)
    assert model.model.in_channels == {'image': size, 'text': min(size, 5)}
    assert data['item'].x_image.dtype == torch.float
    assert data['item'].x_image.size(1) == 6
    replaced = model._replace(data)['item'].x_image
    assert replaced.dtype == (dtype or torch.float)
    assert model(data)[1].isfinite().all()


def test_crane_rebuilds_its_item_graph():
    data = get_data()
    before = data['item', 'similar_to', 'item'].edge_index.clone()
    model = get_model('crane', data, rebuild=2)
    expected = model(data)[1]
    model.end_epoch(data, 1)
    assert torch.equal(model(data)[1], expected)
    model.end_epoch(data, 2)
    assert not torch.equal(model(data)[1], expected)
    assert torch.equal(data['item', 'similar_to', 'item'].edge_index, before)
    # That of the neighborhood stays as well:
    graphs = model.neighborhood(data).graphs
    assert any(graph.dst.numel() == before.size(1) for graph in graphs)


@pytest.mark.parametrize('popular', [False, True])
@pytest.mark.parametrize('correct', [False, True])
def test_softmax_of_popular_negatives(popular, correct):
    data = get_data()
    softmax = {'num_samples': 4000, 'temperature': 0.2}
    softmax |= {'popular': popular, 'correct': correct}
    model = get_model('crane', data, softmax=softmax, lambda_reg=0.0)
    share = model.softmax.share
    count = torch.bincount(get_batch(data)[1], minlength=NUM_ITEMS)
    expected = (count + 1.0) / (count + 1.0).sum() if popular else 1 / NUM_ITEMS
    torch.testing.assert_close(share, share * 0 + expected)

    user, pos, _ = get_batch(data)
    user_emb, item_emb = (F.normalize(x, dim=1) for x in model(data))
    torch.manual_seed(0)
    loss = model.loss(user, pos, None)
    # With that many samples, the sum over the items stands for that of them:
    score = (user_emb[user] @ item_emb.t()) / 0.2
    weight = 4000 * share / share if correct else 4000 * share
    weight = weight.repeat(user.numel(), 1)
    row = torch.arange(user.numel())
    weight[row, pos] = 1 / share[pos] if correct else 1.0
    total = (weight * score.exp()).sum(dim=1)
    log_q = share[pos].log() if correct else 0.0
    naive = (total.log() - score[row, pos] + log_q).mean()
    naive += contrast(model.model, model.out, user, pos)
    torch.testing.assert_close(loss, naive, atol=0.02, rtol=0)


@pytest.mark.parametrize('size', [10, 1024])
@pytest.mark.parametrize('profile', [None, 'contrast'])
def test_contrast_is_that_of_crane(size, profile):
    data = get_data()
    model = get_model('crane', data, profile=profile)
    model(data)
    batch = get_batch(data)
    whole, bpr = (
        model.model.loss(model.out, *batch, **options, contrast_size=size)
        for options in ({}, {'contrast_weight': 0.0})
    )
    out = contrast(model.model, model.out, *batch[:2], size=size)
    assert out > 0.01
    torch.testing.assert_close(out, whole - bpr, atol=1e-6, rtol=0)


@pytest.mark.parametrize('disjoint', [False, True])
@pytest.mark.parametrize('p', [0.0, 0.7])
def test_pairs_to_train_on(disjoint, p):
    data = get_data()
    model = MODELS['crane'](data, disjoint=disjoint, edge_dropping=p)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches, loss = [], model.loss

    def record(user, pos, neg):
        batches.append((user, pos, neg))
        return loss(user, pos, neg)

    model.loss = record
    epoch_data = drop_edges(data, p)
    accuracy.train(model, optimizer, data, epoch_data, batch_size=50)
    user, pos, neg = (torch.cat(xs) for xs in zip(*batches, strict=True))
    pairs = data[accuracy.RATES].edge_index
    rates = epoch_data[accuracy.RATES]
    free = rates.edge_label_index if disjoint and p > 0 else pairs
    assert disjoint == (free.size(1) < pairs.size(1)) or p == 0

    def keys(user, item):
        return (user * NUM_ITEMS + item).sort()[0]

    assert torch.equal(keys(user, pos), keys(*free))
    seen = keys(*pairs)
    assert not torch.isin(keys(user.unsqueeze(1), neg), seen).any()
    assert neg.size() == (user.numel(), 4)


def test_lightgcn_loss_on_the_hardest_negative():
    data = get_data()
    model = get_model('lightgcn-same-recipe', data, lambda_reg=0.5)
    user, item = model(data)
    u, pos, neg = get_batch(data)
    score = torch.einsum('bd,bsd->bs', user[u], item[neg])
    hardest = neg.gather(1, score.argmax(dim=1, keepdim=True))[:, 0]
    assert not torch.equal(hardest, neg[:, 0])
    loss = bpr(inner(user[u], item[pos]), inner(user[u], item[hardest]))
    weight = model.model.embedding.weight
    used = torch.cat([u, NUM_USERS + pos, NUM_USERS + hardest])
    reg = 0.5 * weight[used].square().sum() / u.numel()
    torch.testing.assert_close(model.loss(u, pos, neg), loss + reg)


def test_metrics_of_each_user():
    # User 1 has three items left, and user 0 item 0 held out; row 1 has the
    # item before its own first one, were padding an index.
    user_emb, item_emb = torch.ones(2, 1), torch.arange(30.0)[:, None]
    held_out = torch.tensor([[0, 0, 1], [29, 3, 1]])
    exclude = torch.stack([torch.ones(27).long(), torch.arange(3, 30)])
    out = accuracy.per_user(user_emb, item_emb, held_out, exclude=exclude)
    assert out['recall'].tolist() == [0.5, 1.0]
    ideal = 1 + 1 / math.log2(3)
    expected = torch.tensor([1 / ideal, 1 / math.log2(3)])
    torch.testing.assert_close(out['ndcg'], expected)
