import copy

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg.transforms.profile import user_profiles


def naive_profiles(x, edge_index, num_users):
    out = torch.full((num_users, x.size(1)), float('nan'), dtype=torch.double)
    for user in range(num_users):
        rows = [x[i].double() for u, i in edge_index.t().tolist() if u == user]
        rows = [row for row in rows if row.abs().max() > 0]
        if len(rows) > 0:
            out[user] = torch.stack(rows).mean(dim=0)
    return out


@pytest.mark.parametrize('dtype', [torch.float, torch.double, torch.half])
def test_user_profiles(dtype):
    torch.manual_seed(0)
    x = torch.randn(12, 5, dtype=dtype)
    x[[2, 4]] = float('nan')
    x[5, 1] = float('nan')
    x[6] = 0.0
    pairs = torch.arange(30)
    edge_index = torch.stack([pairs % 8, (5 * pairs) % 12])
    # Users 8 and 9 have an item that lacks the modality, and no item:
    edge_index = torch.cat([edge_index, torch.tensor([[8], [2]])], dim=1)
    out = user_profiles(x, edge_index, num_users=10)
    expected = naive_profiles(x, edge_index, 10)
    tol = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        out, expected.to(dtype), atol=tol, rtol=tol, equal_nan=True
    )
    assert out[8:].isnan().all()
    assert not out[:8].isnan().any()

    adj = EdgeIndex(edge_index.int(), sparse_size=(10, 12))
    out2 = user_profiles(x, adj, num_users=10)
    assert type(out2) is torch.Tensor
    torch.testing.assert_close(out2, out, equal_nan=True)


def test_user_profiles_empty():
    edge_index = torch.empty(2, 0, dtype=torch.long)
    out = user_profiles(torch.randn(3, 2), edge_index, num_users=4)
    assert out.shape == (4, 2)
    assert out.isnan().all()


def test_user_profiles_errors():
    edge_index = torch.tensor([[0], [1]])
    with pytest.raises(ValueError, match=r'two-dimensional \(got \[3\]\)'):
        user_profiles(torch.randn(3), edge_index, 1)
    with pytest.raises(ValueError, match=r'floating \(got torch.int64\)'):
        user_profiles(torch.ones(3, 1).long(), edge_index, 1)
    with pytest.raises(ValueError, match=r"'x' .* infinite .* \(got 'inf'\)"):
        user_profiles(torch.full((2, 3), -torch.inf), edge_index, 1)
    with pytest.raises(ValueError, match=r'between 0 and 0 \(got 1\)'):
        user_profiles(torch.randn(1, 3), edge_index, 1)


def get_data(user='user', rel='rates', item='item'):
    data = HeteroData()
    data[user].num_nodes = 3
    data[item].num_nodes = 4
    data[item].x_image = torch.randn(4, 5)
    data[item].x_text = torch.randn(4, 2)
    edge_index = torch.tensor([[0, 0, 1], [0, 1, 3]])
    data[user, rel, item].edge_index = edge_index
    data[user, rel, item].val_edge_label_index = torch.tensor([[2], [2]])
    return data


@pytest.mark.parametrize(
    'edge_type', [('user', 'rates', 'item'), ('member', 'buys', 'product')]
)
def test_add_user_profiles(edge_type):
    data = get_data(*edge_type)
    before = copy.copy(data)
    user, _, item = edge_type
    transform = T.AddUserProfiles(edge_type=edge_type)
    out = transform(data)
    assert data.to_dict().keys() == before.to_dict().keys()
    assert list(data[user].keys()) == ['num_nodes']
    for name in ['x_image', 'x_text']:
        torch.testing.assert_close(
            out[user][name].double(),
            naive_profiles(data[item][name], data[edge_type].edge_index, 3),
            equal_nan=True,
        )
        assert out[user][name][2].isnan().all()
    assert out.validate()

    # Held-out pairs are not read:
    data[edge_type].val_edge_label_index = torch.tensor([[0, 1], [2, 2]])
    torch.testing.assert_close(
        transform(data)[user].x_text, out[user].x_text, equal_nan=True
    )


def test_add_user_profiles_repr():
    assert str(T.AddUserProfiles()) == (
        "AddUserProfiles(edge_type=('user', 'rates', 'item'))"
    )


def test_add_user_profiles_errors():
    data = get_data()
    with pytest.raises(ValueError, match=r"three names \(got \('a', 'b'\)\)"):
        T.AddUserProfiles(edge_type=('a', 'b'))
    with pytest.raises(ValueError, match="'rates', 'item'"):
        T.AddUserProfiles(edge_type=('user', 'buys', 'item'))(data)
    del data['item'].x_image, data['item'].x_text
    with pytest.raises(ValueError, match=r"found \['num_nodes'\]"):
        T.AddUserProfiles()(data)
