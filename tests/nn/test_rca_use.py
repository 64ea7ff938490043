r"""RCA in half precision, compiled, under transforms and inside of others."""

import copy
import shutil
from contextlib import nullcontext

import pytest
import torch
from naive_rca import (
    MODES,
    as_floats,
    assert_close,
    gradients,
    random_inputs,
    random_masks,
    random_rca,
    train_statistics,
)
from torch_geometric.nn import GraphSAGE, SAGEConv, Sequential, to_hetero
from torch_geometric.testing import onlyCUDA
from toys import no_sync

from crane_pyg.nn import RCA


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize('masked', [False, True])
def test_rca_half_precision(mode, dtype, masked):
    low = random_rca(4, 2, 2, mode).to(dtype)
    high = copy.deepcopy(low).double()
    masks = random_masks(9, 2) if masked else None
    xs_low = [
        x.detach().to(dtype).requires_grad_() for x in random_inputs(9, 4, 2)
    ]
    xs_high = [x.detach().double().requires_grad_() for x in xs_low]
    tol = {'rtol': 0.0, 'atol': 2e-2 if dtype == torch.half else 1e-1}

    for training in [True, False]:
        outs = low.train(training)(xs_low, masks)
        expected = high.train(training)(xs_high, masks)
        assert all(out.dtype == dtype for out in outs)
        assert_close([out.double() for out in outs], expected, **tol)
        grads = gradients(outs, xs_low + list(low.parameters()))
        assert all(grad.isfinite().all() for grad in grads)
    if mode == 'correlation':
        assert low.covariance.dtype == dtype
        assert low.num_updates == 1
        torch.testing.assert_close(
            low.covariance.double(), high.covariance, **tol
        )


def test_rca_half_precision_holds_large_statistics():
    rca = random_rca(4, 2).half()
    xs = [400 * torch.randn(50, 4).half() for _ in range(2)]
    for training in [True, True, False]:  # A variance of 160,000, twice.
        outs = rca.train(training)(xs)
        assert all(out.isfinite().all() for out in outs)
    assert (rca.covariance.diagonal(dim1=1, dim2=2) == 65504).all()


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_rca_autocast(mode, dtype):
    rca = random_rca(4, 2, 2, mode)
    reference = copy.deepcopy(rca)
    xs = as_floats(random_inputs(9, 4, 2))
    for training in [True, False]:
        expected = reference.train(training)(xs)
        with torch.autocast('cpu', dtype):
            outs = rca.train(training)(xs)
        assert_close([out.float() for out in outs], expected, rtol=0, atol=0.1)
        grads = gradients(outs, xs + list(rca.parameters()))
        assert all(grad.isfinite().all() for grad in grads)

    if mode == 'correlation':
        # The statistics do not suffer from the precision of the products:
        torch.testing.assert_close(rca.covariance[0], reference.covariance[0])


def test_rca_autocast_does_not_overflow():
    xs = [40 * torch.randn(500, 4) for _ in range(2)]
    rca = random_rca(4, 2)
    with torch.autocast('cpu', torch.half):
        outs = rca(xs)
    assert rca.covariance.isfinite().all()
    assert all(out.isfinite().all() for out in outs)


def assert_compiles(mode, training, masked, backend, **kwargs):
    rca = train_statistics(random_rca(4, 2, 1, mode, **kwargs))
    rca.train(training)
    twin = copy.deepcopy(rca)
    torch.compiler.reset()
    compiled = torch.compile(rca, fullgraph=True, dynamic=True, backend=backend)
    for num_rows in [9, 14]:
        xs = as_floats(random_inputs(num_rows, 4, 2))
        masks = random_masks(num_rows, 2) if masked else None
        outs, expected = compiled(xs, masks), twin(xs, masks)
        grads = gradients(outs, xs + list(rca.parameters()))
        if training and rca.dropout > 0:  # Has other random numbers.
            assert all(grad.isfinite().all() for grad in grads)
            continue
        assert_close(outs, expected, rtol=1e-5, atol=1e-5)
        assert_close(
            grads,
            gradients(expected, xs + list(twin.parameters())),
            rtol=1e-4,
            atol=1e-4,
        )
        assert_close(list(rca.buffers()), list(twin.buffers()))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('dropout', [0.0, 0.3])
