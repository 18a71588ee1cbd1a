"""What a compiled function names: globals, modules that it imports itself, and what only its run can tell.

Takes code objects; gives names, with those of functions defined inside. What a function reads while it runs (a file, an
environment variable, a module by a name made at run time) cannot be told from its code: such names are found here too.
Runs nothing but the import statements it is asked for.
"""

from __future__ import annotations

import dis
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from analysis.origins import library_of

# Attributes and functions of libraries that give what lies outside the program; load_state_dict takes what is held.
_READERS = re.compile(
    r"(fd|url)?open|open_\w+|safe_open|environb?|getenvb?|argv|read|readline|readlines|readinto|read_\w+|imread|load"
    r"|load(?!_state_dict$)_\w+|loadtxt|genfromtxt|fromfile|memmap|from_pretrained|torch_load|url\w+|listdir|scandir"
    r"|i?r?glob|iterdir|exists|is_file|is_dir|stat|getsize|getmtime|Popen|popen|check_output|system|import_module"
    r"|__import__|reload|run_path|run_module|exec_module|import_string|locate|hub"
)
_BUILTINS = frozenset({"open", "__import__", "globals", "eval", "exec", "compile", "input"})


@dataclass(frozen=True)
class Imported:
    """An import statement in a function: the module, how many packages up it is, and what is taken of it."""

    module: str
    level: int
    names: tuple[str, ...]


def global_names(code: CodeType) -> set[str]:
    """Names that a function, or one defined in it, looks up where it was defined."""
    own = {str(one.argval) for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(global_names(one) for one in _inner(code)))


def imports_of(code: CodeType) -> list[Imported]:
    """The import statements of a function and of those defined in it, in order."""
    found: list[Imported] = []
    constants: list[Any] = []
    for one in dis.get_instructions(code):
        if one.opname == "IMPORT_NAME":
            level, names = constants[-2:]
            found.append(Imported(str(one.argval), int(level or 0), tuple(names or ())))
        constants += [one.argval] if one.opname == "LOAD_CONST" else []
    return found + [imported for inner in _inner(code) for imported in imports_of(inner)]


def imported(statement: Imported, function: FunctionType) -> tuple[ModuleType, list[Any]]:
    """The module that an import statement of a function imports, and what it takes of it; raises what the module
    raises."""
    package = str(function.__globals__.get("__package__") or "")
    module = importlib.import_module("." * statement.level + statement.module, package or None)
    return module, [_taken(module, name) for name in statement.names]


def _taken(module: ModuleType, name: str) -> Any:
    if name == "*" or hasattr(module, name):
        return module if name == "*" else getattr(module, name)
    return importlib.import_module(f"{module.__name__}.{name}")


def reader_in(function: FunctionType) -> str | None:
    """The first name by which a function, or one defined in it, may reach what neither its code nor what it holds
    tells; None without. A function of the user's own under such a name is none: it is looked into instead."""
    held = function.__globals__
    for name in sorted(global_names(function.__code__)):
        known = _name_of(held[name]) if name in held else name
        if _is_reader(name) and (name not in held or known is not None):
            return name
        if known is not None and _is_reader(known):  # under another name
            return known
        if held.get(name) is sys and "modules" in function.__code__.co_names:
            return "sys.modules"
    return _reading_attribute(function.__code__)


def _name_of(value: Any) -> str | None:
    """The name of something of a library, None for what is not."""
    owner = getattr(value, "__module__", None)
    if not isinstance(owner, str):
        owner = value.__name__ if isinstance(value, ModuleType) else type(value).__module__
    is_library = owner == "builtins" or library_of(owner) is not None
    return str(getattr(value, "__name__", "")) if is_library else None


def _is_reader(name: str) -> bool:
    return name in _BUILTINS or _READERS.fullmatch(name) is not None


def _reading_attribute(code: CodeType) -> str | None:
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM") and _READERS.fullmatch(str(one.argval)):
            return str(one.argval)
    return next((name for inner in _inner(code) if (name := _reading_attribute(inner))), None)


def parts_of_code(code: CodeType) -> Iterator[bytes]:
    """What a function does, of which there is no source: one that ``dataclasses`` or ``collections`` made."""
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_argcount, code.co_flags)
    yield b"code:" + code.co_code + repr(names).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from parts_of_code(constant)
        else:
            yield repr(_sorted(constant)).encode()


def _sorted(constant: Any) -> Any:
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant


def _inner(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]
