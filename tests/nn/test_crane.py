import copy
import io
import math

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.nn.models.lightgcn import BPRLoss
from torch_geometric.testing import onlyCUDA
from toys import no_sync

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANE, CRANEOutput
from crane_pyg.ranking import evaluate, popularity
from crane_pyg.training import sample_negatives

NUM_USERS, NUM_ITEMS, CHANNELS = 60, 40, 4
SIZES = {'image': 6, 'text': 5, 'audio': 3}
RATES = ('user', 'rates', 'item')
PROFILES = ['input', 'contrast', None]
MODES = ['correlation', 'token', None]


def get_sizes(num_modalities=2):
    return dict(list(SIZES.items())[:num_modalities])


def get_raw_data(num_modalities=2, **kwargs):
    dataset = FakeMultimodalDataset(
        NUM_USERS, NUM_ITEMS, get_sizes(num_modalities), **kwargs
    )
    return dataset[0]


def get_data(num_modalities=2, **kwargs):
    return T.BuildDualGraph(k=3)(get_raw_data(num_modalities, **kwargs))


def get_model(num_modalities=2, seed=12, channels=CHANNELS, **kwargs):
    torch.manual_seed(seed)
    kwargs = {'profile': 'input', 'mode': 'correlation', **kwargs}
    sizes = get_sizes(num_modalities)
    return perturb(CRANE(NUM_USERS, NUM_ITEMS, sizes, channels, **kwargs))


@torch.no_grad()
def perturb(model):
    r"""A model where no weight is zero, as after some training."""
    for param in model.parameters():
        param += 0.1 * torch.randn_like(param)
    return model


def get_batch(data, num_samples=4):
    r"""All training pairs, and items that are not their users'."""
    torch.manual_seed(7)
    pairs = data[RATES].edge_index
    return *pairs, sample_negatives(pairs, NUM_ITEMS, num_samples)


def assert_close(out, expected):
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def assert_equal(outs, expected):
    for x, y in zip(outs, expected, strict=True):
        assert x is y is None or torch.equal(x, y)


def tensors(out):
    r"""What a model returns; not every one has profiles or an item graph."""
    assert all(x is not None for x in out[:2])
    return [x for x in out if x is not None]


def assert_learns(model, data, num_samples=4, **kwargs):
    r"""The loss and its gradients are finite, and no parameter is idle."""
    out = model(data)
    for x in tensors(out):
        assert x.isfinite().all()
    loss = model.loss(out, *get_batch(data, num_samples), **kwargs)
    assert loss.dim() == 0
    loss.backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        assert param.grad.isfinite().all(), name
        assert param.grad.any(), name


def test_crane_repr():
    model = CRANE(7, 5, {'image': 3, 'text': 2}, channels=8)
    assert str(model) == (
        "CRANE(7, 5, in_channels={'image': 3, 'text': 2}, channels=8)"
    )


@pytest.mark.parametrize('num_modalities', [1, 2, 3])
@pytest.mark.parametrize('use_id', [False, True])
@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('mode', MODES)
def test_crane_variants(num_modalities, use_id, profile, mode):
    data = get_data(num_modalities)
    kwargs = {'use_id': use_id, 'profile': profile, 'mode': mode}
    model = get_model(num_modalities, **kwargs)
    out = model(data)
    assert isinstance(out, CRANEOutput)
    size = (num_modalities + use_id) * CHANNELS
    assert out.user.size() == (NUM_USERS, size)
    assert out.item.size() == (NUM_ITEMS, size)
    if profile == 'contrast':
        assert out.profile.size() == (NUM_USERS, num_modalities, CHANNELS)
    else:
        assert out.profile is None
    assert len(model.offset) == num_modalities * use_id
    has_rca = mode is not None and num_modalities > 1
    assert (model.encoder.rca is not None) == has_rca
    assert_learns(model, data, contrast_weight=0.1)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize('missing', [False, True])
def test_crane_of_features_in_half_precision(dtype, missing):
    data, half = get_data(), get_data()
    for name in get_sizes():
        x = half['item'][f'x_{name}'].to(dtype)
        x[3] = float('nan') if missing else x[3]
        half['item'][f'x_{name}'], data['item'][f'x_{name}'] = x, x.float()
    model, expected = get_model(), get_model()
    out = model(half)
    tol = 8 * torch.finfo(dtype).eps
    for x, y in zip(tensors(out), tensors(expected(data)), strict=True):
        assert x.dtype == torch.float
        torch.testing.assert_close(x, y, atol=tol, rtol=tol)
    assert_learns(model, half, contrast_weight=0.1)
    model.to(dtype)  # Nothing is left to be converted.
    assert all(x.dtype == dtype for x in model.encode_items(half))


