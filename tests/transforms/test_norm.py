import pytest
import torch
from torch_geometric import EdgeIndex

from crane_pyg.transforms.norm import row_norm, symmetric_norm


def dense(edge_index, weight, num_src, num_dst):
    out = torch.zeros(num_src, num_dst, dtype=torch.double)
    out.index_put_(tuple(edge_index), weight.double(), accumulate=True)
    return out


@pytest.mark.parametrize('size', [(6, 6), (5, 9)])
@pytest.mark.parametrize('weighted', [False, True])
def test_norms_match_dense(size, weighted):
    torch.manual_seed(0)
    # The last source and destination are isolated, and edges are repeated:
    src = torch.randint(size[0] - 1, (30,))
    edge_index = torch.stack([src, torch.randint(size[1] - 1, (30,))])
    weight = torch.rand(30) if weighted else None
    ones = torch.ones(30) if weight is None else weight
    adj = dense(edge_index, ones, *size)

    out = symmetric_norm(edge_index, *size, weight)
    assert out.dtype == torch.float
    norm = adj.sum(1, keepdim=True).sqrt() * adj.sum(0, keepdim=True).sqrt()
    expected = (adj / norm).nan_to_num()
    torch.testing.assert_close(
        dense(edge_index, out, *size), expected, atol=1e-6, rtol=1e-6
    )

    out = row_norm(edge_index, *size, weight)
    expected = (adj / adj.sum(0, keepdim=True)).nan_to_num()
    torch.testing.assert_close(
        dense(edge_index, out, *size), expected, atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize('norm', [symmetric_norm, row_norm])
def test_norm_edge_cases(norm):
    edge_index = torch.tensor([[0, 1], [1, 0]])
    weight = torch.tensor([0.0, 4.0])
    assert norm(edge_index, 2, 2, weight).tolist() == [0.0, 1.0]
    assert norm(edge_index[:, :0], 2, 2).shape == (0,)
    assert norm(edge_index[:, :0], 0, 0, weight[:0]).shape == (0,)
    adj = EdgeIndex(edge_index.int(), sparse_size=(2, 2))
    assert type(norm(adj, 2, 2)) is torch.Tensor
    assert norm(adj, 2, 2).tolist() == [1.0, 1.0]
    assert norm(edge_index, 2, 2, weight.double()).dtype == torch.double


@pytest.mark.parametrize('norm', [symmetric_norm, row_norm])
def test_norm_gradient_without_degree(norm):
    edge_index = torch.tensor([[0, 1], [0, 1]])
    weight = torch.tensor([0.0, 1.0], requires_grad=True)
    norm(edge_index, 2, 2, weight).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize('norm', [symmetric_norm, row_norm])
def test_norm_errors(norm):
    edge_index = torch.tensor([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match=r'between 0 and 1 \(got 2\)'):
        norm(edge_index, 2, 2)
    with pytest.raises(ValueError, match=r'between 0 and 0 \(got 1\)'):
        norm(edge_index, 1, 3)
    with pytest.raises(ValueError, match=r'between 0 and 2 \(got -1\)'):
        norm(torch.tensor([[0], [-1]]), 2, 3)
    with pytest.raises(ValueError, match=r'shape \[2, num_edges\]'):
        norm(edge_index.view(-1, 1), 2, 3)
    with pytest.raises(ValueError, match=r'integers \(got torch.float32\)'):
        norm(edge_index.float(), 2, 3)
    with pytest.raises(ValueError, match=r'shape \[2\] \(got \[2, 1\]\)'):
        norm(edge_index, 2, 3, torch.ones(2, 1))
    for dtype in [torch.bool, torch.long]:
        with pytest.raises(ValueError, match=rf'floating \(got {dtype}\)'):
            norm(edge_index, 2, 3, torch.ones(2, dtype=dtype))
    for value in [-1.0, float('nan'), float('inf')]:
        with pytest.raises(ValueError, match=f'minimum of .*{value}'):
            norm(edge_index, 2, 3, torch.tensor([value, value]))
