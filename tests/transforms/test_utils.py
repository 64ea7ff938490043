import copy

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T

RATES = ('user', 'rates', 'item')
REV = ('item', 'rev_rates', 'user')
ITEMS = [3, 1, 0, 2]

# The item of each edge, in whatever form:
ATTRS = {
    'edge_label': torch.tensor(ITEMS),  # Of ratings, as in PyG's `MovieLens`.
    'label': torch.tensor(ITEMS).half(),
    'edge_attr': torch.tensor(ITEMS).view(-1, 1).repeat(1, 3),
    'time': np.array(ITEMS),
    'text': list(map(str, ITEMS)),
    'codes': tuple(ITEMS),
}


def get_data(**attrs):
    data = HeteroData()
    data['user'].num_nodes = 4
    data['item'].num_nodes = 4
    data['item'].x_text = torch.eye(4) + 0.1
    data[RATES].edge_index = torch.tensor([[0, 1, 2, 3], ITEMS])
    data[RATES].update(attrs)
    return data


def items_of(value):
    rows = value if isinstance(value, (list, tuple)) else value.tolist()
    return [int(x[0] if isinstance(x, list) else x) for x in rows]


@pytest.mark.parametrize('name', ATTRS)
@pytest.mark.parametrize(
    'transform', [T.BuildDualGraph(num_co_rated=0), T.DegreeDropEdges(0.0)]
)
def test_attributes_move_with_their_edges(name, transform):
    value = ATTRS[name]
    data = get_data(**{name: copy.copy(value)})
    out = transform(data)
    stores = [(out[REV], 0)]
    if name != 'edge_label' or 'edge_label_index' not in out[RATES]:
        stores.append((out[RATES], 1))
    for store, row in stores:
        assert type(store[name]) is type(value)
        assert items_of(store[name]) == store.edge_index[row].tolist()
    assert out[RATES].edge_index[1].tolist() == [0, 1, 2, 3]
    assert items_of(data[RATES][name]) == ITEMS


@pytest.mark.parametrize('name', ATTRS)
def test_attributes_of_dropped_edges(name):
    torch.manual_seed(12)
    out = T.DegreeDropEdges(0.5)(get_data(**{name: ATTRS[name]}))
    store = out[RATES]
    assert store.edge_label_index.size(1) == 2
    row = store.edge_label_index if name == 'edge_label' else store.edge_index
    assert items_of(store[name]) == row[1].tolist()
    assert items_of(out[REV][name]) == out[REV].edge_index[0].tolist()


@pytest.mark.parametrize('name', ATTRS)
def test_attributes_are_dropped_with_new_users(name):
    transform = T.BuildDualGraph(num_co_rated=0)
    data = transform(get_data(**{name: ATTRS[name]}))
    out = T.attach_users(data, [[0, 1]], transform)
    assert name not in out[RATES]
    assert name not in out[REV]
    assert items_of(data[RATES][name]) == [0, 1, 2, 3]


def test_labels_of_pairs_stay():
    attrs = {
        'edge_label': torch.tensor(ITEMS),
        'edge_label_index': torch.tensor([ITEMS, ITEMS]),
        'val_edge_label_index': torch.tensor([ITEMS, ITEMS]),
        'rating': ITEMS,  # As the `key` of `RandomLinkSplit`.
        'rating_index': torch.tensor([ITEMS, ITEMS]),
        'name': 'abcd',
        'options': dict.fromkeys('abcd', 1),
    }
    out = T.BuildDualGraph(num_co_rated=0)(get_data(**attrs))
    for name, value in attrs.items():
        assert out[RATES][name] is value
        assert name not in out[REV]


@pytest.mark.parametrize(
    'value', [torch.eye(4).to_sparse(), range(4), bytearray(4)]
)
def test_what_cannot_move_is_refused(value):
    data = get_data(note=value)
    match = rf"'note' is as long as the edges.*\(got '{type(value).__name__}'"
    for transform in [T.BuildDualGraph(), T.DegreeDropEdges(0.5)]:
        with pytest.raises(ValueError, match=match):
            transform(data)
    assert data[RATES].note is value


@pytest.mark.parametrize('layout', ['sparse_coo', 'sparse_csr', 'sparse_csc'])
@pytest.mark.filterwarnings('ignore:Sparse CS')
def test_sparse_features_are_refused(layout):
    x = torch.eye(4).to_sparse(layout=getattr(torch, layout))
    data = get_data()
    data['item'].x_text = x
    match = rf"'x_text' needs to be dense.*\(got layout torch.{layout}\)"
    for transform in [
        T.BuildDualGraph(),
        T.AddUserProfiles(),
        T.ReduceFeatures(2),
    ]:
        with pytest.raises(ValueError, match=match):
            transform(data)
    with pytest.raises(ValueError, match=r"'x' needs to be dense"):
        T.knn_item_graph(x, 2)
    built = T.BuildDualGraph()(get_data())
    with pytest.raises(ValueError, match=r"'text' needs to be dense"):
        T.attach_items(built, {'text': x})


def test_a_number_missing_is_counted(recwarn):
    data = get_data()
    data['item'].x_text[2] = float('nan')
    data['item'].x_image = torch.eye(4)
    T.BuildDualGraph()(data)
    assert len(recwarn) == 0
    data['item'].x_text[[0, 3], 1] = float('nan')
    data['item'].x_image[1, 1] = float('nan')
    out = T.BuildDualGraph()(data)
    texts = [str(warning.message) for warning in recwarn]
    assert [text[:25] for text in texts] == [
        "2 of 4 rows of 'x_text' h",
        "1 of 4 rows of 'x_image' ",
    ]
    assert {warning.filename for warning in recwarn} == {__file__}
    assert (out['item'].neighbor_text == -1).all()


@pytest.mark.parametrize('num_items', [1, 2, 40])
def test_lists_have_room_for_the_other_items_only(num_items):
    data = get_data()
    data['item'].num_nodes = max(4, num_items)
    data['item'].x_text = torch.randn(max(4, num_items), 3)
    if num_items < 4:
        data['item'].num_nodes = num_items
        data['item'].x_text = data['item'].x_text[:num_items]
        data[RATES].edge_index = torch.zeros(2, 1, dtype=torch.long)
    out = T.BuildDualGraph(k=2_000_000)(data)['item']
    assert out.neighbor_text.size() == (num_items, num_items - 1)
    assert out.similarity_text.size() == (num_items, num_items - 1)
    expected = T.BuildDualGraph(k=max(1, num_items - 1))(data)['item']
    assert torch.equal(out.neighbor_text, expected.neighbor_text)
    index = torch.arange(num_items).expand(num_items, -1)
    found = torch.cat([out.neighbor_text, index[:1].t()], dim=1)
    assert torch.equal(found.sort(dim=1)[0], index)