def test_rca_compile(mode, training, dropout):
    masked = dropout == 0  # So that both are compiled.
    assert_compiles(mode, training, masked, 'aot_eager', dropout=dropout)


@pytest.mark.skipif(shutil.which('g++') is None, reason='No C++ compiler')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('mode', MODES)
def test_rca_compile_inductor(mode):
    assert_compiles(mode, training=True, masked=True, backend='inductor')


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
def test_rca_under_func_grad(mode, training):
    rca = train_statistics(random_rca(4, 2, 2, mode)).train(training)
    twin = copy.deepcopy(rca)
    xs = [x.detach() for x in as_floats(random_inputs(9, 4, 2))]
    params = {k: p.detach() for k, p in rca.named_parameters()}

    def loss(params, buffers):
        state = {**params, **buffers}
        outs = torch.func.functional_call(rca, state, (xs,))
        return sum(out.square().sum() for out in outs)

    # Statistics that change have to be inputs, as those of `BatchNorm1d`:
    out = torch.func.grad(loss)(params, dict(rca.named_buffers()))
    sum(x.square().sum() for x in twin(xs)).backward()
    expected = {k: p.grad for k, p in twin.named_parameters()}
    assert_close(list(out.values()), list(expected.values()))
    assert_close(list(rca.buffers()), list(twin.buffers()))


@pytest.mark.parametrize('mode', MODES)
def test_rca_gradients_of_single_rows(mode):
    rca = train_statistics(random_rca(4, 2, 2, mode)).eval()
    xs = [x.detach() for x in as_floats(random_inputs(5, 4, 2))]
    xs[1][2] = float('nan')
    params = {k: p.detach() for k, p in rca.named_parameters()}

    def loss(params, *row):
        row = [x.unsqueeze(0) for x in row]
        outs = torch.func.functional_call(rca, params, (row,))
        return sum(out.square().sum() for out in outs)

    grad = torch.func.grad(loss)
    out = torch.func.vmap(grad, in_dims=(None, 0, 0), randomness='same')(
        params, *xs
    )
    for n in range(5):
        rca.zero_grad()
        outs = rca([x[n : n + 1] for x in xs])
        sum(o.square().sum() for o in outs).backward()
        for name, param in rca.named_parameters():
            torch.testing.assert_close(out[name][n], param.grad)


def test_rca_in_sequential():
    xs = as_floats(random_inputs(6, 4, 2))
    masks = random_masks(6, 2)
    model = Sequential(
        'xs, masks',
        [
            (random_rca(4, 2), 'xs, masks -> xs'),
            (random_rca(4, 2, mode='token'), 'xs, masks -> xs'),
            lambda xs: torch.cat(xs, dim=-1),
        ],
    )
    out = model(xs, masks)
    assert out.size() == (6, 8)
    twin = random_rca(4, 2)(xs, masks)
    expected = random_rca(4, 2, mode='token')(twin, masks)
    torch.testing.assert_close(out, torch.cat(expected, dim=-1))