@pytest.mark.parametrize('num_layers', [0, 2])
@pytest.mark.parametrize('num_item_layers', [0, 1, 2])
def test_crane_num_layers(num_layers, num_item_layers):
    data = get_data()
    model = get_model(num_layers=num_layers, num_item_layers=num_item_layers)
    out = model(data)
    assert out.user.size() == (NUM_USERS, 3 * CHANNELS)
    assert out.item.size() == (NUM_ITEMS, 3 * CHANNELS)
    has_views = num_item_layers > 0
    assert (out.user_semantic is not None) == has_views
    assert (out.item_semantic is not None) == has_views
    assert_learns(model, data, contrast_weight=0.1 * has_views)


@pytest.mark.parametrize('num_steps', [1, 3])
def test_crane_num_steps(num_steps):
    data = get_data()
    model = get_model(num_steps=num_steps)
    assert model.encoder.rca.num_steps == num_steps
    assert_learns(model, data, contrast_weight=0.1)


def dense_adj(data, edge_type=RATES, weighted=False):
    store = data[edge_type]
    size = [data[key].num_nodes for key in (edge_type[0], edge_type[2])]
    adj = torch.zeros(size, dtype=torch.double)
    for n, (src, dst) in enumerate(store.edge_index.t().tolist()):
        adj[src, dst] += float(store.edge_weight[n]) if weighted else 1.0
    return adj


def unit(x):
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)


def dense_forward(model, data):
    r"""CRANE by dense matrices in double precision."""
    pairs = dense_adj(data)
    mean = pairs / pairs.sum(1, keepdim=True).clamp(min=1)
    adj = pairs / (pairs.sum(1, keepdim=True) * pairs.sum(0)).sqrt()
    adj = adj.nan_to_num()
    similar = dense_adj(data, ('item', 'similar_to', 'item'), weighted=True)

    items, present = [], []
    for name in model.in_channels:
        x = data['item'][f'x_{name}'].double()
        present.append(~x.isnan().any(dim=1))
        linear = model.encoder.lins[f'x_{name}']
        items.append(unit(x.nan_to_num()) @ linear.weight.t() + linear.bias)
    if model.encoder.rca is not None:
        items = model.encoder.rca(items, present)
    items = [
        x.where(mask.unsqueeze(1), 0.0) + model.offset.get(f'x_{name}', 0.0)
        for x, mask, name in zip(items, present, model.in_channels, strict=True)
    ]

    users, profiles = [], []
    for n, name in enumerate(model.in_channels):
        user = model.preference[f'x_{name}']
        if model.profile == 'input':
            user = user + model.gate[n] * (mean @ items[n])
        users.append(user)
        profiles.append(mean @ items[n])
    if model.user_id is not None:
        users, items = [model.user_id, *users], [model.item_id, *items]

    # One square matrix of users and items, to its powers:
    x0 = torch.cat([torch.cat(users, dim=1), torch.cat(items, dim=1)])
    zeros = [torch.zeros(n, n).double() for n in adj.size()]
    square = torch.cat(
        [
            torch.cat([zeros[0], adj], dim=1),
            torch.cat([adj.t(), zeros[1]], dim=1),
        ]
    )
    powers = [
        torch.linalg.matrix_power(square, n)
        for n in range(model.num_layers + 1)
    ]
    behavior = (torch.stack(powers).mean(dim=0) @ x0).split(adj.size())
    profile = None
    if model.profile == 'contrast':
        profile = torch.stack(profiles, dim=1)
    if model.num_item_layers == 0:
        return CRANEOutput(*behavior, profile)
    # Rows of the matrix are sources, which is transposed to the formula:
    hops = torch.linalg.matrix_power(similar.t(), model.num_item_layers)
    message = hops @ x0[NUM_USERS:]
    semantic = adj @ message, message
    total = [b + s for b, s in zip(behavior, semantic, strict=True)]
    return CRANEOutput(*total, profile, *semantic)


