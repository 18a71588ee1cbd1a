"""Where code comes from: a library, with its version, Python itself, or a user.

Takes names of modules, paths and classes. Knows nothing of what the code does.
"""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
import types
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from weakref import WeakKeyDictionary

_LIBRARIES = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_KNOWN: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
_HEAP = 1 << 9  # of the flags of a type: made while Python runs, as every class that is written in it is


def is_library(path: str) -> bool:
    """Whether a source file is Python's or an installed library's."""
    return path.startswith("<frozen") or str(Path(path).resolve()).startswith(_LIBRARIES)


@functools.cache
def library_of(module: str) -> str | None:
    """Name and version of the library that a module belongs to; None for one that is no installed library's."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names and top not in ("__main__", "this"):
        return f"python {sys.version_info[0]}.{sys.version_info[1]}"
    origin = getattr(sys.modules.get(module), "__file__", None)
    if origin is None or not is_library(origin):
        return None
    for name in packages_distributions().get(top, ()):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return None


def is_python(kind: type) -> bool:
    """Whether a class is written in Python, so that its attributes are all that its objects hold: a module of Python
    can hand on a class written in C as its own."""
    if kind not in _KNOWN:  # finding a source takes long, and a model has thousands of objects of the same classes
        _KNOWN[kind] = _has_source(kind)
    return _KNOWN[kind]


def _has_source(kind: type) -> bool:
    if not kind.__flags__ & _HEAP or any(_is_compiled(one, kind) for one in vars(kind).values()):
        return False
    try:
        return bool(inspect.getsource(kind))
    except (TypeError, OSError):
        return kind.__module__ == "__main__"


def _is_compiled(member: object, kind: type) -> bool:
    """Whether a member was made with a class by C (of ``operator.itemgetter`` there is a source as well)."""
    compiled = (types.WrapperDescriptorType, types.MethodDescriptorType)
    if isinstance(member, types.BuiltinFunctionType):
        return member.__self__ is kind
    return isinstance(member, compiled) and member.__objclass__ is kind
