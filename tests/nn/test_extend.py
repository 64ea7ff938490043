import copy
import math

import pytest
import torch
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.explain import PairScores, explain_scores
from crane_pyg.nn import CRANE
from crane_pyg.ranking import Ranker

RATES = ('user', 'rates', 'item')
SIMILAR = ('item', 'similar_to', 'item')
SIZES = {'image': 6, 'text': 5}
NUM_USERS, NUM_OLD, NUM_NEW, CHANNELS = 50, 40, 6, 4
ARGUMENTS = [
    {},
    {'num_layers': 0, 'neighbor_share': 1.0},
    {'neighbor_share': 0.0},
    {'num_item_layers': 0},
    {'num_item_layers': 2, 'profile': None},
    {'use_id': False, 'mode': 'token'},
    {'profile': 'contrast', 'mode': None},
]


def get_data(**kwargs):
    r"""Data of the old items, and of all items."""
    kwargs['modalities'] = SIZES
    whole = FakeMultimodalDataset(NUM_USERS, NUM_OLD + NUM_NEW, **kwargs)[0]
    pairs = whole[RATES].edge_index
    whole[RATES].edge_index = pairs[:, pairs[1] < NUM_OLD]
    data, new = copy.copy(whole), {}
    data['item'].num_nodes = NUM_OLD
    for name in SIZES:
        x = whole['item'][f'x_{name}']
        data['item'][f'x_{name}'], new[name] = x[:NUM_OLD], x[NUM_OLD:]
    transform = T.BuildDualGraph(k=3)
    data = transform(data)
    return data, T.attach_items(data, new, transform)


def get_model(data, **kwargs):
    r"""A model with statistics, and where no weight is zero."""
    torch.manual_seed(12)
    kwargs = {'profile': 'input', 'mode': 'correlation', **kwargs}
    model = CRANE(NUM_USERS, NUM_OLD, SIZES, CHANNELS, **kwargs)
    with torch.no_grad():
        for param in model.parameters():
            param += 0.1 * torch.randn_like(param)
        model(data)
    return model


def assert_close(out, expected):
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


def assert_equal(outs, expected):
    for x, y in zip(outs, expected, strict=True):
        assert x is y is None or torch.equal(x, y)


def neighbors_of(data, item):
    r"""The old neighbors of an item, and their shares."""
    src, dst = data[SIMILAR].edge_index
    keep = (dst == item) & (src < NUM_OLD)
    weight = data[SIMILAR].edge_weight[keep]
    return src[keep], weight / weight.sum()


@pytest.mark.parametrize('kwargs', ARGUMENTS)
def test_extend_embeds_new_items(kwargs):
    data, whole = get_data()
    model = get_model(data, **kwargs)
    state = copy.deepcopy(model.state_dict())
    extended = model.extend(whole)
    out = extended(whole)
    assert out.user.size(0) == NUM_USERS
    assert out.item.size(0) == NUM_OLD + NUM_NEW
    assert out.item.isfinite().all()

    # Items that are no new ones would be without what neighbors lend:
    plain = copy.deepcopy(extended)
    plain.num_new_items = 0
    expected = plain(whole)
    assert_close(out.user, expected.user)
    assert_close(out.item[:NUM_OLD], expected.item[:NUM_OLD])
    for item in range(NUM_OLD, NUM_OLD + NUM_NEW):
        index, share = neighbors_of(whole, item)
        assert index.numel() > 0
        lent = (share.unsqueeze(1) * expected.item[index]).sum(dim=0)
        assert lent.any()
        share = model.neighbor_share
        mixed = (1 - share) * expected.item[item] + share * lent
        assert_close(out.item[item], mixed)

    # Neither the model nor its mode is touched:
    assert model.training
    assert not extended.training
    assert model.size == (NUM_USERS, NUM_OLD)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize('mode', ['correlation', None])
def test_extend_leaves_new_items_without_offsets(mode):
    data, whole = get_data()
    kwargs = {'mode': mode, 'num_layers': 0, 'num_item_layers': 0}
    model = get_model(data, **kwargs).eval()
    extended = model.extend(whole)
    for name in [*(f'offset.x_{name}' for name in SIZES), 'item_id']:
        weight = extended.get_parameter(name)
        assert weight.requires_grad
        assert torch.equal(weight[:NUM_OLD], model.get_parameter(name))
        assert weight[NUM_OLD:].size() == (NUM_NEW, CHANNELS)
        assert not weight[NUM_OLD:].any()
    if mode is None:  # All that they are is their features.
        extended.num_new_items = 0
        streams = extended(whole).item[NUM_OLD:, CHANNELS:]
        for name, stream in zip(
            SIZES, streams.split(CHANNELS, dim=1), strict=True
        ):
            x = whole['item'][f'x_{name}'][NUM_OLD:]
            x = x / x.norm(dim=1, keepdim=True)
            assert_close(stream, model.encoder.lins[f'x_{name}'](x))