@pytest.mark.parametrize(
    'kwargs',
    [
        {'num_layers': 2, 'num_item_layers': 1},
        {'num_layers': 3, 'num_item_layers': 2, 'profile': 'contrast'},
        {'num_layers': 0, 'num_item_layers': 0, 'mode': None},
        {'num_layers': 2, 'num_item_layers': 1, 'mode': None},
        {'num_layers': 0, 'num_item_layers': 1},
        {'num_layers': 1, 'num_item_layers': 1, 'use_id': False},
        {'num_layers': 2, 'num_item_layers': 1, 'mode': 'token'},
        {'num_layers': 2, 'num_item_layers': 0, 'profile': None},
    ],
)
def test_crane_equals_dense(kwargs):
    # The item graph is directed, which tells it from its transpose:
    data = get_raw_data(missing_rate=0.2)
    data = T.BuildDualGraph(k=3, undirected=False)(data)
    settings = {'profile': 'input', 'mode': 'correlation', 'dropout': 0.0}
    model = get_model(**{**settings, **kwargs}).double()
    for name in SIZES:
        if name in model.in_channels:
            data['item'][f'x_{name}'] = data['item'][f'x_{name}'].double()
    model(data)  # Takes statistics in.
    model.eval()
    outs, expected = model(data), dense_forward(model, data)
    assert [x is None for x in outs] == [x is None for x in expected]
    outs, expected = tensors(outs), tensors(expected)
    weights = [torch.randn_like(x) for x in expected]
    grads = [
        torch.autograd.grad(
            sum((x * w).sum() for x, w in zip(xs, weights, strict=True)),
            list(model.parameters()),
        )
        for xs in (outs, expected)
    ]
    for x, y in zip((*outs, *grads[0]), (*expected, *grads[1]), strict=True):
        assert y.any()
        assert_close(x, y)


@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('mode', MODES)
def test_crane_missing_modalities(profile, mode):
    data = get_raw_data(missing_rate=0.4)
    missing = torch.stack(
        [data['item'][f'x_{name}'].isnan().any(dim=1) for name in get_sizes()]
    )
    missing[:, 3] = True  # An item that lacks everything.
    for name, mask in zip(get_sizes(), missing, strict=True):
        data['item'][f'x_{name}'][mask] = math.nan
    data = T.BuildDualGraph(k=3)(data)

    kwargs = {'profile': profile, 'mode': mode, 'dropout': 0.1}
    assert_learns(get_model(**kwargs), data, contrast_weight=0.1)

    # Without propagation, the stream of a lacking modality is its offset:
    model = get_model(num_layers=0, num_item_layers=0, **kwargs)
    plain = get_model(num_layers=0, num_item_layers=0, use_id=False, **kwargs)
    for _ in range(2):
        streams = model(data).item.split(CHANNELS, dim=1)[1:]
        zeros = plain(data).item.split(CHANNELS, dim=1)
        for name, stream, zero, mask in zip(
            get_sizes(), streams, zeros, missing, strict=True
        ):
            offset = model.offset[f'x_{name}']
            assert torch.equal(stream[mask], offset[mask])
            assert not torch.isclose(stream, offset)[~mask].all(dim=1).any()
            assert not zero[mask].any()
            assert zero[~mask].any(dim=1).all()
        model.eval()
        plain.eval()


@pytest.mark.parametrize('mode', MODES)
def test_crane_isolated_users_and_items(mode):
    data = get_raw_data()
    store = data[RATES]
    user, item = store.edge_index
    store.edge_index = store.edge_index[:, (user != 5) & (item != 9)]
    for name in get_sizes():
        data['item'][f'x_{name}'][9] = math.nan
    data = T.BuildDualGraph(k=3)(data)
    model = get_model(mode=mode, num_layers=2, num_item_layers=1)
    assert_learns(model, data, contrast_weight=0.1)

    out = model.eval()(data)
    # Nobody sends them anything, and they still have their own streams:
    for n, x, own, first in [
        (5, out.user, model.preference, model.user_id),
        (9, out.item, model.offset, model.item_id),
    ]:
        own = torch.cat([first, *own.values()], dim=1)
        assert own[n].any()
        assert_close(x[n], own[n] / 3)
    assert model.recommend(data, torch.tensor([5]), k=NUM_ITEMS).min() >= 0


def test_crane_is_deterministic_in_evaluation():
    data = get_data()
    model = get_model(dropout=0.5)
    outs = [model(data) for _ in range(2)]
    assert not torch.allclose(outs[0].item, outs[1].item)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    assert_equal(model(data), model(data))
    assert_equal(model.state_dict().values(), before.values())


