import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch_geometric.testing import withCUDA

from crane_pyg.nn import features
from crane_pyg.nn.features import LIMIT, FeatureCache, fill_missing


@pytest.fixture
def calls(monkeypatch):
    seen = []

    def count(*args):
        seen.append(args)
        return fill_missing(*args)

    monkeypatch.setattr(features, 'fill_missing', count)
    return seen


def get_features(missing):
    x = torch.randn(4, 3)
    if missing:
        x[2, 1] = float('nan')
    return x


@withCUDA
def test_fill_missing(device):
    x = get_features(missing=True).to(device)
    out, mask, _ = fill_missing(x, 'x_image', torch.float)
    assert mask.tolist() == [True, True, False, True]
    assert torch.equal(out[mask], x[mask])
    assert out[2].tolist() == [0.0, 0.0, 0.0]
    assert x[2].isnan().any()


@pytest.mark.parametrize('factor', [None, LIMIT, 1 / LIMIT])
def test_fill_missing_copies_nothing_in_vain(factor):
    x = get_features(missing=False)
    if factor is not None:
        x[1] = torch.tensor([0.0, -factor, 0.0])
    out, mask, _ = fill_missing(x, 'x_image', torch.float)
    assert out is x
    assert mask is None


@withCUDA
def test_fill_missing_knows_rows_of_zeros(device):
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [-2.0, 0.0]], device=device)
    out, mask, _ = fill_missing(x, 'x_image', torch.float)
    assert mask.tolist() == [False, True, True]
    assert torch.equal(out, x)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_fill_missing_in_another_precision(dtype):
    x = get_features(missing=True).to(dtype)
    out, mask, _ = fill_missing(x, 'x_image', torch.float)
    assert out.dtype == torch.float
    assert torch.equal(out[mask], x[mask].float())
    assert not out[2].any()


@withCUDA
@pytest.mark.parametrize(
    'dtype', [torch.half, torch.bfloat16, torch.float, torch.double]
)
def test_fill_missing_scales_to_unit_length(dtype, device):
    x = get_features(missing=True).to(device, dtype)
    x[0] = 0.0
    out = fill_missing(x, 'x_image', dtype)
    assert out.x.dtype == dtype
    double = dtype == torch.double
    assert out.scale.dtype == (torch.double if double else torch.float)
    assert out.scale.size() == (4, 1)
    assert out.scale[[0, 2]].tolist() == [[1.0], [1.0]]
    expected = torch.nn.functional.normalize(x[[1, 3]].double(), dim=1)
    unit = (out.x * out.scale)[[1, 3]].double()
    torch.testing.assert_close(unit, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ('dtype', 'factor'),
    [
        (torch.half, 60000.0),
        (torch.half, 1e-5),
        (torch.bfloat16, 1e38),
        (torch.bfloat16, 1e-37),
        (torch.float, 1e30),
        (torch.float, 3e38),
        (torch.float, 1e-30),
        (torch.float, 1e-38),
        (torch.double, 1e300),
        (torch.double, 1e-300),
    ],
)
def test_fill_missing_of_extreme_features(dtype, factor):
    x = get_features(missing=True).to(dtype)
    x[1] = factor * torch.tensor([0.5, -1.0, 0.0], dtype=dtype)
    before = x.clone()
    out = fill_missing(x, 'x_image', dtype)
    assert out.mask.tolist() == [True, True, False, True]
    assert torch.equal(out.x[[0, 3]], x[[0, 3]])
    assert torch.equal(x.nan_to_num(), before.nan_to_num())
    assert out.x[1].abs().max() <= LIMIT
    unit = (out.x * out.scale)[1].double()
    expected = torch.tensor([0.2, -0.8, 0.0]).double()
    tol = 5e-3 if factor == 1e-5 else 1e-6  # Which has few digits there.
    square = unit * unit.abs()
    torch.testing.assert_close(square, expected, atol=tol, rtol=tol)