@pytest.mark.parametrize('kwargs', ARGUMENTS)
def test_extend_changes_nothing_without_new_ones(kwargs):
    data, _ = get_data()
    model = get_model(data, **kwargs).eval()
    out, expected = model.extend(data)(data), model(data)
    assert (out.profile is None) == (model.profile != 'contrast')
    assert_equal(out, expected)


def test_extend_without_item_graph_leaves_the_old_alone():
    # New items have no pairs, and the item graph is all that they touch:
    data, whole = get_data()
    model = get_model(data, num_item_layers=0).eval()
    expected, out = model(data), model.extend(whole)(whole)
    assert_close(out.user, expected.user)
    assert_close(out.item[:NUM_OLD], expected.item)


@pytest.mark.parametrize('share', [0.0, 0.6, 1.0])
def test_extend_splits_new_items_into_views(share):
    data, whole = get_data()
    model = get_model(data).extend(whole)
    model.neighbor_share = share
    without = copy.deepcopy(model)
    without.num_item_layers = 0
    out, behavior = model(whole), without(whole)
    assert_close(out.user - out.user_semantic, behavior.user)
    assert_close(out.item - out.item_semantic, behavior.item)
    assert out.item_semantic[NUM_OLD:].any(dim=1).all()


def test_extend_takes_stored_statistics():
    # The embedding of a new item does not depend on other new ones that are
    # not among its neighbors, which statistics of all items would tell:
    data, whole = get_data()
    model = get_model(data, num_item_layers=0)
    other = copy.copy(whole)
    for name in SIZES:
        x = whole['item'][f'x_{name}'].clone()
        x[-1] = x[0]
        other['item'][f'x_{name}'] = x
    out, changed = model.extend(whole)(whole), model.extend(whole)(other)
    assert_close(out.item[:-1], changed.item[:-1])
    assert not torch.allclose(out.item[-1], changed.item[-1])


def test_extend_items_with_new_neighbors_only():
    data, whole = get_data()
    adj = whole[SIMILAR]
    src, dst = adj.edge_index
    keep = (dst != NUM_OLD) | (src >= NUM_OLD)
    adj.edge_index = adj.edge_index[:, keep]
    adj.edge_weight = adj.edge_weight[keep]
    model = get_model(data).extend(whole)
    out = model(whole)
    model.num_new_items = 0
    expected = model(whole)
    assert expected.item[NUM_OLD].any()
    assert_close(out.item[NUM_OLD], expected.item[NUM_OLD])
    assert not torch.allclose(out.item[-1], expected.item[-1])


def test_extend_ranks_new_items():
    data, whole = get_data()
    model = get_model(data)
    top = model.extend(whole).recommend(whole, k=NUM_OLD + NUM_NEW)
    for user in range(NUM_USERS):
        new = set(range(NUM_OLD, NUM_OLD + NUM_NEW))
        assert new <= set(top[user].tolist())
    with pytest.raises(ValueError, match=r"40 nodes of type 'item' \(got 46\)"):
        model.recommend(whole)


def test_extend_twice_equals_once():
    data, whole = get_data()
    transform = T.BuildDualGraph(k=3)
    model, steps = get_model(data), data
    for n in range(NUM_OLD, NUM_OLD + NUM_NEW, 2):
        new = {m: whole['item'][f'x_{m}'][n : n + 2] for m in SIZES}
        steps = T.attach_items(steps, new, transform)
        model = model.extend(steps)
    expected = get_model(data).extend(whole)(whole)
    assert_equal(model(steps), expected)


def test_extend_items_without_modality():
    data, whole = get_data()
    new = {
        'image': torch.full((2, SIZES['image']), math.nan),
        'text': whole['item'].x_text[:2].clone(),
    }
    new['text'][0] = math.nan
    with pytest.warns(UserWarning, match=r'1 of 2 new items lack every'):
        whole = T.attach_items(data, new, T.BuildDualGraph(k=3))
    extended = get_model(data).extend(whole)
    out = extended(whole)
    assert not out.item[NUM_OLD].any()
    assert out.item[NUM_OLD + 1].any()