def test_crane_reset_parameters():
    data = get_data()
    model = get_model()
    expected = copy.deepcopy(model.state_dict())
    model(data)
    torch.manual_seed(3)
    model.reset_parameters()
    for key, param in model.named_parameters():
        assert not torch.equal(param, expected[key]), key
    torch.manual_seed(3)
    model.reset_parameters()
    other = get_model(seed=99)
    torch.manual_seed(3)
    other.reset_parameters()
    assert_equal(model.state_dict().values(), other.state_dict().values())


def test_crane_views_need_the_item_graph():
    data, model = get_data(), get_model(num_item_layers=0)
    out, batch = model(data), get_batch(data)
    match = r"needs the item graph \(got 'num_item_layers=0'\)"
    for kwargs in ({}, {'contrast_weight': 0.1}):
        with pytest.raises(ValueError, match=match):
            model.loss(out, *batch, **kwargs)
    loss = model.loss(out, *batch, lambda_reg=0.1, contrast_weight=0)
    expected = naive_loss(model, out, *batch, 0.1, 0, 1.0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def naive_info_nce(x, y, index, temperature):
    size, total = len(index), 0.0
    for a, b in [(x, y), (y, x)]:
        cos = torch.cosine_similarity(a[:, None], b[None], dim=-1)
        for n in range(size):
            others = [m for m in range(size) if m == n or index[m] != index[n]]
            logits = [float(cos[n, m]) / temperature for m in others]
            log_sum = math.log(sum(math.exp(logit) for logit in logits))
            total += log_sum - float(cos[n, n]) / temperature
    return total / (2 * size)


def naive_loss(
    model, out, user, pos, neg, reg, weight, temperature, behaviors=None
):
    scores = (out.user @ out.item.t()).tolist()
    hardest = [
        max(row, key=lambda j, u=u: scores[u][j])
        for u, row in zip(user.tolist(), neg.tolist(), strict=True)
    ]
    pos_score = torch.stack(
        [out.user[u] @ out.item[i] for u, i in zip(user, pos, strict=True)]
    )
    neg_score = torch.stack(
        [out.user[u] @ out.item[j] for u, j in zip(user, hardest, strict=True)]
    )
    params = torch.cat([out.user[user], out.item[pos]])
    loss = float(BPRLoss(reg)(pos_score, neg_score, params).detach())
    if weight == 0:
        return loss

    # The same parameters without the item graph leave the behavior view:
    for behavior, total, index in [
        (behaviors.user, out.user, user),
        (behaviors.item, out.item, pos),
    ]:
        views = behavior, total - behavior
        if model.profile == 'contrast' and index is user:
            first = 0 if model.user_id is None else CHANNELS
            streams = behavior[:, first:].split(CHANNELS, dim=1)
            views = sum(streams), out.profile.sum(dim=1)
        views = [view[index].detach() for view in views]
        loss += weight * naive_info_nce(*views, index.tolist(), temperature)
    return loss


@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('num_samples', [1, 5])
@pytest.mark.parametrize('use_id', [True, False])
@pytest.mark.parametrize(('reg', 'weight'), [(0.0, 0.3), (0.2, 0.0), (0.1, 2)])
def test_crane_loss(profile, num_samples, use_id, reg, weight):
    data = get_data()
    model = get_model(profile=profile, use_id=use_id).double().eval()
    for name in get_sizes():
        data['item'][f'x_{name}'] = data['item'][f'x_{name}'].double()
    out = model(data)
    without = copy.deepcopy(model)
    without.num_item_layers = 0
    behaviors = without(data)
    user, pos, neg = get_batch(data, num_samples)
    # Users and items repeat in the mini-batch:
    user, pos, neg = user[:30], pos[:30], neg[:30]
    assert user.unique().numel() < 30
    assert pos.unique().numel() < 30

    options = {'lambda_reg': reg, 'contrast_weight': weight}
    options['temperature'] = 0.5
    loss = model.loss(out, user, pos, neg, **options)
    terms = model.loss_terms(out, user, pos, neg, **options)
    names = ['bpr', 'l2', 'contrast'] if weight > 0 else ['bpr', 'l2']
    assert list(terms) == names
    total = sum(float(term.detach()) for term in terms.values())
    assert total == pytest.approx(float(loss.detach()))
    expected = naive_loss(
        model, out, user, pos, neg, reg, weight, 0.5, behaviors
    )
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)


