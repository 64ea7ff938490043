import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.testing import withCUDA

from crane_pyg.nn.spmm import spmm

NUM_SRC, NUM_DST, NUM_EDGES = 6, 4, 14


def random_graph(sort_order, seed=12):
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(NUM_SRC - 1, (NUM_EDGES,), generator=generator)
    col = torch.randint(NUM_DST - 1, (NUM_EDGES,), generator=generator)
    edge_index = torch.stack([row, col])
    perm = edge_index[0 if sort_order == 'row' else 1].argsort()
    return EdgeIndex(
        edge_index[:, perm],
        sparse_size=(NUM_SRC, NUM_DST),
        sort_order=sort_order,
    )


def to_dense(edge_index, edge_weight=None):
    row, col = edge_index.as_tensor()
    if edge_weight is None:
        edge_weight = torch.ones(row.numel(), dtype=torch.double)
    out = torch.zeros(NUM_SRC, NUM_DST, dtype=torch.double)
    return out.index_put((row, col), edge_weight.double(), accumulate=True)


@pytest.mark.parametrize('sort_order', ['row', 'col'])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('fill_cache', [False, True])
def test_spmm(sort_order, weighted, fill_cache):
    edge_index = random_graph(sort_order)
    if fill_cache:
        edge_index.fill_cache_()
    weight = torch.rand(NUM_EDGES, dtype=torch.double) if weighted else None
    x = torch.randn(NUM_SRC, 8, dtype=torch.double, requires_grad=True)
    adj = to_dense(edge_index, weight)

    out = spmm(edge_index, x, weight)
    assert out.size() == (NUM_DST, 8)
    torch.testing.assert_close(out, adj.t() @ x)

    grad_out = torch.randn_like(out)
    out.backward(grad_out)
    torch.testing.assert_close(x.grad, adj @ grad_out)


@pytest.mark.parametrize('sort_order', ['row', 'col'])
@pytest.mark.parametrize('weighted', [False, True])
def test_spmm_gradcheck(sort_order, weighted):
    edge_index = random_graph(sort_order)
    weight = torch.rand(NUM_EDGES, dtype=torch.double) if weighted else None
    x = torch.randn(NUM_SRC, 3, dtype=torch.double, requires_grad=True)

    def fn(x):
        return spmm(edge_index, x, weight).square()

    assert torch.autograd.gradcheck(fn, (x,))
    assert torch.autograd.gradgradcheck(fn, (x,))


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_spmm_low_precision(dtype):
    edge_index = random_graph('col')
    weight = torch.rand(NUM_EDGES)
    x = torch.randn(NUM_SRC, 8).to(dtype).requires_grad_()
    expected = to_dense(edge_index, weight).t() @ x.double()

    out = spmm(edge_index, x, weight)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)

    out.sum().backward()
    expected = to_dense(edge_index, weight).sum(1, keepdim=True)
    expected = expected.expand(-1, 8)
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad.double(), expected, rtol=0.02, atol=0.02)


@withCUDA
def test_spmm_autocast(device):
    edge_index = random_graph('col').to(device)
    x = torch.randn(NUM_SRC, 8, device=device, requires_grad=True)
    expected = spmm(edge_index, x)

    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = spmm(edge_index, x)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('sort_order', ['row', 'col'])
def test_spmm_without_edges(sort_order):
    edge_index = EdgeIndex(
        torch.empty(2, 0, dtype=torch.long),
        sparse_size=(NUM_SRC, NUM_DST),
        sort_order=sort_order,
    )
    x = torch.randn(NUM_SRC, 8, requires_grad=True)

    out = spmm(edge_index, x)
    assert torch.equal(out, torch.zeros(NUM_DST, 8))
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros(NUM_SRC, 8))


def test_spmm_weight_without_grad_mode():
    edge_index = random_graph('col')
    weight = torch.rand(NUM_EDGES, requires_grad=True)
    x = torch.randn(NUM_SRC, 8)

    with torch.no_grad():
        out = spmm(edge_index, x, weight)
    torch.testing.assert_close(out, spmm(edge_index, x, weight.detach()))


def test_spmm_raises():
    x = torch.randn(NUM_SRC, 8)

    with pytest.raises(ValueError, match="got sort order 'None'"):
        spmm(EdgeIndex([[0, 1], [1, 0]]), x)

    weight = torch.rand(NUM_EDGES, requires_grad=True)
    with pytest.raises(ValueError, match="got 'requires_grad=True'"):
        spmm(random_graph('col'), x, weight)

    match = r"'edge_weight' .* \[14\] \(got \[13\]\)"
    for value in (x, x.double()):
        with pytest.raises(ValueError, match=match):
            spmm(random_graph('col'), value, torch.rand(NUM_EDGES - 1))
    with pytest.raises(ValueError, match=r"'x' .* \[6, 8\] \(got \[5, 8\]\)"):
        spmm(random_graph('col'), x[1:])

    # A cache that does not belong to its edges must not reach the kernels:
    edge_index = random_graph('col').fill_cache_()
    edge_index._indptr = edge_index._T_indptr
    with pytest.raises(ValueError, match=r'5 cached pointers \(got 7\)'):
        spmm(edge_index, x)


@pytest.mark.parametrize('sort_order', ['row', 'col'])
@pytest.mark.parametrize('weighted', [False, True])
def test_spmm_sums_bags_in_single_precision(sort_order, weighted):
    edge_index = random_graph(sort_order)
    weight = torch.rand(NUM_EDGES) if weighted else None
    # Every other column, which no kernel takes as it is:
    x = torch.randn(NUM_SRC, 16)[:, ::2].requires_grad_()
    adj = to_dense(edge_index, weight).float()

    out = spmm(edge_index, x, weight)
    torch.testing.assert_close(out, adj.t() @ x)
    grad_out = torch.randn(8, NUM_DST).t()
    grad = torch.autograd.grad(out, x, grad_out)[0]
    torch.testing.assert_close(grad, adj @ grad_out)


@pytest.mark.parametrize('num_channels', [0, 3])
def test_spmm_in_single_precision_without_edges(num_channels):
    edge_index = EdgeIndex(
        torch.empty(2, 0, dtype=torch.long),
        sparse_size=(NUM_SRC, NUM_DST),
        sort_order='col',
    )
    x = torch.randn(NUM_SRC, num_channels, requires_grad=True)
    out = spmm(edge_index, x)
    assert torch.equal(out, torch.zeros(NUM_DST, num_channels))
    out.sum().backward()
    assert not x.grad.any()
