import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch_geometric.testing import withCUDA

from crane_pyg.nn import features
from crane_pyg.nn.features import FeatureCache, fill_missing


@pytest.fixture
def calls(monkeypatch):
    seen = []

    def count(x):
        seen.append(x)
        return fill_missing(x)

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
    out, mask = fill_missing(x)
    assert mask.tolist() == [True, True, False, True]
    assert torch.equal(out[mask], x[mask])
    assert out[2].tolist() == [0.0, 0.0, 0.0]
    assert x[2].isnan().any()


def test_fill_missing_copies_nothing_in_vain():
    x = get_features(missing=False)
    out, mask = fill_missing(x)
    assert out is x
    assert mask is None


@pytest.mark.parametrize('missing', [False, True])
def test_cache(missing, calls):
    cache, x = FeatureCache(), get_features(missing)
    for _ in range(3):
        out, mask = cache('image', x)
        assert torch.equal(out[[0, 1, 3]], x[[0, 1, 3]])
        assert out[2].any() != missing
        assert (mask is not None) == missing
    assert len(calls) == 1


def test_cache_knows_features_by_name(calls):
    cache, x, y = FeatureCache(), get_features(True), get_features(False)
    for _ in range(2):
        assert cache('image', x)[1] is not None
        assert cache('text', y) == (y, None)
    assert len(calls) == 2


def test_cache_sees_new_features(calls):
    cache = FeatureCache()
    assert cache('image', get_features(missing=True))[1] is not None
    assert cache('image', get_features(missing=False))[1] is None
    assert len(calls) == 2


def test_cache_sees_what_is_written(calls):
    cache, x = FeatureCache(), get_features(missing=False)
    assert cache('image', x)[1] is None
    x[3] = float('nan')
    assert cache('image', x)[1].tolist() == [True, True, True, False]
    assert len(calls) == 2


def test_cache_keeps_no_gradient(calls):
    cache, x = FeatureCache(), get_features(missing=True).requires_grad_()
    for _ in range(2):
        cache('image', x)[0].sum().backward()
    assert len(calls) == 2
    assert x.grad[2].tolist() == [0.0, 0.0, 0.0]
    assert x.grad[3].tolist() == [2.0, 2.0, 2.0]


def test_cache_in_inference_mode(calls):
    with torch.inference_mode():
        cache, x = FeatureCache(), get_features(missing=False)
        for _ in range(2):
            assert cache('image', x)[0] is x
    assert len(calls) == 2


def test_cache_keeps_no_features_alive():
    cache, x = FeatureCache(), get_features(missing=False)
    cache('image', x)
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    'clone', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_cache_is_copied_empty(clone, calls):
    cache, x = FeatureCache(), get_features(missing=True)
    cache('image', x)
    out = clone(cache)('image', x)
    assert out.mask is not None
    assert len(calls) == 2
