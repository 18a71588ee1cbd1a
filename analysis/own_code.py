"""Which of this project's code a score depends on, so that a change elsewhere does not cost its recomputation.

Takes names of modules; gives one digest over them and over all of ``attribution`` that those of ``attribution`` import,
however deep. The tables of methods are not followed: a new method in them changes no other method. Modules of
``analysis`` count by themselves alone: they call what is named beside them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

TABLES = ("attribution.head_methods", "attribution.pixel_methods", "attribution.catalogue")


def code_sha256(modules: Iterable[str]) -> str:
    """Digest of the source of these modules and of every module of ``attribution`` behind them (see above)."""
    digest = hashlib.sha256()
    for name in sorted(behind(frozenset(modules))):
        digest.update(name.encode())
        digest.update(_source(name))
    return digest.hexdigest()


@cache
def behind(modules: frozenset[str]) -> frozenset[str]:
    """These modules, and what those of ``attribution`` import of it, however deep. ValueError where a file lacks."""
    found: set[str] = set()
    waiting = sorted(modules)
    while waiting:
        name = waiting.pop()
        if name in found or name in TABLES:
            continue
        found.add(name)
        if name.startswith("attribution."):
            waiting += sorted(_imported(name) - found)
    return frozenset(found)


@cache
def _source(name: str) -> bytes:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"{name}: expected a module with a source file")
    return Path(spec.origin).read_bytes()


def _imported(name: str) -> set[str]:
    """The modules of ``attribution`` that a module names in its imports, wherever in it they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(_source(name))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "attribution"}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {one for one in found if one.startswith("attribution.") and importlib.util.find_spec(one) is not None}
