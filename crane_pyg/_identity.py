r"""What tells one object from another in any process: its content."""

import copyreg
import dis
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, reduce
from pathlib import Path
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, range)
TORCH: Final = (torch.dtype, torch.device, torch.layout, torch.memory_format)
DESCRIPTORS: Final = (
    ClassMethodDescriptorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
LIBRARIES: Final = tuple(
    Path(sysconfig.get_path(name)).resolve()
    for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')
)
# What Python adds to classes, and what does nothing:
IGNORED: Final = frozenset(
    {
        '__annotate__',
        '__annotate_func__',
        '__annotations__',
        '__annotations_cache__',
        '__dict__',
        '__doc__',
        '__firstlineno__',
        '__module__',
        '__qualname__',
        '__static_attributes__',
        '__weakref__',
        '_abc_impl',
    }
)


class UnidentifiedError(Exception):
    r"""Raised for what no content tells from another, which it names."""


def identify(value: object) -> str:
    r"""Returns a checksum of what an object is made of: the content of tensors
    and arrays, the code of functions with all that they refer to, and the
    state of other objects with the code of their class. Classes and functions
    of installed packages are told by their name and version.

    No address enters, such that it is the same in every process.

    Raises:
        UnidentifiedError: If it holds, *e.g.*, a generator or an open file.
    """
    return _Walk().digest(value, 'the object itself').hex()


class _Walk:
    def __init__(self) -> None:
        # The objects are kept, as the address of one that is gone is reused:
        self.known: dict[int, tuple[object, bytes]] = {}

    def digest(self, value: object, where: str) -> bytes:
        if type(value) in PLAIN:
            return _hash(type(value).__name__, repr(value).encode())
        if id(value) not in self.known:
            # One that holds itself is told by where it was met first:
            place = _hash('cycle', str(len(self.known)).encode())
            self.known[id(value)] = (value, place)
            out = self.describe(value, where)
            self.known[id(value)] = (value, out)
        return self.known[id(value)][1]

    def describe(self, value: Any, where: str) -> bytes:  # noqa: ANN401
        kind = type(value)
        if isinstance(value, Tensor):
            return self.tensor(value, where)
        if kind is np.ndarray or isinstance(value, np.generic):
            return self.array(value, where)
        if isinstance(value, TORCH):
            return _hash(kind.__name__, str(value).encode())
        if kind in {list, tuple}:
            return self.join(kind.__name__, value, where)
        if kind in {set, frozenset}:
            parts = [self.digest(x, where) for x in value]
            return _hash(kind.__name__, *sorted(parts))
        if kind in {dict, MappingProxyType}:
            return self.join('dict', self.entries(value), where)
        if isinstance(value, ModuleType):
            return _hash('module', value.__name__.encode(), _version(value))
        if isinstance(value, CodeType):
            return self.code(value, where)
        if isinstance(value, FunctionType):
            return self.function(value, where)
        if isinstance(value, type):
            return self.cls(value, where)
        if isinstance(value, MethodType):
            bound = (value.__func__, value.__self__)
            return self.join('method', bound, where)
        if isinstance(value, (BuiltinFunctionType, MethodWrapperType)):
            named = (value.__qualname__, value.__self__)
            return self.join('builtin', named, where)
        return self.state(value, where)

    def join(self, kind: str, parts: Iterable[object], where: str) -> bytes:
        return _hash(kind, *(self.digest(x, where) for x in parts))

    def entries(self, value: Mapping[Any, Any]) -> Iterator[bytes]:
        for key, x in value.items():
            yield self.digest(key, 'a key')
            yield self.digest(x, f'{key!r}' if type(key) is str else 'a value')

    def tensor(self, x: Tensor, where: str) -> bytes:
        kind, x = self.cls(type(x), where), x.detach()
        if x.layout == torch.strided:  # Others have no storage to share.
            x = x.as_subclass(Tensor)
        if x.layout in {torch.sparse_csr, torch.sparse_bsr}:
            parts = [x.crow_indices(), x.col_indices(), x.values()]
        elif x.layout in {torch.sparse_csc, torch.sparse_bsc}:
            parts = [x.ccol_indices(), x.row_indices(), x.values()]
        elif x.layout == torch.sparse_coo:
            x = x.coalesce()
            parts = [x.indices(), x.values()]
        elif x.layout == torch.strided and not (x.is_meta or x.is_quantized):
            x = x.cpu().resolve_conj().resolve_neg().contiguous()
            flat = x.view(-1).view(torch.uint8).numpy()
            shape = f'{x.dtype} {list(x.shape)}'.encode()
            return _hash('tensor', kind, shape, flat.data)
        else:
            raise UnidentifiedError(f'a tensor without data in {where}')
        shape = f'{x.layout} {list(x.shape)}'.encode()
        return self.join('sparse', [kind, shape, *parts], where)

    def array(self, x: Any, where: str) -> bytes:  # noqa: ANN401
        shape = f'{x.dtype} {x.shape}'.encode()
        if x.dtype.hasobject:
            return self.join('objects', [shape, x.tolist()], where)
        return _hash('array', shape, np.asarray(x).tobytes())

    def code(self, code: CodeType, where: str) -> bytes:
        counts = (code.co_argcount, code.co_posonlyargcount)
        names = (code.co_varnames, code.co_freevars, code.co_cellvars)
        parts = (
            code.co_code,
            code.co_exceptiontable,
            code.co_consts,
            code.co_names,
            *names,
            *counts,
            code.co_kwonlyargcount,
            code.co_flags,
        )
        return self.join('code', parts, where)

    def function(self, f: FunctionType, where: str) -> bytes:
        if (library := _library_name(f)) is not None:
            return _hash('library', library)
        where = f"'{f.__name__}'"
        parts = [f.__code__, f.__defaults__, f.__kwdefaults__, f.__dict__]
        out = [self.digest(part, where) for part in parts]
        cells = f.__closure__ or ()
        for name, cell in zip(f.__code__.co_freevars, cells, strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # It is empty.
                continue
            out.append(_hash('cell', name.encode()))
            out.append(self.digest(content, f"'{name}' of {where}"))
        for name in sorted(set(_global_names(f.__code__))):
            if name in f.__globals__:  # Others are Python's own.
                out.append(_hash('global', name.encode()))
                value = f.__globals__[name]
                out.append(self.digest(value, f"'{name}' of {where}"))
        return _hash('function', *out)

    def cls(self, cls: type, where: str) -> bytes:
        if (name := _library_name(cls)) is not None:
            return _hash('library', name)
        where = f"'{cls.__name__}'"
        content = {k: v for k, v in vars(cls).items() if k not in IGNORED}
        parts = [cls.__qualname__, type(cls), cls.__bases__, content]
        return self.join('class', parts, where)

    def state(self, value: Any, where: str) -> bytes:  # noqa: ANN401
        r"""Describes an object by what it would be pickled as."""
        name, parts = _library_name(value), list[object]()
        if isinstance(value, (staticmethod, classmethod)):
            parts = [type(value), value.__func__]
        elif isinstance(value, cached_property):  # Some hold a lock.
            parts = [type(value), value.func]
        elif isinstance(value, property):
            parts = [type(value), value.fget, value.fset, value.fdel]
        elif isinstance(value, DESCRIPTORS):
            parts = [type(value), value.__objclass__.__name__, value.__name__]
        else:
            try:
                known = copyreg.dispatch_table.get(type(value))
                reduced = known(value) if known else value.__reduce_ex__(4)
            except Exception as e:
                raise _unidentified(value, where) from e
            if not isinstance(reduced, str):
                parts = [type(value), *map(_listed, reduced)]
            elif hasattr(value, '__wrapped__'):
                parts = [type(value), value.__wrapped__]
            elif name is not None:
                parts = [type(value), name]
            else:
                raise _unidentified(value, where)
        return self.join('object', parts, where)


def _hash(kind: str, *parts: bytes | memoryview) -> bytes:
    out = hashlib.blake2b(kind.encode(), digest_size=16)
    for part in parts:  # With their lengths, as they are of any.
        out.update(f' {len(part)} '.encode())
        out.update(part)
    return out.digest()


def _listed(part: object) -> object:
    return list(part) if isinstance(part, Iterator) else part


def _unidentified(value: object, where: str) -> UnidentifiedError:
    return UnidentifiedError(f"a '{type(value).__name__}' in {where}")


def _global_names(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in {'LOAD_GLOBAL', 'LOAD_NAME'}:
            yield str(instruction.argval)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _global_names(const)


def _library_name(value: object) -> bytes | None:
    r"""Returns the name and the version of what an installed package has under
    a name; what is made inside of a function has none.
    """
    module = sys.modules.get(str(getattr(value, '__module__', None)))
    name = getattr(value, '__qualname__', None) or getattr(
        value, '__name__', None
    )
    if module is None or not isinstance(name, str) or '<' in name:
        return None
    if not _is_library(module):
        return None
    try:  # What wraps another takes its name.
        found: object = reduce(getattr, name.split('.'), module)
    except AttributeError:
        return None
    if found is not value:
        return None
    return f'{module.__name__}.{name} '.encode() + _version(module)


def _is_library(module: ModuleType) -> bool:
    top = module.__name__.partition('.')[0]
    if top in {'builtins', __name__.partition('.')[0]}:
        return True
    file = getattr(module, '__file__', None)
    if file is None:
        return top in sys.stdlib_module_names and top != '__main__'
    folders = Path(file).resolve().parents
    return any(folder in folders for folder in LIBRARIES)


def _version(module: ModuleType) -> bytes:
    top = sys.modules.get(module.__name__.partition('.')[0], module)
    return str(getattr(top, '__version__', '')).encode()