def seen_items(data, user, edge_type=RATES):
    src, dst = data[edge_type].edge_index
    return set(dst[src == user].tolist())


@pytest.mark.parametrize('use_id', [True, False])
def test_crane_recommend_under_autocast(use_id):
    data, model = get_data(), get_model(use_id=use_id)
    users = torch.arange(data['user'].num_nodes)
    expected = model.recommend(data, users, k=10)
    with torch.autocast('cpu', torch.bfloat16):
        top = model.recommend(data, users, k=10)
    same = torch.stack(
        [torch.isin(a, b) for a, b in zip(top, expected, strict=True)]
    )
    assert same.float().mean() > 0.8


def test_crane_recommend():
    data = get_data()
    model = get_model(dropout=0.5)
    model(data)
    before = copy.deepcopy(model.state_dict())
    top = model.recommend(data, k=7)
    assert model.training
    assert all(module.training for module in model.modules())
    assert_equal(model.state_dict().values(), before.values())
    assert top.size() == (NUM_USERS, 7)
    assert not top.requires_grad

    # What evaluation ranks best, without the items already seen:
    out = model.eval()(data)
    score = out.user @ out.item.t()
    for user, items in enumerate(top.tolist()):
        seen = seen_items(data, user)
        assert len(seen) > 0
        ranking = score[user].argsort(descending=True).tolist()
        assert items == [item for item in ranking if item not in seen][:7]

    assert torch.equal(model.recommend(data, k=7), top)
    assert not model.training
    index = torch.tensor([40, 2, 2])
    assert torch.equal(model.recommend(data, index, k=7), top[index])
    assert model.recommend(data).size(0) == NUM_USERS

    everything = model.recommend(data, k=7, exclude_seen=False)
    assert torch.equal(everything, score.topk(7)[1])
    assert any(
        seen_items(data, user) & set(items)
        for user, items in enumerate(everything.tolist())
    )
    with pytest.raises(ValueError, match=r'\(got 41\)'):
        model.recommend(data, k=NUM_ITEMS + 1)


@pytest.mark.parametrize('mode', MODES)
def test_crane_state_dict(mode):
    data = get_data()
    model = get_model(mode=mode)
    model(data)  # Takes statistics in.
    expected = model.recommend(data, k=10)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)

    other = get_model(mode=mode, seed=99)
    assert not torch.equal(other.recommend(data, k=10), expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.recommend(data, k=10), expected)
    assert_equal(other.eval()(data), model.eval()(data))


def rename(data, edge_type):
    r"""The same data under other names of node and edge types."""
    out = HeteroData()
    out[edge_type[0]].num_nodes = data['user'].num_nodes
    out[edge_type[2]].update(data['item'].to_dict())
    out[edge_type].edge_index = data[RATES].edge_index
    return out


def test_crane_type_names():
    edge_type = ('member', 'buys', 'product')
    kwargs = {'edge_type': edge_type, 'item_edge': 'near'}
    raw = get_raw_data()
    data, other = get_data(), rename(raw, edge_type)
    other = T.BuildDualGraph(k=3, **kwargs)(other)
    model, renamed = get_model(), get_model(**kwargs)
    assert_equal(renamed(other), model(data))
    assert torch.equal(renamed.recommend(other), model.recommend(data))
    with pytest.raises(ValueError, match=r"type \('user', 'rates', 'item'\)"):
        model(other)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'num_users': 0}, r"'num_users' .* at least 1 \(got 0\)"),
        ({'num_items': 0}, r"'num_items' .* at least 1 \(got 0\)"),
        ({'channels': 0}, r"'channels' .* at least 1 \(got 0\)"),
        ({'num_layers': 2.0}, r"'num_layers' .* an integer \(got 2.0\)"),
        ({'num_layers': True}, r"'num_layers' .* an integer \(got True\)"),
        ({'num_layers': -1}, r"'num_layers' .* at least 0 \(got -1\)"),
        ({'num_item_layers': -1}, r"'num_item_layers' .* \(got -1\)"),
        ({'num_steps': 0}, r"'num_steps' .* at least 1 \(got 0\)"),
        ({'profile': 'mean'}, r"'profile' .* one of .* \(got 'mean'\)"),
        ({'mode': 'mean'}, r"'mode' .* one of .* \(got 'mean'\)"),
        ({'in_channels': {}}, r"'in_channels' .* one modality .* \(got {}\)"),
        ({'in_channels': [5, 6]}, r"'in_channels' .* \(got \[5, 6\]\)"),
        (
            {'in_channels': {'text': -1}},
            r"'in_channels\['text'\]' .* at least 1 \(got -1\)",
        ),
        ({'in_channels': {'a.b': 5}}, r"without dots \(got 'a\.b'\)"),
        ({'in_channels': {1: 5}}, r'without dots \(got 1\)'),
        ({'edge_type': ('user', 'item')}, r'three names \(got .*item'),
        pytest.param({'dropout': 1.5}, r"'dropout' .* \(got 1\.5\)"),
        pytest.param(
            {'mode': 'mean', 'in_channels': {'text': 5}},
            r"'mode' .* one of .* \(got 'mean'\)",
        ),
    ],
)
def test_crane_option_errors(kwargs, match):
    options = {'num_users': 5, 'num_items': 5, 'in_channels': get_sizes()}
    with pytest.raises(ValueError, match=match):
        CRANE(**{**options, **kwargs})


