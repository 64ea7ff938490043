import shutil

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import (
    HeteroConv,
    LGConv,
    MessagePassing,
    to_hetero,
)
from torch_geometric.testing import onlyCUDA, withPackage
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import coalesce, to_undirected
from toys import no_sync

from crane_pyg.nn.conv import CRANEConv

CHANNELS = 8
SIZES = [(7, 7), (9, 5), (4, 8)]
FUSED = ['edge_index', 'coo', 'csr', 'csc']
UNFUSED = ['tensor', 'row', 'unsorted', 'unknown_size', 'partial_size']


def random_graph(size, seed=12):
    r"""Distinct edges, in random order, whose last nodes are isolated."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(size[0] - 1, (30,), generator=generator)
    col = torch.randint(size[1] - 1, (30,), generator=generator)
    edge_index = coalesce(torch.stack([row, col]))
    perm = torch.randperm(edge_index.size(1), generator=generator)
    weight = torch.rand(perm.numel(), generator=generator) + 0.1
    return edge_index[:, perm], weight


def to_layout(layout, edge_index, weight, size):
    r"""Returns the adjacency and edge weights in a given layout."""
    if layout == 'tensor':
        return edge_index, weight
    if layout == 'unsorted':
        return EdgeIndex(edge_index, sparse_size=size), weight

    if layout in {'edge_index', 'row', 'unknown_size', 'partial_size'}:
        sort_order = 'row' if layout == 'row' else 'col'
        perm = edge_index[0 if sort_order == 'row' else 1].argsort()
        sparse_size = {
            'unknown_size': (None, None),
            'partial_size': (None, size[1]),
        }.get(layout, size)
        out = EdgeIndex(
            edge_index[:, perm], sparse_size=sparse_size, sort_order=sort_order
        )
        if layout in {'edge_index', 'row'}:
            out = out.fill_cache_()
        return out, None if weight is None else weight[perm]

    if layout == 'sparse_tensor':
        row, col = edge_index
        sizes = (size[1], size[0])
        return SparseTensor(
            row=col, col=row, value=weight, sparse_sizes=sizes
        ), None

    value = torch.ones(edge_index.size(1)) if weight is None else weight
    adj = torch.sparse_coo_tensor(
        edge_index.flip(0), value, (size[1], size[0]), check_invariants=True
    )
    if layout == 'csr':
        adj = adj.to_sparse_csr()
    elif layout == 'csc':
        adj = adj.to_sparse_csc()
    return adj, None


def dense_reference(x, edge_index, weight, size, normalize=True):
    r"""The formula, written down naively, with double precision."""
    adj = torch.zeros(size, dtype=torch.double)
    for e, (row, col) in enumerate(edge_index.t().tolist()):
        adj[row, col] += 1.0 if weight is None else weight[e].item()
    if normalize:
        deg_src, deg_dst = adj.sum(1), adj.sum(0)
        for row, col in edge_index.t().tolist():
            adj[row, col] /= (deg_src[row] * deg_dst[col]).sqrt()
    return adj.t() @ x.double()


def spy_on_message(conv):
    calls = []
    conv.register_message_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def check_layout(layout, size, weighted, normalize, fused):
    edge_index, weight = random_graph(size)
    weight = weight if weighted else None
    adj, edge_weight = to_layout(layout, edge_index, weight, size)

    x = torch.randn(size[0], CHANNELS, requires_grad=True)
    x_ref = x.detach().clone().requires_grad_()
    grad_out = torch.randn(size[1], CHANNELS)

    conv = CRANEConv(normalize=normalize)
    calls = spy_on_message(conv)
    kwargs = {} if edge_weight is None else {'edge_weight': edge_weight}
    out = conv(x, adj, size=size, **kwargs)
    out.backward(grad_out)
    assert len(calls) == (0 if fused else 1)

    expected = dense_reference(x_ref, edge_index, weight, size, normalize)
    expected.backward(grad_out.double())
    assert out.size() == (size[1], CHANNELS)
    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert torch.allclose(x.grad, x_ref.grad, atol=1e-5)
    assert torch.equal(out[-1], torch.zeros(CHANNELS))
    assert torch.equal(x.grad[-1], torch.zeros(CHANNELS))

    with torch.no_grad():  # Inference warns about nothing, and agrees:
        assert torch.allclose(conv(x, adj, size=size, **kwargs), out)


def test_crane_conv_repr():
    assert str(CRANEConv()) == 'CRANEConv()'
    assert str(CRANEConv(normalize=False)) == 'CRANEConv(normalize=False)'
    assert len(list(CRANEConv().parameters())) == 0


def test_crane_conv_takes_no_channels():
    # As in `SAGEConv(64, 64)`, which would have set `normalize`:
    for args in [(64,), (64, 64), (False,)]:
        with pytest.raises(TypeError, match='positional argument'):
            CRANEConv(*args)


def test_crane_conv_has_no_root_weight():
    x = torch.randn(3, CHANNELS, requires_grad=True)
    out = CRANEConv()(x, torch.tensor([[0, 1], [2, 2]]))
    (grad,) = torch.autograd.grad(out[2].sum(), x)
    assert grad[:2].abs().min() > 0
    assert torch.equal(grad[2], torch.zeros(CHANNELS))


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('layout', FUSED + UNFUSED)
def test_crane_conv_layouts(layout, size, weighted, normalize):
    check_layout(layout, size, weighted, normalize, fused=layout in FUSED)


@withPackage('torch_sparse')
@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('size', SIZES)
def test_crane_conv_sparse_tensor(size, weighted, normalize):
    check_layout('sparse_tensor', size, weighted, normalize, fused=True)


@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('layout', FUSED + UNFUSED)
def test_crane_conv_equals_lg_conv(layout, weighted):
    edge_index, weight = random_graph((7, 7))
    edge_index, weight = to_undirected(edge_index, weight, 7)
    weight = weight if weighted else None
    adj, edge_weight = to_layout(layout, edge_index, weight, (7, 7))

    x1 = torch.randn(7, CHANNELS, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    out1 = CRANEConv()(x1, adj, edge_weight)
    out2 = LGConv()(x2, edge_index, weight)
    assert torch.allclose(out1, out2, atol=1e-6)

    grad_out = torch.randn_like(out1)
    out1.backward(grad_out)
    out2.backward(grad_out)
    assert torch.allclose(x1.grad, x2.grad, atol=1e-6)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('layout', ['tensor', 'edge_index', 'csr', 'coo'])
def test_crane_conv_number_of_targets(layout, size):
    edge_index, _ = random_graph(size)
    adj, _ = to_layout(layout, edge_index, None, size)
    x = (torch.randn(size[0], CHANNELS), torch.randn(size[1], 3))
    expected = dense_reference(x[0], edge_index, None, size).float()

    conv = CRANEConv()
    assert torch.allclose(conv(x, adj), expected, atol=1e-5)
    assert torch.allclose(conv(x, adj, size=size), expected, atol=1e-5)
    out = conv((x[0], None), adj, size=size)
    assert torch.allclose(out, expected, atol=1e-5)

    if layout != 'tensor':  # The adjacency tells:
        assert torch.allclose(conv(x[0], adj), expected, atol=1e-5)
        assert torch.allclose(conv((x[0], None), adj), expected, atol=1e-5)


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('layout', ['tensor', 'edge_index', 'unsorted'])
def test_crane_conv_edge_weight_gradient(layout, normalize):
    size = (9, 5)
    edge_index, weight = random_graph(size)
    adj, weight = to_layout(layout, edge_index, weight, size)
    weight = weight.double().requires_grad_()
    x = torch.randn(size[0], 3, dtype=torch.double, requires_grad=True)
    conv = CRANEConv(normalize=normalize)

    def fn(x, weight):
        return conv(x, adj, weight, size)

    assert torch.autograd.gradcheck(fn, (x, weight))

    calls = spy_on_message(conv)
    with torch.no_grad():  # No gradient is needed, so the fused path is taken:
        out = fn(x, weight)
    assert len(calls) == (0 if layout == 'edge_index' else 1)
    assert torch.allclose(out, fn(x, weight))


@pytest.mark.parametrize('layout', ['coo', 'csr'])
def test_crane_conv_sparse_value_gradient(layout):
    edge_index, weight = random_graph((9, 5))
    adj, _ = to_layout(layout, edge_index, weight, (9, 5))
    adj = adj.requires_grad_()
    x = torch.randn(9, CHANNELS, requires_grad=True)
    expected = dense_reference(x, edge_index, weight, (9, 5)).float()
    assert torch.allclose(CRANEConv()(x, adj), expected, atol=1e-5)


@pytest.mark.parametrize('layout', FUSED + UNFUSED)
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_crane_conv_dtype(dtype, layout):
    size = (9, 5)
    edge_index, weight = random_graph(size)
    adj, edge_weight = to_layout(layout, edge_index, weight, size)
    x = torch.randn(size[0], CHANNELS).to(dtype).requires_grad_()
    expected = dense_reference(x, edge_index, weight, size)

    out = CRANEConv()(x, adj, edge_weight, size)
    assert out.dtype == dtype
    tol = 1e-6 if dtype == torch.double else 0.03
    torch.testing.assert_close(out.double(), expected, rtol=tol, atol=tol)
    out.sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_crane_conv_low_precision_degree(dtype):
    num_src = 3000  # Neither type can count this far in steps of one.
    edge_index = torch.stack(
        [torch.arange(num_src), torch.zeros(num_src, dtype=torch.long)]
    )
    x = torch.zeros(num_src, 1, dtype=dtype)
    x[0] = 1.0
    out = CRANEConv()(x, edge_index, size=(num_src, 1))
    expected = torch.tensor([[num_src**-0.5]])
    torch.testing.assert_close(out.float(), expected, rtol=0.01, atol=0.0)


@pytest.mark.parametrize('layout', ['tensor', 'edge_index'])
def test_crane_conv_autocast(layout):
    edge_index, _ = random_graph((9, 5))
    adj, _ = to_layout(layout, edge_index, None, (9, 5))
    x = torch.randn(9, CHANNELS)
    expected = CRANEConv()(x, adj, size=(9, 5))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = CRANEConv()(x, adj, size=(9, 5))
    assert torch.allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize('fill', [0.0, -1.0])
@pytest.mark.parametrize('requires_grad', [True, False])
@pytest.mark.parametrize('layout', FUSED[:1] + UNFUSED)
def test_crane_conv_no_positive_degree(layout, requires_grad, fill):
    edge_index, weight = random_graph((9, 5))
    weight = torch.full_like(weight, fill)
    adj, weight = to_layout(layout, edge_index, weight, (9, 5))
    weight.requires_grad_(requires_grad)
    x = torch.randn(9, CHANNELS, requires_grad=True)

    out = CRANEConv()(x, adj, weight, (9, 5))
    assert torch.equal(out, torch.zeros(5, CHANNELS))
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros(9, CHANNELS))
    if requires_grad:
        assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('layout', FUSED + UNFUSED)
def test_crane_conv_without_edges(layout, normalize):
    edge_index = torch.empty(2, 0, dtype=torch.long)
    adj, _ = to_layout(layout, edge_index, None, (9, 5))
    x = torch.randn(9, CHANNELS, requires_grad=True)

    out = CRANEConv(normalize=normalize)(x, adj, size=(9, 5))
    assert torch.equal(out, torch.zeros(5, CHANNELS))
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros(9, CHANNELS))


@pytest.mark.parametrize('layout', FUSED + UNFUSED)
def test_crane_conv_duplicated_edges(layout):
    edge_index = torch.tensor([[0, 0, 1, 0], [1, 1, 0, 1]])
    x = torch.randn(2, CHANNELS)
    adj, _ = to_layout(layout, edge_index, None, (2, 2))
    # Three equal edges count three times, in the sum and in both degrees:
    assert torch.allclose(CRANEConv()(x, adj), x.flip(0), atol=1e-6)
    out = CRANEConv(normalize=False)(x, adj)
    assert torch.allclose(out, torch.stack([x[1], 3 * x[0]]), atol=1e-6)


@pytest.mark.parametrize('layout', ['tensor', 'edge_index', 'unsorted'])
def test_crane_conv_target_to_source(layout):
    size = (9, 5)
    edge_index, weight = random_graph(size)
    adj, weight = to_layout(layout, edge_index, weight, size)
    x = torch.randn(size[1], CHANNELS)
    plain = torch.as_tensor(adj) if layout == 'tensor' else adj.as_tensor()
    expected = CRANEConv()(x, plain.flip(0), weight, size[::-1])

    conv = CRANEConv(flow='target_to_source')
    assert torch.allclose(conv(x, adj, weight, size), expected, atol=1e-6)
    out = conv((torch.randn(size[0], 3), x), adj, weight)
    assert torch.allclose(out, expected, atol=1e-6)

    csr, _ = to_layout('csr', *random_graph(size), size)
    with pytest.raises(ValueError, match='"target_to_source" is invalid'):
        conv(x, csr)


@pytest.mark.parametrize('aggr', ['sum', 'mean', 'max'])
@pytest.mark.parametrize('layout', FUSED[:3] + UNFUSED)
def test_crane_conv_aggr(layout, aggr):
    size = (9, 5)
    edge_index, weight = random_graph(size)
    adj, edge_weight = to_layout(layout, edge_index, weight, size)
    x = torch.randn(size[0], CHANNELS)

    conv = CRANEConv(aggr=aggr)
    calls = spy_on_message(conv)
    out = conv(x, adj, edge_weight, size)
    assert len(calls) == (0 if aggr == 'sum' and layout in FUSED else 1)
    expected = CRANEConv(aggr=aggr)(x, edge_index, weight, size)
    assert torch.allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize('layout', ['tensor', 'edge_index', 'csr'])
def test_crane_conv_feature_dimensions(layout):
    size = (9, 5)
    edge_index, weight = random_graph(size)
    adj, edge_weight = to_layout(layout, edge_index, weight, size)
    x = torch.randn(3, size[0], CHANNELS)

    out = CRANEConv()(x, adj, edge_weight, size)
    assert out.size() == (3, size[1], CHANNELS)
    for i in range(3):
        expected = dense_reference(x[i], edge_index, weight, size).float()
        assert torch.allclose(out[i], expected, atol=1e-5)

    conv = CRANEConv(node_dim=0)
    out_t = conv(x.transpose(0, 1), adj, edge_weight, size)
    assert torch.allclose(out_t.transpose(0, 1), out, atol=1e-5)
    assert torch.allclose(conv(x[0], adj, edge_weight, size), out[0], atol=1e-5)


def test_crane_conv_int32_indices():
    edge_index, weight = random_graph((9, 5))
    adj, _ = to_layout('csr', edge_index, weight, (9, 5))
    x = torch.randn(9, CHANNELS, requires_grad=True)
    adj32 = torch.sparse_csr_tensor(
        adj.crow_indices().int(),
        adj.col_indices().int(),
        adj.values(),
        adj.size(),
        check_invariants=True,
    )
    out, expected = CRANEConv()(x, adj32), CRANEConv()(x, adj)
    assert torch.allclose(out, expected, atol=1e-6)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    (expected,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.allclose(grad, expected, atol=1e-5)


@pytest.mark.parametrize('layout', ['edge_index', *UNFUSED])
def test_crane_conv_int32_edges(layout):
    edge_index, weight = random_graph((9, 5))
    x = torch.randn(9, CHANNELS, requires_grad=True)
    grads = []
    for dtype in (torch.int64, torch.int32):
        edges = edge_index.to(dtype)
        adj, value = to_layout(layout, edges, weight, (9, 5))
        assert adj.dtype == dtype
        out = CRANEConv()((x, None), adj, value, size=(9, 5))
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    torch.testing.assert_close(*grads)


def test_crane_conv_hetero_conv():
    num_users, num_items = 9, 5
    rates, _ = random_graph((num_users, num_items))
    similar, weight = random_graph((num_items, num_items))
    x_dict = {
        'user': torch.randn(num_users, CHANNELS),
        'item': torch.randn(num_items, CHANNELS),
    }
    edge_index_dict = {
        ('user', 'rates', 'item'): rates,
        ('item', 'rev_rates', 'user'): rates.flip(0),
        ('item', 'similar_to', 'item'): similar,
    }
    conv = HeteroConv({key: CRANEConv() for key in edge_index_dict})
    weight_dict = {('item', 'similar_to', 'item'): weight}
    out = conv(x_dict, edge_index_dict, edge_weight_dict=weight_dict)

    expected = dense_reference(
        x_dict['item'], rates.flip(0), None, (num_items, num_users)
    )
    assert torch.allclose(out['user'], expected.float(), atol=1e-5)
    expected = dense_reference(
        x_dict['user'], rates, None, (num_users, num_items)
    ) + dense_reference(x_dict['item'], similar, weight, (num_items, num_items))
    assert torch.allclose(out['item'], expected.float(), atol=1e-5)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(CHANNELS, CHANNELS)
        self.conv = CRANEConv()

    def forward(self, x, edge_index):
        return self.conv(self.lin(x), edge_index)


@pytest.mark.parametrize('layout', ['tensor', 'edge_index', 'csr'])
def test_crane_conv_to_hetero(layout):
    size = (9, 5)
    edge_index, _ = random_graph(size)
    data = HeteroData()
    data['user'].x = torch.randn(size[0], CHANNELS)
    data['item'].x = torch.randn(size[1], CHANNELS)
    adj_dict = {
        ('user', 'rates', 'item'): to_layout(layout, edge_index, None, size)[0],
        ('item', 'rev_rates', 'user'): to_layout(
            layout, edge_index.flip(0), None, size[::-1]
        )[0],
    }
    metadata = (['user', 'item'], list(adj_dict))
    model = to_hetero(Net(), metadata)
    out = model(data.x_dict, adj_dict)

    x = model.lin['user'](data['user'].x)
    expected = dense_reference(x, edge_index, None, size).float()
    assert torch.allclose(out['item'], expected, atol=1e-5)
    x = model.lin['item'](data['item'].x)
    expected = dense_reference(x, edge_index.flip(0), None, size[::-1])
    assert torch.allclose(out['user'], expected.float(), atol=1e-5)


@pytest.mark.parametrize('layout', ['tensor', 'edge_index', 'row'])
def test_crane_conv_masks(layout):
    edge_index, weight = random_graph((7, 7))
    adj, weight = to_layout(layout, edge_index, weight, (7, 7))
    plain = adj if layout == 'tensor' else adj.as_tensor()
    x = torch.randn(7, CHANNELS)
    mask = torch.rand(plain.size(1), requires_grad=True)

    model = torch.nn.ModuleList([CRANEConv()])
    unmasked = model[0](x, adj, weight)
    set_masks(model, mask, plain, apply_sigmoid=False)
    out = model[0](x, adj, weight)
    clear_masks(model)

    # Masks weigh messages after normalization by the degrees of all edges:
    deg_src = torch.zeros(7).index_add(0, plain[0], weight)
    deg_dst = torch.zeros(7).index_add(0, plain[1], weight)
    norm = weight / (deg_src[plain[0]] * deg_dst[plain[1]]).sqrt()
    expected = CRANEConv(normalize=False)(x, plain, norm * mask)
    assert torch.allclose(out, expected, atol=1e-6)
    (grad,) = torch.autograd.grad(out.sum(), mask)
    assert torch.allclose(grad, norm * x[plain[0]].sum(-1), atol=1e-5)
    assert torch.allclose(model[0](x, adj, weight), unmasked)


def test_crane_conv_explainer():
    edge_index, _ = random_graph((7, 7))
    x = torch.randn(7, CHANNELS)
    explainer = Explainer(
        Net(),
        algorithm=GNNExplainer(epochs=2),
        explanation_type='model',
        edge_mask_type='object',
        model_config={'mode': 'regression', 'task_level': 'node'},
    )
    explanation = explainer(x, edge_index, index=0)
    assert explanation.edge_mask.size() == (edge_index.size(1),)
    # Only edges into the explained node matter in a model of one layer:
    used = explanation.edge_mask > 0
    assert torch.equal(used, edge_index[1] == 0)


@pytest.mark.skipif(shutil.which('g++') is None, reason='No C++ compiler')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('size', [(7, 7), (9, 5)])
@pytest.mark.parametrize('weighted', [True, False])
def test_crane_conv_compile(weighted, size):
    edge_index, weight = random_graph(size)
    weight = weight.requires_grad_() if weighted else None
    x = torch.randn(size[0], CHANNELS, requires_grad=True)

    torch.compiler.reset()
    conv = CRANEConv()
    inputs = [x] if weight is None else [x, weight]
    expected = conv(x, edge_index, weight, size)
    expected_grads = torch.autograd.grad(expected.square().sum(), inputs)

    compiled = torch.compile(conv, fullgraph=True)
    out = compiled(x, edge_index, weight, size)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    assert torch.allclose(out, expected, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert torch.allclose(grad, expected_grad, atol=1e-5)


@onlyCUDA
@pytest.mark.parametrize('layout', ['tensor', 'edge_index', 'csr', 'unsorted'])
@pytest.mark.parametrize('weighted', [True, False])
def test_crane_conv_without_cuda_synchronization(weighted, layout):
    size = (9, 5)
    edge_index, weight = random_graph(size)
    weight = weight if weighted else None
    adj, edge_weight = to_layout(layout, edge_index, weight, size)
    x = torch.randn(size[0], CHANNELS)
    expected = CRANEConv()(x, adj, edge_weight, size)

    adj = adj.cuda()
    edge_weight = None if edge_weight is None else edge_weight.cuda()
    x = x.cuda().requires_grad_()
    conv = CRANEConv()
    conv(x, adj, edge_weight, size).sum().backward()  # Fills caches.
    with no_sync():
        out = conv(x, adj, edge_weight, size)
        out.sum().backward()
    assert torch.allclose(out.cpu(), expected, atol=1e-5)


def test_crane_conv_raises():
    conv = CRANEConv()
    x = torch.randn(3, CHANNELS)
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])

    with pytest.raises(ValueError, match=r'shape \[3\] \(got \[2\]\)'):
        conv(x, edge_index, torch.ones(2))
    with pytest.raises(ValueError, match=r'shape \[3\] \(got \[3, 1\]\)'):
        conv(x, edge_index, torch.ones(3, 1))
    with pytest.raises(ValueError, match=r'shape \[3\] \(got \[2\]\)'):
        conv(x, EdgeIndex(edge_index), torch.ones(2))
    adj, _ = to_layout('csr', edge_index, None, (3, 3))
    with pytest.raises(ValueError, match=r"got 'edge_weight' of size \[3\]"):
        conv(x, adj, torch.ones(3))
    with pytest.raises(ValueError, match="source nodes \\(got 'None'\\)"):
        conv((None, x), edge_index)
    with pytest.raises(ValueError, match=r"got 'torch\.int64'"):
        conv(x.long(), edge_index)
    with pytest.raises(ValueError, match='tensor with size 3 in dimension -2'):
        conv(x, edge_index, size=(4, 3))
    known = EdgeIndex(edge_index, sparse_size=(3, 3))
    for graph in (known, adj):
        match = r"'edge_index', \[3, 3\] \(got \(3, 4\)\)"
        with pytest.raises(ValueError, match=match):
            conv((x, None), graph, size=(3, 4))
    with pytest.raises(ValueError, match='tensor with size 2 in dimension -2'):
        conv((x, x[:2]), adj)
    with pytest.raises(ValueError, match=r"got 'torch\.float32'"):
        conv(x, edge_index.float())


def test_crane_conv_propagates_by_compiled_code():
    # PyG writes it for each class, and falls back in silence if it fails:
    propagate = CRANEConv().propagate
    assert propagate.__module__ != MessagePassing.__module__
