"""What a function is, all that it holds included: so that another function, or the same with other values, is another.

Takes a function, a ``functools.partial``, a bound method or an object that can be called; gives a digest. Of this
project's code it takes the meaning (:mod:`analysis.own_code`); of code from elsewhere, a user's, whole source files,
those of every function, class and module it names too, or a library's name and version; and the bytes of what it holds:
defaults, closures, attributes, tensors, arrays, weights, the values of globals it names.

What cannot be known (an open file, an object of a compiled library without readable state, a function that reads a
file or the environment, or finds modules by names made at run time) raises :class:`Unknown`: better to compute anew
than to take old numbers for new ones.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import random
import re
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.definitions import module_of_file
from analysis.named_in_code import global_names, imported, imports_of, parts_of_code, reader_in
from analysis.origins import is_library, is_python, library_of
from analysis.own_code import code_sha256

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size, range,
          slice, type(Ellipsis), type(Path()))  # fmt: skip
_MAPPINGS = (dict, OrderedDict, types.MappingProxyType, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
# Classes written in C whose objects are told by what they are made of, as a plain one: how to make it of another kind.
_MADE_OF: dict[type, Callable[[Any], Any]] = {
    int: int.__int__, float: float.__float__, complex: lambda value: complex(value.real, value.imag),
    str: lambda value: str.__str__(value), bytes: lambda value: bytes(memoryview(value)),
    bytearray: lambda value: bytes(memoryview(value)), list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)), dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)), frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    np.ndarray: lambda value: np.array(value.view(np.ndarray)),
    torch.Tensor: lambda value: value.detach().as_subclass(torch.Tensor),
}  # fmt: skip
# What Python itself writes into every class or module: nothing that an object does hangs on them.
_OF_CLASSES = frozenset(
    {"__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__annotations__", "__slots__", "__hash__"}
    | {"__match_args__", "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl", "__firstlineno__"}
    | {"__dataclass_fields__", "__dataclass_params__", "__static_attributes__", "__new_member__", "__slotnames__"}
)
_OF_MODULES = frozenset(
    {"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__file__", "__cached__", "__builtins__"}
    | {"__path__", "__annotations__", "__all__", "__author__", "__version__", "__warningregistry__"}
)
_SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType,
          types.MethodDescriptorType, types.ClassMethodDescriptorType, enum.property)  # fmt: skip


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
    kind = type(value)
    if _is_plain(value):
        yield f"{kind.__name__}:{value!r}".encode()
        return
    if id(value) in seen:
        yield f"again:{seen[id(value)][0]}".encode()
        return
    seen[id(value)] = (len(seen), value)
    if isinstance(value, np.generic):
        yield from _of_array(np.asarray(value))
    elif kind is np.ndarray:
        if value.dtype.hasobject:
            yield b"objects:" + str(value.shape).encode()
            yield from _of_all(value.ravel().tolist(), seen)
        else:
            yield from _of_array(value)
    elif kind in _TENSORS:
        yield from _of_tensor(value)
        hooks = list((getattr(value, "_backward_hooks", None) or {}).values())
        if hooks or vars(value):
            yield from _of_all([hooks, vars(value)], seen)
    elif isinstance(value, enum.Enum):
        yield from _of_member(value, seen)
    elif isinstance(value, types.ModuleType):
        yield from _of_module(value, seen)
    elif isinstance(value, type):
        yield from _of_code(value, seen)
    elif isinstance(value, functools.partial):
        yield b"partial"
        yield from _of_all([value.func, list(value.args), dict(value.keywords)], seen)
        if kind is not functools.partial or vars(value):
            yield from _of_all([kind, vars(value)], seen)
    elif isinstance(value, types.MethodType):
        yield b"method"
        yield from _of_all([value.__func__, value.__self__], seen)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, seen)
    elif isinstance(value, functools._lru_cache_wrapper):
        yield b"cached"
        yield from _told(value.__wrapped__, seen)
    elif isinstance(value, (types.BuiltinFunctionType, np.ufunc)) or kind.__name__ == "builtin_function":
        yield from _of_builtin(value, seen)
    elif kind in _MAPPINGS:
        yield f"{kind.__qualname__}:{len(value)}".encode()
        for key, one in value.items():
            yield from _of_all([key, one], seen)
        if getattr(value, "__dict__", None) and kind is OrderedDict:
            yield from _told(vars(value), seen)
    elif kind in (list, tuple):
        yield f"{kind.__qualname__}:{len(value)}".encode()
        yield from _of_all(list(value), seen)
    elif kind in (set, frozenset):
        yield f"{kind.__qualname__}:{len(value)}".encode()
        for part in sorted(held_sha256(one) for one in value):
            yield part.encode()
    elif kind in (np.random.Generator, np.random.RandomState):
        state = value.bit_generator.state if kind is np.random.Generator else value.get_state(legacy=False)
        yield from _told(state, seen)
    elif kind is torch.Generator:
        yield from _of_tensor(value.get_state())
    elif kind is slice:
        yield b"slice"
        yield from _of_all([value.start, value.stop, value.step], seen)
    elif isinstance(value, re.Pattern):
        yield f"pattern:{value.flags}:{value.pattern!r}".encode()
    elif kind is random.Random:
        yield repr(value.getstate()).encode()
    elif kind is functools.cached_property:  # its lock says nothing
        yield b"cached property"
        yield from _told(value.func, seen)
    else:
        yield from _of_object(value, seen)


def _is_plain(value: Any) -> bool:
    """Whether a value is all that it shows; one of a class made of a plain one can hold more."""
    if type(value) is slice:
        return all(_is_plain(one) for one in (value.start, value.stop, value.step))
    own = type(value) in _PLAIN or type(value).__module__ == "numpy"
    return isinstance(value, np.dtype) or (isinstance(value, _PLAIN) and own)


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
    if not is_library(function.__code__.co_filename):
        reader = reader_in(function)
        if reader is not None:
            raise Unknown(f"what {function.__qualname__} reaches by {reader}")
        wanted = sorted(global_names(function.__code__))
        yield from _of_all(
            [[(name, function.__globals__[name]) for name in wanted if name in function.__globals__]], seen
        )
        yield from _of_imports(function, seen)


def _of_imports(function: types.FunctionType, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """What a user's function imports when it runs: the modules, or what it takes of one of this project's."""
    for statement in imports_of(function.__code__):
        try:
            module, taken = imported(statement, function)
        except Exception as error:  # whatever a user's module raises
            raise Unknown(f"what {function.__qualname__} imports, {statement.module}") from error
        yield f"import:{statement.module}:{statement.names}".encode()
        if not taken or module_of_file(getattr(module, "__file__", None) or "") is None:
            yield from _told(module, seen)
        yield from _of_all(taken, seen)


def _of_code(thing: Callable[..., Any] | type, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """A function or class: its name, and where it comes from: this project's meaning, a library's version, or the whole
    of a source file."""
    name = f"{thing.__module__}.{thing.__qualname__}"
    module = sys.modules.get(str(thing.__module__))
    if isinstance(thing, type) and (thing.__module__ == "builtins" or library_of(thing.__module__) is not None):
        yield f"class:{name}:{library_of(thing.__module__)}".encode()
        return
    try:
        path = inspect.getsourcefile(thing)
    except TypeError:
        path = getattr(module, "__file__", None)
    if path is None and isinstance(thing, types.FunctionType):  # as namedtuple makes them, of no file
        yield from parts_of_code(thing.__code__)
        return
    if path is None:
        raise Unknown(f"the source of {name}")
    if module_of_file(path) is not None:
        yield code_sha256(thing).encode()
    elif is_library(path):
        yield f"library:{name}:{library_of(str(thing.__module__))}".encode()
    elif Path(path).is_file():
        yield f"source:{thing.__qualname__}".encode()
        yield Path(path).read_bytes()
    else:  # a notebook's cell, or text given to exec: the function itself is all there is of its file
        try:
            yield inspect.getsource(thing).encode()
        except (OSError, TypeError) as error:
            if not isinstance(thing, types.FunctionType):
                raise Unknown(f"the source of {name}") from error
            yield from parts_of_code(thing.__code__)  # as dataclasses make them
    if isinstance(thing, type):
        yield from _of_class(thing, seen)


def _of_class(thing: type, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """What a user's class holds besides its source: the values of its attributes, its methods and its parents."""
    yield from _of_all([base for base in thing.__bases__ if base is not object], seen)
    if type(thing) is not type and library_of(type(thing).__module__) is None:
        yield from _told(type(thing), seen)
    for name, one in sorted(vars(thing).items()):
        function = one.__func__ if isinstance(one, (staticmethod, classmethod)) else one
        if type(function) is property:
            yield from _of_all([function.fget, function.fset], seen)
        elif name not in _OF_CLASSES and not isinstance(function, _SLOTS):
            yield name.encode()
            yield from _told(function, seen)


