"""Which of this project's code a function runs, as a digest of what that code means.

Takes functions, classes and objects (or definitions by name); gives one digest over every definition of this project
(a function, a class, a constant of a module) that they name, or that what they name names, however deep. Nobody lists
modules, so no list can be short: what a nested function closes over is followed too, and the function fields of what it
holds.

A definition counts as its syntax tree without comments, docstrings and line numbers, and is told by what it is joined
to, not by where it stands: a comment, a definition beside it, or a move to another module changes nothing. Names in
`analysis.definitions.NOT_FOLLOWED` stand for tables and records whose entries count where they are used. Libraries do
not count (their versions stand beside scores). What is reached only by a name made at run time is not seen; a test runs
every pass and compares (`tests/test_own_code.py`). What is not this project's is :mod:`analysis.held_values`'s.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from analysis.definitions import Definition, described, files_by_module, module_of_file, resolved


def code_sha256(*roots: Any) -> str:
    """Digest of what the code behind functions, classes and objects means (see above); roots not of this project, and
    None, add nothing."""
    found = _walk(roots)
    numbers = {node: place for place, node in enumerate(found)}
    lines = [[found[node][0], [(name, numbers[target]) for name, target in found[node][1]]] for node in found]
    ends = [numbers[start] for start in _starts(roots)]
    return hashlib.sha256(json.dumps([ends, lines]).encode()).hexdigest()


def definitions_behind(*roots: Any) -> frozenset[Definition]:
    """The definitions that :func:`code_sha256` covers."""
    return frozenset(_walk(roots))


def _walk(roots: tuple[Any, ...]) -> dict[Definition, tuple[str, list[tuple[str, Definition]]]]:
    """Definition -> (meaning, names it uses and the definitions they are), in the order in which they are met."""
    found: dict[Definition, tuple[str, list[tuple[str, Definition]]]] = {}
    waiting = _starts(roots)
    while waiting:
        one = waiting.pop(0)
        if one not in found:
            found[one] = described(one)
            waiting += [target for _, target in found[one][1]]
    return found


def _starts(roots: tuple[Any, ...]) -> list[Definition]:
    found: list[Definition] = []
    seen: dict[int, Any] = {}  # keeps what it has seen alive, so that no two things share an id
    for root in roots:
        found += _of_object(root, seen)
    return list(dict.fromkeys(found))


def _of_object(value: Any, seen: dict[int, Any]) -> list[Definition]:
    """The definitions that an object holds: of functions their own and what they close over, of records and containers
    those of what is in them, of anything else its class."""
    if value is None or isinstance(value, (str, bytes, int, float, complex, Path)) or id(value) in seen:
        return []
    seen[id(value)] = value
    if isinstance(value, Definition):
        return [value]
    if isinstance(value, functools.partial):
        return _of_all([value.func, *value.args, *value.keywords.values()], seen)
    if isinstance(value, MethodType):
        return _of_all([value.__func__, value.__self__], seen)
    if isinstance(value, FunctionType):
        # A library's wrapper (torch.no_grad) adds nothing, what it wraps does.
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        own = _definition_of_code(value.__code__)
        held = [getattr(value, "__wrapped__", None), *cells] if own is None else cells
        return (own or []) + _of_all(held, seen)
    if isinstance(value, type):
        module = _project_module(value.__module__)
        return [] if module is None else resolved(module, value.__qualname__.split(".")[0])
    if isinstance(value, Mapping):
        return _of_all(list(value.values()), seen)
    if isinstance(value, (list, tuple, set, frozenset)):
        return _of_all(list(value), seen)
    if isinstance(value, torch.nn.Module):
        return _of_all(sorted({type(one) for one in value.modules()}, key=str), seen)
    if is_dataclass(value):
        return _of_all([type(value), *(getattr(value, one.name) for one in fields(value))], seen)
    return _of_object(type(value), seen)


def _of_all(values: list[Any], seen: dict[int, Any]) -> list[Definition]:
    return [one for value in values for one in _of_object(value, seen)]


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a function that names itself before it is made
        return False
    return True


def _definition_of_code(code: CodeType) -> list[Definition] | None:
    module = module_of_file(code.co_filename)
    if module is None:
        return None
    name = code.co_qualname
    if "." not in name and name != "<lambda>":
        return resolved(module, name)
    if "<" not in name:  # a method
        return resolved(module, name.split(".")[0])
    return [Definition(module, f"{code.co_name}:{code.co_firstlineno}")]


def _project_module(name: str) -> str | None:
    if name == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        name = "" if spec is None else spec.name
    return name if name in files_by_module() else None
