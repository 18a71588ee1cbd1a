"""What a function is, all that it holds included: so that another function, or the same with other values, is another.

Takes a function, a ``functools.partial``, a bound method or an object that can be called; gives a digest. Of this
project's code it takes the meaning (:mod:`analysis.own_code`); of code from elsewhere, a user's, whole source files,
those of every function, class and module it names too, or a library's name and version; and the bytes of what it holds:
defaults, closures, attributes, tensors, arrays, weights, the values of globals it names.

What cannot be known (an open file, an object of a compiled library without readable state) raises :class:`Unknown`:
better to compute anew than to take old numbers for new ones.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import random
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.definitions import module_of_file
from analysis.own_code import code_sha256

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size, range,
          slice, type(Ellipsis), np.dtype, Path)  # fmt: skip
_LIBRARIES = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class Unknown(ValueError):
    """Something a function holds cannot be told apart from another thing; the text says what."""


def held_sha256(value: Any) -> str:
    """Digest of a function and everything it holds (see above). Raises :class:`Unknown`."""
    digest = hashlib.sha256()
    for part in _told(value, {}):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _told(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """A value as parts that tell it apart from every other; what was told before is named by its number."""
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__}:{value!r}".encode()
        return
    if id(value) in seen:
        yield f"again:{seen[id(value)][0]}".encode()
        return
    seen[id(value)] = (len(seen), value)
    if isinstance(value, np.generic):
        yield from _of_array(np.asarray(value))
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            yield b"objects:" + str(value.shape).encode()
            yield from _of_all(value.ravel().tolist(), seen)
        else:
            yield from _of_array(value)
    elif isinstance(value, torch.Tensor):
        yield from _of_tensor(value)
    elif isinstance(value, Enum):
        yield f"enum:{type(value).__qualname__}.{value.name}".encode()
    elif isinstance(value, types.ModuleType):
        yield from _of_module(value, seen)
    elif isinstance(value, type):
        yield from _of_code(value, seen)
    elif isinstance(value, functools.partial):
        yield b"partial"
        yield from _of_all([value.func, list(value.args), dict(value.keywords)], seen)
    elif isinstance(value, types.MethodType):
        yield b"method"
        yield from _of_all([value.__func__, value.__self__], seen)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, seen)
    elif isinstance(value, functools._lru_cache_wrapper):
        yield b"cached"
        yield from _told(value.__wrapped__, seen)
    elif isinstance(value, (types.BuiltinFunctionType, np.ufunc)) or type(value).__name__ == "builtin_function":
        yield from _of_builtin(value)
    elif isinstance(value, Mapping):
        yield f"{type(value).__qualname__}:{len(value)}".encode()
        for key, one in value.items():
            yield from _of_all([key, one], seen)
    elif isinstance(value, (list, tuple)):
        yield f"{type(value).__qualname__}:{len(value)}".encode()
        yield from _of_all(list(value), seen)
    elif isinstance(value, (set, frozenset)):
        yield f"{type(value).__qualname__}:{len(value)}".encode()
        for part in sorted(held_sha256(one) for one in value):
            yield part.encode()
    elif isinstance(value, (np.random.Generator, np.random.RandomState)):
        state = value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state(legacy=False)
        yield from _told(state, seen)
    elif isinstance(value, torch.Generator):
        yield from _of_tensor(value.get_state())
    elif isinstance(value, re.Pattern):
        yield f"pattern:{value.flags}:{value.pattern!r}".encode()
    elif isinstance(value, random.Random):
        yield repr(value.getstate()).encode()
    else:
        yield from _of_object(value, seen)


def _of_all(values: list[Any], seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    for value in values:
        yield from _told(value, seen)


def _of_array(values: np.ndarray[Any, Any]) -> Iterator[bytes]:
    yield f"array:{values.dtype.str}:{values.shape}".encode()
    yield np.ascontiguousarray(values).tobytes()


def _of_tensor(values: torch.Tensor) -> Iterator[bytes]:
    if values.layout != torch.strided or values.is_meta:
        raise Unknown(f"a tensor {values.layout} on {values.device}")
    yield f"tensor:{values.dtype}:{tuple(values.shape)}:{values.requires_grad}".encode()
    flat = values.detach().cpu().contiguous().reshape(-1)
    yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _of_function(function: types.FunctionType, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    yield f"function:{function.__code__.co_name}".encode()
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    yield from _of_all([function.__defaults__, function.__kwdefaults__, cells], seen)
    yield from _of_all([{name: one for name, one in vars(function).items() if name != "__wrapped__"}], seen)
    if module_of_file(function.__code__.co_filename) is not None:
        yield code_sha256(function).encode()
        return
    yield from _of_code(function, seen)
    if not _is_library(function.__code__.co_filename):
        wanted = sorted(_global_names(function.__code__))
        yield from _of_all(
            [[(name, function.__globals__[name]) for name in wanted if name in function.__globals__]], seen
        )


def _global_names(code: types.CodeType) -> set[str]:
    """Names that a function, or one defined in it, looks up where it was defined."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = {str(one.argval) for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_global_names(one) for one in inner))