@pytest.mark.parametrize('kwargs', ARGUMENTS)
def test_extend_embeds_new_users(kwargs):
    data, _ = get_data(missing_rate=0.2)
    histories = [torch.tensor([1, 5, 8]), torch.tensor([2])]
    whole = T.attach_users(data, histories, T.BuildDualGraph(k=3))
    model = get_model(data, **{**kwargs, 'num_layers': 0}).eval()
    if model.gate is not None:  # A user is not to point away from the items.
        model.gate.data = -model.gate.data.abs()
    streams = copy.deepcopy(model)
    streams.num_item_layers = 0
    items = streams(data).item.split(CHANNELS, dim=1)
    extended = model.extend(whole)
    extended.num_item_layers = 0
    users = extended(whole).user.split(CHANNELS, dim=1)
    if model.user_id is not None:
        assert not users[0][NUM_USERS:].any()
        items, users = items[1:], users[1:]
    gates = [0.0, 0.0] if model.gate is None else model.gate.tolist()
    for name, x, user, gate in zip(SIZES, items, users, gates, strict=True):
        weight = model.preference[f'x_{name}'].detach()
        padded = extended.preference[f'x_{name}']
        assert torch.equal(padded[:NUM_USERS], weight)
        for n, history in enumerate(histories, start=NUM_USERS):
            mean = x[history].mean(dim=0)
            norm = weight.norm(dim=1).mean()
            assert_close(padded[n], norm * mean / mean.norm())
            assert_close(user[n], padded[n] + gate * mean)


def test_extend_recommends_to_new_users():
    data, _ = get_data()
    user, item = data[RATES].edge_index
    history = item[user == 7]
    whole = T.attach_users(data, [history], T.BuildDualGraph(k=3))
    extended = get_model(data).extend(whole)
    top = extended.recommend(whole, torch.tensor([NUM_USERS]), k=10)[0]
    assert top.unique().numel() == 10
    assert not torch.isin(top, history).any()


def test_extend_scores_of_new_items_are_explained():
    data, whole = get_data()
    extended = get_model(data).extend(whole)
    weights = {'similar_to': 0.7, 'co_rated': 0.3}
    ranker = Ranker.from_model(extended, whole, weights=weights)
    users = torch.tensor([3])
    new = torch.arange(NUM_OLD, NUM_OLD + NUM_NEW)
    top = ranker.top_k(NUM_NEW, users, candidates=new)
    score = top.score[0][top.index[0].argsort()]
    parts = explain_scores(extended, whole, 3, new, ranker)
    assert_close(parts.score, score)
    assert_close(sum(parts.parts.values()), score)
    pairs = PairScores(extended, whole, ranker)
    pair = torch.stack([torch.full_like(new, 3), new])
    assert_close(pairs(*pairs.inputs(), edge_label_index=pair), score)


def test_extend_is_kept(tmp_path):
    data, whole = get_data()
    extended = get_model(data).extend(whole)
    extended.save_pretrained(tmp_path)
    loaded = CRANE.from_pretrained(tmp_path)
    assert loaded.num_new_items == NUM_NEW
    assert_equal(loaded(whole), extended(whole))


def test_extend_needs_counts():
    with pytest.raises(ValueError, match=r"'num_nodes' .* 'user'"):
        get_model(get_data()[0]).extend(HeteroData())


def test_extend_errors():
    data, whole = get_data()
    extended = get_model(data).extend(whole)
    match = r"'num_items' of 'data' .* at least 46, .* \(got 40\)"
    with pytest.raises(ValueError, match=match):
        extended.extend(data)
    data['user'].num_nodes = 49
    match = r"'num_users' of 'data' .* at least 50, .* \(got 49\)"
    with pytest.raises(ValueError, match=match):
        get_model(whole_to_old := get_data()[0]).extend(data)
    assert whole_to_old['user'].num_nodes == 50
    with pytest.raises(ValueError, match=r'neighbor_share.* \(got 1.5\)'):
        CRANE(5, 40, SIZES, neighbor_share=1.5)
    for value in (-1, 40):
        with pytest.raises(ValueError, match=r'num_new_items.* \(got'):
            CRANE(5, 40, SIZES, num_new_items=value)