class Net(torch.nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.rca = RCA(4, 2, 2, mode)
        self.conv = SAGEConv((4, 4), 4)

    def forward(self, x_image, x_text, edge_index):
        xs = self.rca([x_image, x_text])
        return self.conv(xs[0] + xs[1], edge_index)


def hetero_inputs():
    r"""Two modalities of two types of nodes, and edges both ways."""
    user = as_floats(random_inputs(9, 4, 2))
    item = as_floats(random_inputs(5, 4, 2, seed=8))
    x_dicts = [{'user': user[m], 'item': item[m]} for m in range(2)]
    edge_index = torch.tensor([[0, 8, 3, 3, 5], [1, 1, 0, 4, 2]])
    edge_index_dict = {
        ('user', 'rates', 'item'): edge_index,
        ('item', 'rev_rates', 'user'): edge_index.flip(0),
    }
    return x_dicts, edge_index_dict


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
def test_rca_inside_to_hetero(mode, training):
    x_dicts, edge_index_dict = hetero_inputs()
    model = to_hetero(Net(mode), (['user', 'item'], list(edge_index_dict)))
    for key in ['user', 'item']:
        source = random_rca(4, 2, 2, mode, seed=len(x_dicts[0][key]))
        source = train_statistics(source)
        model.rca[key].load_state_dict(source.state_dict())
    twins = copy.deepcopy(model.rca).train(training)
    out = model.train(training)(*x_dicts, edge_index_dict)

    fused = {
        key: sum(twins[key]([x_dict[key] for x_dict in x_dicts]))
        for key in ['user', 'item']
    }
    for (src, rel, dst), edge_index in edge_index_dict.items():
        conv = model.conv[f'{src}__{rel}__{dst}']
        expected = conv((fused[src], fused[dst]), edge_index)
        torch.testing.assert_close(out[dst], expected)
    # Nodes of one type have statistics of their own:
    assert_close(list(model.rca.buffers()), list(twins.buffers()))
    params = list(model.rca.parameters())
    for grad in torch.autograd.grad(out['item'].square().sum(), params):
        assert grad.abs().max() > 0


@pytest.mark.parametrize('mode', MODES)
def test_rca_on_top_of_to_hetero(mode):
    x_dicts, edge_index_dict = hetero_inputs()
    net = GraphSAGE(4, 4, num_layers=1)
    model = to_hetero(net, (['user', 'item'], list(edge_index_dict)))
    xs = [model(x_dict, edge_index_dict)['item'] for x_dict in x_dicts]
    rca = random_rca(4, 2, mode=mode)
    out = rca(xs)[0]
    # What the image says depends on what users say about the text:
    (grad,) = torch.autograd.grad(out.square().sum(), x_dicts[1]['user'])
    assert (grad[[0, 3, 5, 8]].abs().amax(dim=1) > 0).all()
    assert (grad[[1, 2, 4, 6, 7]] == 0).all()


def test_rca_to_hetero_without_a_modality():
    x_dicts, edge_index_dict = hetero_inputs()
    net = Net('correlation')
    model = to_hetero(net, (['user', 'item'], list(edge_index_dict)))
    del x_dicts[1]['user']
    with pytest.raises(ValueError, match=r"modality \(got 'NoneType'\)"):
        model(*x_dicts, edge_index_dict)


@onlyCUDA
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('masked', [False, True])
def test_rca_cuda_does_not_synchronize(mode, masked):
    rca = random_rca(4, 2, 2, mode, dropout=0.1).cuda()
    xs = [
        x.detach().cuda().requires_grad_()
        for x in as_floats(random_inputs(9, 4, 2))
    ]
    masks = [mask.cuda() for mask in random_masks(9, 2)] if masked else None
    for training in [True, False]:
        rca.train(training)
        for context in [nullcontext(), no_sync()]:  # The first one warms up.
            with context:
                outs = rca(xs, masks)
                sum(out.square().sum() for out in outs).backward()
    assert all(x.grad.isfinite().all() for x in xs)
    twin = copy.deepcopy(rca).cpu()
    cpu_masks = [mask.cpu() for mask in masks] if masked else None
    expected = twin([x.detach().cpu() for x in xs], cpu_masks)
    outs = [out.cpu() for out in rca(xs, masks)]
    assert_close(outs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('mode', MODES)
def test_rca_of_dictionaries(mode):
    rca = train_statistics(random_rca(4, 2, 2, mode)).eval()
    xs, masks = as_floats(random_inputs(6, 4, 2)), random_masks(6, 2)
    x_dict = dict(zip(['text', 'image'], xs, strict=True))
    for given, by_name in [
        (None, None),
        ([None, masks[1]], {'image': masks[1]}),
        (masks, {'image': masks[1], 'text': masks[0]}),
    ]:
        outs = rca(x_dict, by_name)
        assert isinstance(outs, dict)
        assert list(outs) == ['text', 'image']
        expected = rca(xs, given)
        assert_close(list(outs.values()), expected, rtol=0, atol=0)
