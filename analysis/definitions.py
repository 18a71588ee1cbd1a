"""The definitions of this project's source files: where a name leads, what a definition names, and what it means.

Takes names of modules and of what they define; gives syntax trees as plain lists, without comments, docstrings, line
numbers and modules of imports, and the definitions that a definition names. Runs nothing, imports nothing.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("analysis", "attribution", "data_synth")
# Tables of methods and checks (an entry more changes no other), records of what is asked and what is known, and what
# tells code and values apart (it decides whether a stored number is taken, never what the number is).
NOT_FOLLOWED = frozenset(
    {"METHODS", "PIXEL_METHODS", "CHECKS", "LEFT_OUT", "CompareSettings", "Method", "Pass"}
    | {"code_sha256", "held_sha256"}
)
_STATEMENTS = "<statements>"  # of a module, outside any definition


@dataclass(frozen=True)
class Definition:
    """A top-level definition of a module, or a function nested in one (``name`` with its line)."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class _Module:
    """What a source file defines: name -> statements that bind it, and name -> (module, name or None) it imports."""

    tree: ast.Module
    definitions: Mapping[str, list[ast.stmt]]
    imports: Mapping[str, tuple[str, str | None]]


def lines_of(definition: Definition) -> list[tuple[int, int]]:
    """First and last lines of a definition in its file."""
    nodes = _nodes(definition)
    return [(_first_line(node), int(node.end_lineno or node.lineno)) for node in nodes]


@cache
def module_of_file(path: str) -> str | None:
    """The module of this project that a source file is, None for others."""
    return _modules_by_file().get(str(path)) or _modules_by_file().get(str(Path(path).resolve()))


@cache
def _modules_by_file() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[str(path)] = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return found


@cache
def files_by_module() -> dict[str, Path]:
    return {name: Path(path) for path, name in _modules_by_file().items()}


@cache
def parsed_module(module: str) -> _Module:
    tree = ast.parse(files_by_module()[module].read_bytes())
    definitions: dict[str, list[ast.stmt]] = {}
    imports: dict[str, tuple[str, str | None]] = {}
    for statement in tree.body:
        imports |= _imported(statement, module)
        if isinstance(statement, (ast.Import, ast.ImportFrom)) or _is_text(statement):
            continue
        for name in _bound(statement) or [_STATEMENTS]:
            definitions.setdefault(name, []).append(statement)
    return _Module(tree, definitions, imports)


def _imported(node: ast.AST, module: str) -> dict[str, tuple[str, str | None]]:
    """Names that the import statements at or below a node bind, but for those in functions, which bind there alone."""
    found: dict[str, tuple[str, str | None]] = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            whole = alias.name if alias.asname else alias.name.split(".")[0]
            found[alias.asname or whole] = (whole, None)
    elif isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            package = module if files_by_module()[module].name == "__init__.py" else module.rpartition(".")[0]
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*base, *([source] if source else [])])
        for alias in node.names:
            found[alias.asname or alias.name] = (source, alias.name)
    elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        for child in ast.iter_child_nodes(node):
            found |= _imported(child, module)
    return found


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module binds or changes."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    names = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            base: ast.expr = node
            while isinstance(base, (ast.Attribute, ast.Subscript)):
                base = base.value
            if isinstance(base, ast.Name):
                names.append(base.id)
    return list(dict.fromkeys(names))


def resolved(module: str, name: str) -> list[Definition]:
    """What a name of a module is: a definition there or, through imports, elsewhere; all of a module that is named."""
    parsed = parsed_module(module)
    if name in NOT_FOLLOWED:
        return []
    if name in parsed.definitions:
        return [Definition(module, name)]
    return _of_import(*parsed.imports[name]) if name in parsed.imports else []


def _of_import(source: str, name: str | None) -> list[Definition]:
    whole = source if name is None else f"{source}.{name}"
    if whole in files_by_module():
        return [Definition(whole, one) for one in sorted(parsed_module(whole).definitions)]
    return resolved(source, name) if name is not None and source in files_by_module() else []