@pytest.mark.parametrize(
    'edge_type', [('item', 'rev_rates', 'user'), ('item', 'similar_to', 'item')]
)
def test_crane_needs_graphs(edge_type):
    data = get_data()
    del data[edge_type]
    edge_types = list(data.edge_types)
    with pytest.raises(ValueError, match=rf"'{edge_type[1]}'.*BuildDualGraph"):
        get_model()(data)
    assert data.edge_types == edge_types


def test_crane_without_item_layers_needs_no_item_graph():
    data, model = get_data(), get_model(num_item_layers=0)
    expected = model.eval()(data)
    del data['item', 'similar_to', 'item']
    assert_equal(model(data), expected)


def test_crane_needs_transformed_data():
    with pytest.raises(ValueError, match='BuildDualGraph'):
        get_model()(get_raw_data())


def test_crane_needs_its_number_of_users():
    sizes = get_sizes()
    dataset = FakeMultimodalDataset(NUM_USERS + 1, NUM_ITEMS, sizes)
    data = T.BuildDualGraph(k=3)(dataset[0])
    with pytest.raises(ValueError, match=r'60.*\(got 61\)'):
        get_model()(data)


def test_crane_recommend_restores_mode_after_an_error():
    data, model = get_data(), get_model()
    del data['item'].x_text
    with pytest.raises(ValueError, match="'x_text'"):
        model.recommend(data)
    assert model.training


def test_crane_modality_names():
    # Names that are attributes of a module or of a dictionary, too:
    sizes = {'keys': 6, 'training': 5}
    data = FakeMultimodalDataset(NUM_USERS, NUM_ITEMS, sizes)[0]
    data = T.BuildDualGraph(k=3)(data)
    model = perturb(CRANE(NUM_USERS, NUM_ITEMS, sizes, CHANNELS))
    assert model.profile is model.encoder.rca is None  # By default.
    assert_learns(model, data, contrast_weight=0.1)


def test_crane_needs_modalities():
    data, model = get_data(), get_model()
    x = data['item'].x_text
    data['item'].x_text = x[:, 1:]
    match = r"'x_text' needs to be of shape \[40, 5\] \(got \[40, 4\]\)"
    with pytest.raises(ValueError, match=match):
        model(data)
    data['item'].x_text = x[1:]
    with pytest.raises(ValueError, match=r'\(got \[39, 5\]\)'):
        model(data)
    del data['item'].x_text
    with pytest.raises(ValueError, match=r"'x_text' .* \(got None\)"):
        model(data)


@pytest.mark.parametrize('keep', [False, True])
def test_crane_ignores_held_out_pairs(keep):
    raw = get_raw_data()
    other = copy.deepcopy(raw)
    store = other[RATES]
    for key in ['val_edge_label_index', 'test_edge_label_index']:
        if keep:
            store[key] = torch.randint(NUM_ITEMS, (2, 11))
        else:
            del store[key]

    outs = []
    for data in [raw, other]:
        data = T.BuildDualGraph(k=3)(data)
        model = get_model()
        out = model(data)
        loss = model.loss(out, *get_batch(data), contrast_weight=0.1)
        loss.backward()
        grads = [param.grad for param in model.parameters()]
        outs.append([*out, loss, *grads, model.recommend(data)])
    assert_equal(*outs)