def _of_code(thing: Callable[..., Any] | type, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """A function or class: its name, and where it comes from: this project's meaning, a library's version, or the whole
    of a source file."""
    name = f"{thing.__module__}.{thing.__qualname__}"
    module = sys.modules.get(str(thing.__module__))
    if isinstance(thing, type) and (thing.__module__ == "builtins" or _library_of(thing.__module__) is not None):
        yield f"class:{name}:{_library_of(thing.__module__)}".encode()
        return
    try:
        path = inspect.getsourcefile(thing)
    except TypeError:
        path = getattr(module, "__file__", None)
    if path is None:
        raise Unknown(f"the source of {name}")
    if module_of_file(path) is not None:
        yield code_sha256(thing).encode()
    elif _is_library(path):
        yield f"library:{name}:{_library_of(str(thing.__module__))}".encode()
    elif Path(path).is_file():
        yield f"source:{thing.__qualname__}".encode()
        yield Path(path).read_bytes()
    else:  # a notebook's cell, or text given to exec: the function itself is all there is of its file
        try:
            yield inspect.getsource(thing).encode()
        except (OSError, TypeError) as error:
            raise Unknown(f"the source of {name}") from error
    if isinstance(thing, type):
        yield from _of_class(thing, seen)


def _of_class(thing: type, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """What a user's class holds besides its source: the values of its attributes, its methods and its parents."""
    yield from _of_all([base for base in thing.__bases__ if base is not object], seen)
    for name, one in sorted(vars(thing).items()):
        function = one.__func__ if isinstance(one, (staticmethod, classmethod)) else one
        if isinstance(function, property):
            yield from _of_all([function.fget, function.fset], seen)
        elif isinstance(function, types.FunctionType) or not (name.startswith("__") or hasattr(function, "__get__")):
            yield name.encode()
            yield from _told(function, seen)


def _of_builtin(function: Any) -> Iterator[bytes]:
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, (types.ModuleType, type)):
        raise Unknown(f"{function.__qualname__} of a {type(owner).__qualname__}")
    name = str(getattr(function, "__module__", None) or getattr(owner, "__name__", "builtins"))
    yield f"builtin:{name}.{function.__name__}:{_library_of(name)}".encode()


def _of_module(module: types.ModuleType, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """A module that a user's function names: a library's version; a file of the user's with all that it imports."""
    path, name = getattr(module, "__file__", None), module.__name__
    if _library_of(name) is not None or path is None or _is_library(path):
        yield f"module:{name}:{_library_of(name)}".encode()
    elif module_of_file(path) is not None:
        # Whatever of it is used: a module of this project named as a whole by code that is not this project's.
        yield code_sha256(
            *(one for one in vars(module).values() if isinstance(one, (types.FunctionType, type)))
        ).encode()
    else:
        yield f"module:{name}".encode()
        yield Path(path).read_bytes()
        found = {key: one for key, one in vars(module).items() if not key.startswith("__")}
        yield from _of_all([found], seen)


def _of_object(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """An object: its class and its attributes (the weights of a network are among them); one that is not made in Python
    says itself what it is made of, where it can."""
    kind = type(value)
    yield from _told(kind, seen)
    state = {one.name: getattr(value, one.name) for one in fields(value)} if is_dataclass(value) else {}
    state |= getattr(value, "__dict__", {})
    for parent in kind.__mro__:
        slots = parent.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                state[name] = getattr(value, name)
    yield from _of_all([dict(sorted(state.items(), key=lambda item: str(item[0])))], seen)
    if not all(parent is object or _is_python(parent) for parent in kind.__mro__):
        try:
            made_of = value.__reduce_ex__(4)
            if isinstance(made_of, str):  # its name, nothing of what it is
                raise TypeError(made_of)
        except Exception as error:  # whatever a library raises where it cannot say
            raise Unknown(f"what a {kind.__module__}.{kind.__qualname__} holds") from error
        yield from _of_all([[list(one) if isinstance(one, Iterator) else one for one in made_of[1:]]], seen)


def _is_python(kind: type) -> bool:
    """Whether a class is written in Python, so that its attributes are all that its objects hold."""
    try:
        return inspect.getsourcefile(kind) is not None
    except (TypeError, OSError):
        return kind.__module__ == "__main__"


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _is_library(path: str) -> bool:
    return path.startswith("<frozen") or str(Path(path).resolve()).startswith(_LIBRARIES)


@functools.cache
def _library_of(module: str) -> str | None:
    """Name and version of the library that a module belongs to; None for one that is no installed library's."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names and top not in ("__main__", "this"):
        return f"python {sys.version_info[0]}.{sys.version_info[1]}"
    origin = getattr(sys.modules.get(module), "__file__", None)
    if origin is None or not _is_library(origin):
        return None
    for name in packages_distributions().get(top, ()):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return None


def describe_unknown(name: str, error: Unknown) -> str:
    """The line that says why scores are not reused."""
    return (
        f"{name}: {json.dumps(str(error))[1:-1]} cannot be told apart from another, so it is computed anew every time"
    )