@cache
def _nodes(definition: Definition) -> tuple[ast.stmt | ast.Lambda, ...]:
    parsed = parsed_module(definition.module)
    if definition.name in parsed.definitions:
        return tuple(parsed.definitions[definition.name])
    name, _, line = definition.name.rpartition(":")
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    found = [
        node
        for node in ast.walk(parsed.tree)
        if isinstance(node, functions)
        and _first_line(node) == int(line)
        and (name == "<lambda>" if isinstance(node, ast.Lambda) else node.name == name)
    ]
    if not found:  # a comprehension, or a file that changed under a running program
        raise ValueError(f"{definition.module}: expected a function {name} at line {line}")
    return tuple(found)


def _first_line(node: ast.stmt | ast.Lambda) -> int:
    return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])


@cache
def described(definition: Definition) -> tuple[str, list[tuple[str, Definition]]]:
    """The meaning of a definition, and every name in it that is one of this project with what it is."""
    nodes = _nodes(definition)
    names: dict[str, list[Definition]] = {}
    for node in nodes:
        local: dict[str, tuple[str, str | None]] = {}
        for inner in ast.walk(node):
            if isinstance(inner, (ast.Import, ast.ImportFrom)):
                local |= _imported(inner, definition.module)
        for name in _named(node, definition.module, local):
            first, *rest = name.split(".")
            if first in local:
                source, own = local[first]
                targets = _dotted(source if own is None else f"{source}.{own}", rest) or _of_import(source, own)
            else:
                imported = parsed_module(definition.module).imports.get(first)
                targets = []
                if imported is not None and rest:
                    targets = _dotted(imported[0] if imported[1] is None else ".".join(map(str, imported)), rest)
                targets = targets or resolved(definition.module, first)
            names[name] = targets
    if _STATEMENTS in parsed_module(definition.module).definitions and definition.name != _STATEMENTS:
        names[_STATEMENTS] = [Definition(definition.module, _STATEMENTS)]
    found = [(name, one) for name in sorted(names) for one in names[name] if one != definition]
    return json.dumps([_meaning(node) for node in nodes]), found


def _dotted(module: str, rest: list[str]) -> list[Definition]:
    """What ``module.a.b`` is, where that is a definition of a module of this project."""
    for name in rest:
        if module in files_by_module():
            found = resolved(module, name)
            if found or name in NOT_FOLLOWED:
                return found
        module = f"{module}.{name}"
    return []


def _named(node: ast.AST, module: str, local: Mapping[str, Any]) -> set[str]:
    """Every name at or below a node, and dotted names that begin with a module; those in annotations given as text
    too."""
    found: set[str] = set()
    aliases = {**parsed_module(module).imports, **local}
    skipped: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and id(inner) not in skipped:
            parts, base = [inner.attr], inner.value
            chain = [base]
            while isinstance(base, ast.Attribute):
                parts.append(base.attr)
                base = base.value
                chain.append(base)
            if isinstance(base, ast.Name) and base.id in aliases and _is_module(*aliases[base.id]):
                found.add(".".join([base.id, *reversed(parts)]))
                skipped |= {id(one) for one in chain}
        elif isinstance(inner, ast.Name) and id(inner) not in skipped:
            found.add(inner.id)
        for annotation in (getattr(inner, "annotation", None), getattr(inner, "returns", None)):
            for text in ast.walk(annotation) if isinstance(annotation, ast.AST) else ():
                if isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.isidentifier():
                    found.add(text.value)
    return found


def _is_module(source: str, name: str | None) -> bool:
    whole = source if name is None else f"{source}.{name}"
    return whole in files_by_module()


def _meaning(node: Any) -> Any:
    """A syntax tree as plain lists: without what is empty (fields that other versions of Python add), texts that stand
    as statements, and the modules of imports."""
    if isinstance(node, ast.AST):
        return [type(node).__name__, *([name, _meaning(value)] for name, value in _fields(node))]
    if isinstance(node, list):
        return [_meaning(one) for one in node if not _is_text(one)]
    return repr(node)


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    for name, value in ast.iter_fields(node):
        is_source = isinstance(node, (ast.Import, ast.ImportFrom)) and name in ("module", "level")
        if value not in (None, []) and name not in ("ctx", "type_comment", "kind") and not is_source:
            yield name, value


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
