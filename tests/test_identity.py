import dataclasses
import functools
import re
import subprocess
import sys
import threading
from enum import Enum
from functools import partial, wraps

import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose, NormalizeFeatures

import crane_pyg.transforms as T
from crane_pyg._identity import UnidentifiedError, identify

WIDTH = 3


def closure(k, **options):
    return lambda data: T.BuildDualGraph(k=k, **options)(data)


def default(k):
    def f(data, k=k):
        return data, k

    return f


def keyword(k):
    def f(data, *, k=k):
        return data, k

    return f


def nested(k):
    return lambda data: [(lambda: closure(k))() for _ in range(2)]


def mask(place, kind=torch.tensor, size=2000):
    return kind([float(i == place) for i in range(size)])


def decorated(k):
    @wraps(T.BuildDualGraph.forward)  # Whose name it takes.
    def f(data):
        return data, k

    return f


def self_referring(k):
    def f(data):
        return f, k

    return f


def local_class(k):
    class Local:
        __slots__ = ('x',)

        @property
        def width(self):
            return partial(closure, k)

        @staticmethod
        def of():
            return k

        @functools.cached_property
        def kept(self):
            return k

    return Local()


@dataclasses.dataclass
class Options:
    x: torch.Tensor
    kind: type = int
    more: list = dataclasses.field(default_factory=list)


class Color(Enum):
    FIRST = 1
    SECOND = 2


def data_of(value):
    data = HeteroData()
    data['item'].x_image = mask(value)
    return data


def code_of(value):
    names = {}
    exec(f'def f(data): return data + {value}', names)
    return names['f']


def calling(value):
    names = {}
    exec(f'def g(x): return {value}\ndef f(x): return g(x)', names)
    return names['f']


PAIRS = {
    'number': lambda x: x,
    'text': str,
    'closure': closure,
    'default': default,
    'keyword': keyword,
    'nested': nested,
    'decorated': decorated,
    'self_referring': self_referring,
    'code': code_of,
    'global': calling,
    'method': lambda x: T.BuildDualGraph(k=x).forward,
    'partial': lambda x: partial(closure, x),
    'class': local_class,
    'dataclass': lambda x: Options(mask(x)),
    'enum': Color,
    'transform': lambda x: T.BuildDualGraph(k=x),
    'compose': lambda x: Compose([T.BuildDualGraph(), T.BuildDualGraph(k=x)]),
    'quiet': lambda x: NormalizeFeatures([f'x_{x}']),
    'pattern': lambda x: re.compile(str(x)),
    'set': lambda x: {'a', ('b', x), frozenset({x})},
    'dict': lambda x: {'a': {x: 1}},
    'tensor': mask,
    'view': lambda x: mask(x).view(20, 100).t(),
    'scalar': lambda x: torch.tensor(float(x)),
    'half': lambda x: mask(x).bfloat16(),
    'array': lambda x: mask(x, np.array),
    'objects': lambda x: np.array([x, 'a', None], dtype=object),
    'numpy': np.int64,
    'generator': np.random.default_rng,
    'edges': lambda x: EdgeIndex([[0, 1], [x, 0]], sparse_size=(5, 5)),
    'coo': lambda x: torch.eye(5).to_sparse() * x,
    'csr': lambda x: torch.eye(5).to_sparse_csr() * x,
    'csc': lambda x: torch.eye(5).to_sparse_csc() * x,
    'data': data_of,
}


@pytest.mark.parametrize('make', PAIRS.values(), ids=PAIRS)
def test_content_tells(make):
    assert identify(make(1)) == identify(make(1))
    assert identify(make(1)) != identify(make(2))


def test_kinds_tell():
    x = [1, 0, 1]
    values = [x, tuple(x), set(x), str(x), torch.tensor(x), np.array(x)]
    values += [torch.tensor(x).int(), torch.tensor(x).view(1, 3), [True, 0, 1]]
    values += [torch.float, 'torch.float32', len, 'len', np, 'numpy', None]
    values += [bytes(x), {0: 1, 1: 1}, closure, closure(1), [x], 1.0, -0.0, 0.0]
    assert len(set(map(identify, values))) == len(values)


def test_a_global_value_tells(monkeypatch):
    def f(data):
        return T.BuildDualGraph(k=WIDTH)(data)

    first = identify(f)
    monkeypatch.setitem(globals(), 'WIDTH', 4)
    assert identify(f) != first


def test_what_holds_itself():
    x, y = [], []
    x.append(x)
    y.append([y])
    assert len({identify(x), identify(y), identify([])}) == 3


def test_a_version_tells(monkeypatch):
    transform = NormalizeFeatures()
    first = identify(transform)
    monkeypatch.setattr('torch_geometric.__version__', '1.0')
    assert identify(transform) != first


@pytest.mark.parametrize(
    ('value', 'kind'),
    [
        ((x for x in [1]), 'generator'),
        (threading.Lock(), 'lock'),
        (torch.empty(3, device='meta'), 'tensor without data'),
        (functools.cache(partial(closure, 1)), '_lru_cache_wrapper'),
    ],
)
def test_what_cannot_be_told(value, kind):
    def f(data):
        return data, value

    with pytest.raises(UnidentifiedError, match=f"a '?{kind}'? in 'value' of"):
        identify(f)


def test_a_cached_function_is_told_by_what_it_wraps():
    one, other = (functools.cache(code_of(value)) for value in (1, 2))
    assert identify(one) == identify(functools.cache(code_of(1)))
    assert identify(one) != identify(other)


SCRIPT = r"""
import torch
import crane_pyg.transforms as T
from crane_pyg._identity import identify

class Scale(T.BuildDualGraph):
    kinds = {'image', 'text', 'audio', ('a', 1)}

    def forward(self, data):
        return super().forward(data) if data in {'a', 'b', 'c'} else None

def make(k):
    mask = torch.arange(2000) == k
    return lambda x: (T.BuildDualGraph(k=k)(x), mask, Scale())

print(identify(make(1)), identify(make(2)), identify(Scale(k=3)))
"""


def test_the_same_in_every_process():
    outs = [
        subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', SCRIPT],
            env={'PYTHONHASHSEED': seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split()
        for seed in ('1', '2')
    ]
    assert outs[0] == outs[1]
    assert len(set(outs[0])) == 3
