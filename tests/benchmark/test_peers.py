import copy
import functools
import math
from dataclasses import replace

import models
import pytest
import torch
from torch_geometric import EdgeIndex

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.ranking import popularity
from crane_pyg.training import fit, sample_negatives

MODELS = models.MODELS

PEERS = ['mf-bpr', 'vbpr', 'freedom', 'mgcn']
SAME = ['freedom-same-recipe', 'mgcn-same-recipe']
RATES = ('user', 'rates', 'item')
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
    model = MODELS[name].make(data, **kwargs)
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


@pytest.mark.parametrize('name', PEERS)
def test_recipe(name):
    published = MODELS[name].recipe
    assert published.num_negatives == 1
    assert published.edge_dropping == (0.8 if name == 'freedom' else 0.0)
    assert not published.disjoint
    assert (published.lr, published.batch_size) == (1e-3, 2048)


@pytest.mark.parametrize('name', [*SAME, 'lightgcn-same-recipe'])
def test_same_recipe(name):
    crane = MODELS['crane'].recipe
    recipe = replace(crane, patience=20, min_epochs=40)
    assert MODELS[name].recipe == recipe


@pytest.mark.parametrize('name', MODELS)
def test_channels(name):
    data = get_data()
    sizes = {'crane': 3 * 6, 'vbpr': 2 * 6 + 1}
    user, item = get_model(name, data, channels=6)(data)[:2]
    size = sizes.get(name, 6)
    assert (user.size(), item.size()) == ((NUM_USERS, size), (NUM_ITEMS, size))


def test_graphs_are_laid_out_once():
    data = get_data()
    model = get_model('mgcn', data)
    graphs = model.graphs(data)
    assert isinstance(graphs.to_user[0], EdgeIndex)
    for a, b in zip(graphs[:2], model.graphs(data)[:2], strict=True):
        assert a[0] is b[0]
    assert model.graphs(drop_edges(data)).to_user[0] is not graphs.to_user[0]


@pytest.mark.parametrize('num_modalities', [1, 3])
@pytest.mark.parametrize('name', [*PEERS, 'lightgcn'])
def test_gradients(name, num_modalities):
    data = get_data(num_modalities, missing_rate=0.3)
    model = get_model(name, data)
    for graph in [data, drop_edges(data)]:
        model.zero_grad()
        model.loss(model(graph), *get_batch(data)).backward()
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
    out = model(data)
    score = (out[0] @ out[1].t())[user].gather(1, neg)
    column = score.argmax(dim=1, keepdim=True)
    assert column.unique().numel() == 4
    expected = model.loss(out, user, pos, neg.gather(1, column))
    torch.testing.assert_close(model.loss(out, user, pos, neg), expected)
    assert model.loss(out, user, pos, neg[:, :1]) < expected


def test_mf():
    data = get_data()
    model = get_model('mf-bpr', data)
    user, pos, neg = get_batch(data, 1)
    user_emb, item_emb = out = model(data)
    score = model.user_id @ model.item_id.t()
    check([user_emb @ item_emb.t()], [score])
    rows = [model.user_id[user], model.item_id[pos], model.item_id[neg[:, 0]]]
    reg = sum(inner(x, x).mean() for x in rows)
    expected = bpr(score[user, pos], score[user, neg[:, 0]]) + 0.1 * reg
    loss = model.loss(out, user, pos, neg, lambda_reg=0.1)
    torch.testing.assert_close(loss, expected)


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
    model = MODELS['vbpr'].make(get_data())
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
    model = get_model('freedom', data)
    user, pos, neg = get_batch(data, 1)
    user_emb, item_emb = embs = model(data)
    expected, neg = 0.0, neg.squeeze(1)
    for m, (_, x, mask) in enumerate(get_features(data)):
        linear = model.project.linear[m]
        out = (x @ linear.weight.t() + linear.bias) * mask.unsqueeze(1)
        score = user_emb @ out.t()
        expected += 0.5 * bpr(score[user, pos], score[user, neg])
    score = user_emb @ item_emb.t()
    expected += bpr(score[user, pos], score[user, neg])
    loss = model.loss(embs, user, pos, neg.unsqueeze(1), mm_weight=0.5)
    torch.testing.assert_close(loss, expected)


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
        check(model(graph)[:2], expected)


def test_mgcn_trains_features_if_told():
    data = get_data(missing_rate=0.3)
    frozen = get_model('mgcn', data)
    model = MODELS['mgcn'].make(data, train_features=True)
    names = {'project.x_image', 'project.x_text'}
    weights = dict(model.named_parameters())
    assert weights.keys() - dict(frozen.named_parameters()).keys() == names
    for name, x, mask in get_features(data):
        weight = weights[f'project.x_{name}']
        assert torch.equal(weight[mask], x[mask])
        assert weight.data_ptr() != data['item'][f'x_{name}'].data_ptr()
    model.loss(model(data), *get_batch(data)).backward()
    for name, _, mask in get_features(data):
        grad = weights[f'project.x_{name}'].grad
        assert grad[mask].any(dim=1).all()
        assert not grad[~mask].any()


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
    model = get_model('mgcn', data)
    user, pos, neg = get_batch(data, 1)
    assert user[:50].unique().numel() < 50 < user.numel()
    out = model(data)
    rows = [out[0][user], out[1][pos], out[1][neg.squeeze(1)]]
    expected = bpr(inner(rows[0], rows[1]), inner(rows[0], rows[2]))
    expected += 0.1 * sum(inner(x, x).mean() for x in rows)
    views = dense_mgcn(model, data, data, 10)
    for index, offset in [(user[:50], 0), (pos[:50], NUM_USERS)]:
        x, y = (view[index + offset] for view in views)
        expected += 0.5 * info_nce(x, y, index, 0.3)
    loss = model.loss(out, user, pos, neg, lambda_reg=0.1, **options)
    torch.testing.assert_close(loss, expected)


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
    model = MODELS[name].make(data)
    recipe = replace(
        MODELS[name].recipe,
        epochs=num_epochs,
        patience=None,
        lr=0.01,
        batch_size=150,
        disjoint=False,
    )
    # So few epochs leave nothing to regularize:
    options = {'lambda_reg': 1e-4}
    history = fit(model, data, recipe, loss_options=options, progress=False)
    popular = popularity(data).evaluate(data[RATES].val_edge_label_index)
    return history.loss, max(history.metric), popular['recall@20']


@pytest.mark.parametrize('name', PEERS)
def test_learns(name):
    losses, recall, popular = train(name)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    assert recall > 1.25 * popular


@pytest.mark.parametrize('name', MULTIMODAL)
def test_features_help(name):
    assert train(name)[1] > train(name, shuffle=True)[1] + 0.03


def test_lightgcn_loss_on_the_hardest_negative():
    data = get_data()
    model = get_model('lightgcn-same-recipe', data)
    user, item = out = model(data)
    u, pos, neg = get_batch(data)
    score = torch.einsum('bd,bsd->bs', user[u], item[neg])
    hardest = neg.gather(1, score.argmax(dim=1, keepdim=True))[:, 0]
    assert not torch.equal(hardest, neg[:, 0])
    loss = bpr(inner(user[u], item[pos]), inner(user[u], item[hardest]))
    weight = model.model.embedding.weight
    used = torch.cat([u, NUM_USERS + pos, NUM_USERS + hardest])
    reg = 0.5 * weight[used].square().sum() / u.numel()
    out = model.loss(out, u, pos, neg, lambda_reg=0.5)
    torch.testing.assert_close(out, loss + reg)