@pytest.mark.parametrize('factor', [1.0, 1e6])
def test_fill_missing_has_the_gradient_of_unit_length(factor):
    x = (factor * get_features(missing=True)).double().requires_grad_()
    out, weight = fill_missing(x, 'x_image', torch.double), torch.randn(4, 3)
    (out.x * out.scale * weight).sum().backward()
    other = x.detach().nan_to_num().requires_grad_()
    expected = other / other.norm(dim=1, keepdim=True)
    keep = [0, 1, 3]
    (expected * weight)[keep].sum().backward()
    torch.testing.assert_close(factor * x.grad[keep], factor * other.grad[keep])
    assert not x.grad[2].any()


def test_fill_missing_errors():
    x = get_features(missing=True)
    x[0, 0] = float('-inf')
    with pytest.raises(ValueError, match=r"'x_image' .* infinite"):
        fill_missing(x, 'x_image', torch.float)


def test_cache_knows_precision(calls):
    cache, x = FeatureCache(), get_features(missing=False)
    for dtype in (torch.float, torch.double, torch.double):
        assert cache('image', x, dtype)[0].dtype == dtype
    assert len(calls) == 2


@pytest.mark.parametrize('missing', [False, True])
def test_cache(missing, calls):
    cache, x = FeatureCache(), get_features(missing)
    for _ in range(3):
        out, mask, _ = cache('image', x, torch.float)
        assert torch.equal(out[[0, 1, 3]], x[[0, 1, 3]])
        assert out[2].any() != missing
        assert (mask is not None) == missing
    assert len(calls) == 1


def test_cache_knows_features_by_name(calls):
    cache, x, y = FeatureCache(), get_features(True), get_features(False)
    for _ in range(2):
        assert cache('image', x, torch.float)[1] is not None
        out = cache('text', y, torch.float)
        assert out.x is y
        assert out.mask is None
        torch.testing.assert_close((out.scale * y).norm(dim=1), torch.ones(4))
    assert len(calls) == 2


def test_cache_sees_new_features(calls):
    cache = FeatureCache()
    assert (
        cache('image', get_features(missing=True), torch.float)[1] is not None
    )
    assert cache('image', get_features(missing=False), torch.float)[1] is None
    assert len(calls) == 2


def test_cache_sees_what_is_written(calls):
    cache, x = FeatureCache(), get_features(missing=False)
    assert cache('image', x, torch.float)[1] is None
    x[3] = float('nan')
    assert cache('image', x, torch.float)[1].tolist() == [
        True,
        True,
        True,
        False,
    ]
    assert len(calls) == 2


def test_cache_keeps_no_gradient(calls):
    cache, x = FeatureCache(), get_features(missing=True).requires_grad_()
    for _ in range(2):
        cache('image', x, torch.float)[0].sum().backward()
    assert len(calls) == 2
    assert x.grad[2].tolist() == [0.0, 0.0, 0.0]
    assert x.grad[3].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize('missing', [False, True])
def test_cache_in_inference_mode(missing, calls):
    cache, x = FeatureCache(), get_features(missing)
    for _ in range(2):
        with torch.inference_mode():
            out = cache('image', x, torch.float)
            assert missing or out[0] is x
    assert len(calls) == 2
    # Training can use what is made outside of it:
    assert not cache('image', x, torch.float)[0].is_inference()


@pytest.mark.parametrize('missing', [False, True])
def test_cache_of_features_of_inference_mode(missing, calls):
    with torch.inference_mode():
        x = get_features(missing).clone()
    for _ in range(2):
        out = FeatureCache()('image', x, torch.float)
        assert (out.mask is None) != missing
    assert len(calls) == 2


def test_cache_keeps_no_features_alive():
    cache, x = FeatureCache(), get_features(missing=False)
    assert cache('image', x, torch.float).x is x
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    'clone', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_cache_is_copied_empty(clone, calls):
    cache, x = FeatureCache(), get_features(missing=True)
    cache('image', x, torch.float)
    out = clone(cache)('image', x, torch.float)
    assert out.mask is not None
    assert len(calls) == 2