@pytest.mark.parametrize('mode', MODES)
def test_crane_training_lowers_loss(mode):
    data = get_data()
    model = get_model(mode=mode)
    batch = get_batch(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = model.loss(model(data), *batch, contrast_weight=0.1)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


def train(data, num_epochs):
    torch.manual_seed(0)
    pairs = data[RATES].edge_index
    sizes = {name: data['item'][f'x_{name}'].size(1) for name in get_sizes()}
    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    model = CRANE(num_users, num_items, sizes, channels=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(num_epochs):
        neg = sample_negatives(pairs, num_items, num_samples=4)
        for index in torch.randperm(pairs.size(1)).split(512):
            optimizer.zero_grad()
            user, pos = pairs[:, index]
            loss = model.loss(model(data), user, pos, neg[index])
            loss.backward()
            optimizer.step()
    return model.eval()


def recall(model, data):
    out, store = model(data), data[RATES]
    held_out, seen = store.test_edge_label_index, store.edge_index
    return evaluate(out.user, out.item, held_out, seen)['recall@20']


def test_crane_learns():
    raw = FakeMultimodalDataset(num_users=600, num_items=400)[0]
    transform = T.BuildDualGraph()
    data = transform(raw)
    held_out = data[RATES].test_edge_label_index
    out = recall(train(data, num_epochs=10), data)
    popular = popularity(data).evaluate(held_out)['recall@20']
    assert out > 1.5 * popular
    assert out > 1.1 * recall(train(data, num_epochs=0), data)

    # With the features of other items, there is less to learn from them:
    shuffled = copy.deepcopy(raw)
    perm = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    for name in get_sizes():
        x = shuffled['item'][f'x_{name}']
        shuffled['item'][f'x_{name}'] = x[perm]
    shuffled = transform(shuffled)
    assert out > 1.1 * recall(train(shuffled, num_epochs=10), shuffled)


@onlyCUDA
def test_crane_training_never_stalls_the_gpu():
    data = get_data(missing_rate=0.2)
    batch = [index.cuda() for index in get_batch(data)]
    data, model = data.to('cuda'), get_model(dropout=0.1).cuda()

    def step():
        loss = model.loss(model(data), *batch, contrast_weight=0.1)
        loss.backward()
        return loss

    step()  # What is set up once may wait.
    with no_sync():
        loss = step()
    assert loss.isfinite()


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('dtype', [torch.float, torch.half, torch.bfloat16])
def test_crane_ignores_the_scale_of_features(mode, dtype):
    data, scaled = get_data(), get_data()
    largest = 2.0**15 if dtype == torch.half else 1e30
    for name in get_sizes():
        x = data['item'][f'x_{name}']
        x = unit(x).to(dtype)
        data['item'][f'x_{name}'] = x
        scale = torch.ones(NUM_ITEMS, 1)
        scale[1:6, 0] = torch.tensor([3, 1 / largest, 0.2, largest, 1e3])
        scaled['item'][f'x_{name}'] = (x * scale).to(dtype)
        assert scaled['item'][f'x_{name}'].isfinite().all()
    model = get_model(mode=mode)
    assert_learns(model, scaled, contrast_weight=0.1)
    model.eval()
    # In half precision, the smallest row has lost digits:
    tol = 0.02 if dtype != torch.float else 1e-5
    pairs = tensors(model(scaled)), tensors(model(data))
    for x, y in zip(*pairs, strict=True):
        torch.testing.assert_close(x, y, atol=tol, rtol=tol)
    # Their directions matter all the more:
    expected = model(data).item
    data['item'].x_image[3] *= -1
    assert not torch.allclose(model(data).item, expected, atol=0.1)


def test_crane_of_rows_of_zeros():
    # Without features, whatever stands for them:
    data, zeros = get_data(), get_data()
    for name in get_sizes():
        data['item'][f'x_{name}'][3] = float('nan')
        zeros['item'][f'x_{name}'][3] = 0.0
    model = get_model().eval()
    assert_equal(model(zeros), model(data))


@pytest.mark.parametrize('dtype', [torch.double, torch.half])
def test_crane_of_features_in_other_precision_than_its_own(dtype):
    data, other = get_data(), get_data()
    for name in get_sizes():
        x = data['item'][f'x_{name}'].to(dtype)
        data['item'][f'x_{name}'], other['item'][f'x_{name}'] = x, x.float()
    model = get_model().eval()
    if dtype == torch.half:
        model, other = get_model().half().eval(), data
        data = get_data()
    out = model(data)
    assert out.item.dtype == model.item_id.dtype
    for x, y in zip(tensors(out), tensors(model(other)), strict=True):
        torch.testing.assert_close(x, y, atol=0.02, rtol=0.02)


@pytest.mark.parametrize('mode', MODES)
def test_crane_in_half_precision_without_features(mode):
    data = get_data()
    for name in get_sizes():
        data['item'][f'x_{name}'][3] = float('nan')
    out = get_model(mode=mode).half().eval()(data)
    assert not out.item.isnan().any()
    assert not out.user.isnan().any()


def test_crane_needs_finite_features():
    data = get_data()
    data['item'].x_text[3, 1] = float('inf')
    with pytest.raises(ValueError, match=r"'x_text' .* infinite"):
        get_model()(data)


@pytest.mark.parametrize('missing', [False, True])
def test_crane_in_inference_mode(missing):
    data, model = get_data(), get_model()
    if missing:
        data['item'].x_text[3] = float('nan')
    expected = model.recommend(data, k=5)
    model.eval()
    with torch.inference_mode():
        model(data)
        assert torch.equal(model.recommend(data, k=5), expected)
    model.train()
    assert_learns(model, data, contrast_weight=0.1)


def test_crane_recommend_leaves_frozen_modules_alone():
    data, model = get_data(), get_model()
    model.encoder.rca.eval()
    model.recommend(data)
    assert model.training
    assert model.encoder.training
    assert not model.encoder.rca.training


def test_crane_recommends_candidates():
    data, model = get_data(), get_model()
    whole = model.recommend(data, k=NUM_ITEMS)
    candidates = [7, 2, 19, 2]
    out = model.recommend(data, [3, 0], k=4, candidates=candidates)
    for row, items in zip(out.tolist(), whole[[3, 0]].tolist(), strict=True):
        expected = [item for item in items if item in candidates]
        assert row == expected + [-1] * (4 - len(expected))


def test_crane_loss_of_one_negative_each():
    data, model = get_data(), get_model()
    user, pos, neg = get_batch(data, 1)
    out = model(data)
    expected = model.loss(out, user, pos, neg)
    assert torch.equal(model.loss(out, user, pos, neg[:, 0]), expected)


@pytest.mark.parametrize(
    ('size', 'match'),
    [
        ((4, 30), r'\[30, 30\] \(got \[4, 30\]\)'),
        ((16, 3), r'\[30, 3\] \(got \[16, 3\]\)'),
        ((30, 0), r'\[30, 1\] \(got \[30, 0\]\)'),
        ((120,), r'\[30, 1\] \(got \[120, 1\]\)'),
        ((5, 6, 4), r'\[30, 4\] \(got \[5, 6, 4\]\)'),
    ],
)
def test_crane_loss_needs_negatives_of_each_pair(size, match):
    data, model = get_data(), get_model()
    user, pos, _ = (x[:30] for x in get_batch(data))
    neg = torch.zeros(size, dtype=torch.long)
    with pytest.raises(ValueError, match=f"'neg_index' .* {match}"):
        model.loss(model(data), user, pos, neg)
    match = r"'pos_index' .* \[30\] \(got \[29\]\)"
    with pytest.raises(ValueError, match=match):
        model.loss(model(data), user, pos[1:], user.view(-1, 1))


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'lambda_reg': -1.0}, r"'lambda_reg' .* at least 0 \(got -1.0\)"),
        (
            {'contrast_weight': float('nan')},
            r"'contrast_weight' .* \(got nan\)",
        ),
        ({'contrast_size': 0}, r"'contrast_size' .* at least 1 \(got 0\)"),
        ({'contrast_size': 1.5}, r"'contrast_size' .* integer \(got 1.5\)"),
        ({'temperature': 0.0}, r"'temperature' .* positive \(got 0.0\)"),
        ({'size': 0}, r"'len\(user_index\)' .* at least 1 \(got 0\)"),
    ],
)
def test_crane_loss_errors(kwargs, match):
    data, model = get_data(), get_model()
    batch = [x[: kwargs.pop('size', None)] for x in get_batch(data)]
    with pytest.raises(ValueError, match=match):
        model.loss(model(data), *batch, **kwargs)
