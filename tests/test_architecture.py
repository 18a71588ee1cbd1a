"""The house: which package may import which, and that no room lacks a name."""

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("analysis", "attribution", "data_synth")
ALLOWED = {
    "analysis": {"analysis", "attribution", "data_synth"},
    "attribution": {"attribution"},
    "data_synth": {"data_synth"},
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported_packages(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield path.relative_to(ROOT).parts[0] if node.level else node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    assert {name for name in imported_packages(path) if name in PACKAGES} <= ALLOWED[package]


def module_imports():
    """Module -> modules of the same package it imports."""
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    base = ".".join([*name.split(".")[: -node.level], *([base] if base else [])])
                found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        graph[name] = found
    return {name: {other for other in found if other in graph and other != name} for name, found in graph.items()}


def test_no_module_imports_itself_in_a_circle():
    graph = module_imports()

    def reachable(start):
        seen, waiting = set(), list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    assert [name for name in graph if name in reachable(name)] == []


def test_no_room_without_a_name():
    assert not {path.stem for path in FILES} & {"utils", "common", "base", "helpers", "core", "misc"}


def test_models_are_described_without_pickles():
    assert not [
        path
        for pattern in ("*.pt", "*.pth", "*.pkl", "*.bin")
        for path in (ROOT / "attribution" / "models").glob(f"*/{pattern}")
    ]


def test_every_package_is_installed():
    """setuptools takes what setup.cfg lists and nothing else."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(settings["options"]["packages"].split())
    assert listed == {".".join(path.relative_to(ROOT).parts[:-1]) for path in FILES}
