import pytest
import torch
from torch_geometric.testing import withCUDA

from crane_pyg._groups import GROUP, Products, group_top_k


@withCUDA
@pytest.mark.parametrize('k', [1, 3, 5])
@pytest.mark.parametrize('num_cols', [1, 7, 10])
def test_group_top_k(k, num_cols, device):
    torch.manual_seed(0)
    x = torch.randn(9, num_cols * GROUP, device=device)
    x[:, 3:8] = float('-inf')
    x[4, :GROUP] += 10  # The best entries are all in one group.
    value, index = group_top_k(x, k)
    assert torch.equal(value, x.topk(k)[0])
    assert torch.equal(value, x.gather(1, index))


@pytest.mark.parametrize('num_cols', [5, 2 * GROUP + 1])
def test_group_top_k_without_whole_groups(num_cols):
    x = torch.randn(4, num_cols)
    value, index = group_top_k(x, 1)
    assert torch.equal(value, x.amax(dim=1, keepdim=True))
    assert torch.equal(index, x.argmax(dim=1, keepdim=True))


def test_group_top_k_of_strided_entries():
    x = torch.randn(8 * GROUP, 6).t()
    assert torch.equal(group_top_k(x, 2)[0], x.topk(2)[0])


@withCUDA
def test_products(device):
    products = Products(5, 70, torch.empty(0, device=device))
    for num_rows, num_cols in [(5, 70), (3, 64), (1, 1), (5, 2)]:
        x = torch.randn(num_rows, 4, device=device)
        y = torch.randn(num_cols, 4, device=device)
        out = products(x, y)
        assert out.size(0) % GROUP == out.size(1) % GROUP == 0
        torch.testing.assert_close(out[:num_rows, :num_cols], x @ y.t())
        assert (out[num_rows:] == float('-inf')).all()
        assert (out[:, num_cols:] == float('-inf')).all()
