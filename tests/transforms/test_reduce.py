import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset


def get_data(*xs):
    data = HeteroData()
    for name, x in zip(['image', 'text'], xs, strict=False):
        data['item'][f'x_{name}'] = x
    data['item'].num_nodes = xs[0].size(0)
    return data


def test_reduce_features_repr():
    assert str(T.ReduceFeatures(8)) == (
        "ReduceFeatures(channels=8, node_type='item')"
    )


def test_reduce_features_equals_svd():
    torch.manual_seed(0)
    # Singular values that fall off, as those of embeddings do:
    x = torch.randn(50, 40) * 0.7 ** torch.arange(40)
    out = T.ReduceFeatures(5)(get_data(x))['item']
    value = torch.linalg.svdvals(x)
    assert out.x_image.size() == (50, 5)
    assert out.basis_image.size() == (40, 5)
    torch.testing.assert_close(
        out.x_image.norm(dim=0), value[:5], rtol=1e-3, atol=1e-3
    )
    expected = value[:5].square().sum() / value.square().sum()
    assert 0.5 < expected < 0.999
    assert out.explained_image == pytest.approx(float(expected), abs=1e-4)
    torch.testing.assert_close(out.x_image, x @ out.basis_image)


def test_reduce_features_of_low_rank_loses_nothing():
    torch.manual_seed(0)
    x = torch.randn(60, 4) @ torch.randn(4, 30)
    out = T.ReduceFeatures(6)(get_data(x))['item']
    torch.testing.assert_close(
        out.x_image @ out.basis_image.t(), x, rtol=1e-4, atol=1e-4
    )
    assert out.explained_image == pytest.approx(1.0, abs=1e-5)
    # All inner products, and with them all linear layers, are left alone:
    torch.testing.assert_close(
        out.x_image @ out.x_image.t(), x @ x.t(), rtol=1e-4, atol=1e-3
    )


def test_reduce_features_keeps_missing_rows_and_narrow_features():
    torch.manual_seed(0)
    x, y = torch.randn(9, 7), torch.randn(9, 3)
    x[4] = float('nan')
    out = T.ReduceFeatures(3)(get_data(x, y))['item']
    assert out.x_image.isnan().all(dim=1).tolist() == [n == 4 for n in range(9)]
    assert out.x_image.isnan().any(dim=1).sum() == 1
    assert out.x_text is y
    assert 'basis_text' not in out
    assert 0 < out.explained_image < 1


def test_reduce_features_of_few_nodes():
    x = torch.randn(5, 9)
    out = T.ReduceFeatures(7)(get_data(x))['item']
    assert out.x_image.size() == (5, 5)
    assert out.explained_image == pytest.approx(1.0)


def test_reduce_features_of_nothing():
    out = T.ReduceFeatures(2)(get_data(torch.zeros(5, 4)))['item']
    assert not out.x_image.any()
    assert out.explained_image == 1.0


def test_reduce_features_after_the_graphs():
    transform = Compose([T.BuildDualGraph(k=3), T.ReduceFeatures(8)])
    sizes = {'image': 64, 'text': 32}
    data = FakeMultimodalDataset(80, 60, sizes, pre_transform=transform)[0]
    whole = FakeMultimodalDataset(
        80, 60, sizes, pre_transform=T.BuildDualGraph(k=3)
    )[0]
    assert data['item'].x_image.size() == (60, 8)
    edge_type = ('item', 'similar_to', 'item')
    assert torch.equal(
        data[edge_type].edge_index,
        whole[edge_type].edge_index,
    )


def test_reduce_features_errors():
    for channels in [0, 2.5]:
        match = rf"'channels' .* \(got {channels}\)"
        with pytest.raises(ValueError, match=match):
            T.ReduceFeatures(channels)
    x = torch.randn(9, 7)
    x[4, 2] = float('inf')
    with pytest.raises(ValueError, match=r"'x_text' .* \(got 'inf'\)"):
        T.ReduceFeatures(3)(get_data(x[:, :2], x))
    data = HeteroData()
    data['item'].num_nodes = 3
    with pytest.raises(ValueError, match='modality'):
        T.ReduceFeatures(2)(data)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_reduce_features_in_other_precision(dtype):
    torch.manual_seed(0)
    x = torch.randn(20, 3) @ torch.randn(3, 9)
    x[4] = float('nan')
    out = T.ReduceFeatures(3)(get_data(x.to(dtype)))['item']
    assert out.x_image.dtype == out.basis_image.dtype == dtype
    assert out.x_image.isnan().any(dim=1).nonzero().tolist() == [[4]]
    back = (out.x_image @ out.basis_image.t()).float()
    tol = 8 * torch.finfo(dtype).eps if dtype != torch.double else 1e-5
    torch.testing.assert_close(back, x, atol=4 * tol, rtol=tol, equal_nan=True)
