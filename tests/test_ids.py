r"""Indices and pairs, in all that other libraries hold them in."""

import copy

import numpy as np
import pytest
import torch
from toys import ITEMS, RATES, SIMILAR, USERS, get_data, get_model

import crane_pyg.transforms as T
from crane_pyg.explain import PairScores, explain_scores, save_page
from crane_pyg.ranking import Neighborhood, Ranker, evaluate, top_k
from crane_pyg.training import sample_negatives
from crane_pyg.transforms.co_rated import co_rated_graph
from crane_pyg.transforms.profile import user_profiles

DATA = get_data()
MODEL = get_model().eval()
with torch.no_grad():
    USER_EMB, ITEM_EMB = (x.detach() for x in MODEL(DATA)[:2])
RANKER = Ranker.fit(DATA, USER_EMB, ITEM_EMB, weights={'similar_to': 0.5})
SIZE = (USERS, ITEMS)
GRAPH = DATA[SIMILAR].edge_index, DATA[SIMILAR].edge_weight
INDEX = [3, 0, 7, 12]
# Users above items, none of which is a training pair:
PAIRS = torch.cat(
    [DATA[RATES].val_edge_label_index, DATA[RATES].test_edge_label_index], 1
)[:, ::4]


class Column:
    r"""A column whose rows were filtered: its labels are no positions."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, label):
        return {10 + 2 * i: x for i, x in enumerate(self.values)}[label]

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


def read_only(values):
    out = np.array(values)
    out.flags.writeable = False
    return out


def polars(values):
    series = pytest.importorskip('polars').Series
    if not isinstance(values[0], list):
        return series(values).cast(pytest.importorskip('polars').UInt32)
    return [series(row) for row in values]


KINDS = {
    'list': lambda x: x,
    'tuple': lambda x: (
        tuple(map(tuple, x)) if isinstance(x[0], list) else (*x,)
    ),
    'int32': lambda x: torch.tensor(x, dtype=torch.int32),
    'uint8': lambda x: torch.tensor(x, dtype=torch.uint8),
    'uint16': lambda x: torch.tensor(x, dtype=torch.uint16),
    'uint32': lambda x: torch.tensor(x, dtype=torch.uint32),
    'uint64': lambda x: torch.tensor(x, dtype=torch.uint64),
    'array': np.array,
    'array of uint16': lambda x: np.array(x, dtype=np.uint16),
    'big-endian array': lambda x: np.array(x, dtype='>i8'),
    'reversed array': lambda x: np.flip(np.flip(np.array(x)).copy()),
    'read-only array': read_only,
    'scalars': lambda x: (
        [list(map(np.int32, row)) for row in x]
        if isinstance(x[0], list)
        else [torch.tensor(value) for value in x]
    ),
    'column': lambda x: (
        [Column(row) for row in x] if isinstance(x[0], list) else Column(x)
    ),
    'polars': polars,
}


def draw(pairs, exclude):
    torch.manual_seed(4)
    return sample_negatives(pairs, ITEMS, 3, exclude)


def attach(index):
    data = T.attach_users(DATA, [index], T.BuildDualGraph(k=5))
    return data[RATES].edge_index


def near(pairs, graph=None):
    graphs = {'near': GRAPH if graph is None else (graph, torch.ones(100))}
    users = torch.arange(USERS)
    return Neighborhood(pairs, graphs, SIZE).scores('near', users)


def page(index, path):
    save_page(path / 'page.html', MODEL, DATA, index, 2)
    return (path / 'page.html').read_text()


def held_out(pairs):
    data = copy.copy(DATA)
    data[RATES].val_edge_label_index = pairs
    return Ranker.fit(data, USER_EMB, ITEM_EMB).weights


INDEX_DOORS = {
    'top_k.user_index': lambda x: top_k(USER_EMB, ITEM_EMB, 5, x),
    'top_k.candidates': lambda x: top_k(USER_EMB, ITEM_EMB, 3, candidates=x),
    'CRANE.recommend.user_index': lambda x: MODEL.recommend(DATA, x, 5),
    'CRANE.recommend.candidates': lambda x: MODEL.recommend(
        DATA, k=3, candidates=x
    ),
    'Ranker.candidates': lambda x: Ranker.fit(
        DATA, USER_EMB, ITEM_EMB, weights={}, candidates=x
    ).recommend(k=3),
    'Ranker.top_k.user_index': lambda x: RANKER.top_k(5, x),
    'Ranker.top_k.candidates': lambda x: RANKER.top_k(3, candidates=x),
    'Ranker.recommend.user_index': lambda x: RANKER.recommend(x, 5),
    'attach_users.histories': attach,
    'explain_scores.item_index': lambda x: (
        explain_scores(MODEL, DATA, 3, x, RANKER).score
    ),
    'evaluate.ks': lambda x: evaluate(USER_EMB, ITEM_EMB, PAIRS, ks=x),
}
PAIR_DOORS = {
    'top_k.exclude': lambda x: top_k(USER_EMB, ITEM_EMB, 5, exclude=x),
    'evaluate.edge_label_index': lambda x: evaluate(USER_EMB, ITEM_EMB, x),
    'evaluate.exclude': lambda x: evaluate(
        USER_EMB, ITEM_EMB, DATA[RATES].test_edge_label_index[:, 1:2], x
    ),
    'Ranker.evaluate.edge_label_index': lambda x: RANKER.evaluate(x),
    'Ranker.fit.edge_label_index': lambda x: (
        Ranker.fit(DATA, USER_EMB, ITEM_EMB, edge_label_index=x).weights
    ),
    'Ranker.fit.val_edge_label_index': held_out,
    'sample_negatives.edge_index': lambda x: draw(x, None),
    'sample_negatives.exclude': lambda x: draw(PAIRS, x),
    'user_profiles.edge_index': lambda x: user_profiles(
        DATA['item'].x_text, x, USERS
    ),
    'co_rated_graph.edge_index': lambda x: co_rated_graph(x, *SIZE, 5),
    'Neighborhood.history': near,
    'PairScores.edge_label_index': lambda x: PairScores(MODEL, DATA, RANKER)(
        *PairScores(MODEL, DATA, RANKER).inputs(), x
    ),
}


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize('door', INDEX_DOORS.values(), ids=INDEX_DOORS)
def test_indices(door, kind):
    index = [3, 5, 7, 12]
    same(door(kind(index)), door(torch.tensor(index)))


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize('door', PAIR_DOORS.values(), ids=PAIR_DOORS)
def test_pairs(door, kind):
    same(door(kind(PAIRS.tolist())), door(PAIRS))


def same(out, expected):
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ('door', 'works'),
    [(name, 'user_index' not in name) for name in INDEX_DOORS],
)
def test_sets_where_order_tells_nothing(door, works):
    if name_of(door) in {'item_index', 'ks'}:
        works = False
    if works:
        same(INDEX_DOORS[door]({12, 3, 7}), INDEX_DOORS[door]([3, 7, 12]))
        return
    match = f"'{name_of(door)}' needs .* list \\(got a set\\)"
    with pytest.raises(ValueError, match=match):
        INDEX_DOORS[door]({12, 3, 7})


def name_of(door):
    return door.rpartition('.')[2]


@pytest.mark.parametrize('one', [7, np.int64(7), np.array(7), torch.tensor(7)])
@pytest.mark.parametrize('door', INDEX_DOORS.values(), ids=INDEX_DOORS)
def test_single_numbers(door, one):
    same(door(one), door([7]))


@pytest.mark.parametrize('one', [np.uint8(5), np.array(5), torch.tensor(5)])
def test_lengths_and_a_user(one):
    same(top_k(USER_EMB, ITEM_EMB, one), top_k(USER_EMB, ITEM_EMB, 5))
    same(RANKER.recommend(one, one), RANKER.recommend([5], 5))
    same(MODEL.recommend(DATA, one, one), MODEL.recommend(DATA, [5], 5))
    out = explain_scores(MODEL, DATA, one, [1, 2])
    same(out.score, explain_scores(MODEL, DATA, 5, [1, 2]).score)


def test_page(tmp_path):
    expected = page([3], tmp_path)
    for kind in (Column, np.array, tuple):
        assert page(kind([3]), tmp_path) == expected


def test_edges_of_a_relation():
    edges = torch.randint(ITEMS, (2, 100))
    for kind in KINDS:
        same(near(PAIRS, KINDS[kind](edges.tolist())), near(PAIRS, edges))


def test_marks():
    marks = torch.arange(PAIRS.size(1)) % 2
    expected = evaluate(USER_EMB, ITEM_EMB, PAIRS[:, 1::2])
    for kind in KINDS:
        label = KINDS[kind](marks.tolist())
        out = evaluate(USER_EMB, ITEM_EMB, PAIRS, edge_label=label)
        assert out == expected
    with pytest.raises(ValueError, match="'edge_label' needs to hold numbers"):
        evaluate(USER_EMB, ITEM_EMB, PAIRS, edge_label=['a'] * PAIRS.size(1))


BAD = [
    ([0.5, 1.0], r'integer'),
    ([True, False], r'integer'),
    (['a', 'b'], r'integer'),
    ('ab', r'\(got a str\)'),
    ({1: 2}, r'\(got a dict\)'),
    ([2**40], r'\(got 1099511627776\)'),
    ([2**70], r'integer|number of items'),
    ([-1], r'\(got -1\)'),
    ([[1], [2, 3]], r'integer'),
]


@pytest.mark.parametrize(('value', 'match'), BAD)
@pytest.mark.parametrize('door', INDEX_DOORS)
def test_bad_indices_are_refused_by_name(door, value, match):
    with pytest.raises(ValueError, match=rf"'{name_of(door)}.*{match}"):
        INDEX_DOORS[door](value)


@pytest.mark.parametrize(
    ('value', 'match'),
    [
        ([[0.5], [1.0]], 'integers'),
        ([[0, 1], [2]], 'one length'),
        ([['a'], ['b']], 'integers'),
        ([[0], [2**40]], r'\(got 1099511627776\)'),
        ([[-1], [0]], r'\(got -1\)|at least 0'),
        ([1, 2, 3], r'shape \[2, num_edges\]'),
        (np.zeros((5, 3), dtype=int), r'shape \[2, num_edges\]'),
        ({(1, 2)}, r'\(got a set\)'),
    ],
)
@pytest.mark.parametrize('door', PAIR_DOORS)
def test_bad_pairs_are_refused_by_name(door, value, match):
    name = name_of(door).removeprefix('val_')
    with pytest.raises(ValueError, match=rf"'{name}.*{match}"):
        PAIR_DOORS[door](value)