def _of_member(member: enum.Enum, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """A member of an enum, with its class, whose methods it has; where that is being told, its class says the rest."""
    yield f"enum:{type(member).__qualname__}.{member.name}".encode()
    usual = ("_value_", "_name_", "__objclass__", "_sort_order_")
    own = {name: one for name, one in vars(member).items() if name not in usual}
    if id(type(member)) not in seen:
        yield from _of_all([type(member), member.value], seen)
    if own:
        yield from _told(own, seen)


def _of_builtin(function: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    if isinstance(function, np.ufunc):
        special = sys.modules.get("scipy.special")
        if all(getattr(module, function.__name__, None) is not function for module in (np, special)):
            raise Unknown(f"the function in {function!r}")
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type) and owner.__module__ != "builtins" and library_of(owner.__module__) is None:
        yield from _told(owner, seen)
    if owner is not None and not isinstance(owner, (types.ModuleType, type)):
        raise Unknown(f"{function.__qualname__} of a {type(owner).__qualname__}")
    name = str(getattr(function, "__module__", None) or getattr(owner, "__name__", "builtins"))
    yield f"builtin:{name}.{function.__name__}:{library_of(name)}".encode()


def _of_module(module: types.ModuleType, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """A module that a user's function names: a library's version; a file of the user's with all that it imports."""
    path, name = getattr(module, "__file__", None), module.__name__
    if library_of(name) is not None or path is None or is_library(path):
        yield f"module:{name}:{library_of(name)}".encode()
    elif module_of_file(path) is not None:
        # Whatever of it is used: a module of this project named as a whole by code that is not this project's.
        yield code_sha256(
            *(one for one in vars(module).values() if isinstance(one, (types.FunctionType, type)))
        ).encode()
    else:
        yield f"module:{name}".encode()
        yield Path(path).read_bytes()
        if type(module) is not types.ModuleType:
            yield from _told(type(module), seen)
        found = {key: one for key, one in vars(module).items() if key not in _OF_MODULES}
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
    base = next((parent for parent in kind.__mro__ if parent in _MADE_OF), None)
    if base is not None:
        yield from _told(_MADE_OF[base](value), seen)
    if not all(
        parent in (object, base) or is_python(parent) for parent in kind.__mro__ if not _is_within(parent, base)
    ):
        try:
            made_of = value.__reduce_ex__(4)
            if isinstance(made_of, str):  # its name, nothing of what it is
                raise TypeError(made_of)
        except Exception as error:  # whatever a library raises where it cannot say
            raise Unknown(f"what a {kind.__module__}.{kind.__qualname__} holds") from error
        if isinstance(made_of[0], functools.partial):
            yield from _told(made_of[0], seen)
        yield from _of_all([[list(one) if isinstance(one, Iterator) else one for one in made_of[1:]]], seen)


def _is_within(parent: type, base: type | None) -> bool:
    """Whether a class is one of those that a plain class is made of (``torch._C.TensorBase``)."""
    return base is not None and issubclass(base, parent)


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def describe_unknown(name: str, error: Unknown) -> str:
    """The line that says why scores are not reused."""
    return (
        f"{name}: {json.dumps(str(error))[1:-1]} cannot be told apart from another, so it is computed anew every time"
    )
