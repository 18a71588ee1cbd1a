"""What a user's method is made of: whatever changes its numbers changes its digest, or it is not reused."""

import functools
import importlib.util
import sys
import threading

import numpy as np
import pytest
import torch

from analysis.held_values import Unknown, describe_unknown, held_sha256
from analysis.passes import UNKNOWN, told_apart
from attribution.gates import gate_ixg
from attribution.method import Method
from attribution.methods import METHODS

FACTOR = 1.0


def closing_over(value):
    def method(model, batch, settings):
        return value

    return method


def with_default(model, batch, settings, scale=1.0):
    return scale


def of_a_global(model, batch, settings):
    return FACTOR * gate_ixg(model, batch, settings)


class Scorer:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, model, batch, settings):
        return self.scale

    def scores(self, model, batch, settings):
        return self.scale


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale

    def scores(self, model, batch, settings):
        return self.scale


def linear(weight):
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(weight), layer.bias.fill_(0)
    return layer


VALUES = {
    "number": lambda x: 1.0 + x,
    "text": lambda x: f"a{x}",
    "tensor": lambda x: torch.tensor([1.0, 2.0 + x]),
    "bfloat16": lambda x: torch.tensor([1.0, 2.0 + x]).bfloat16(),
    "array": lambda x: np.array([1.0, 2.0 + x]),
    "objects": lambda x: np.array([1, "b", 2.0 + x], dtype=object),
    "type of array": lambda x: np.zeros(3, dtype=np.float32 if x else np.float64),
    "mapping": lambda x: {"a": [1, {"b": torch.full((2,), float(x))}]},
    "order of keys": lambda x: {"a": 1, "b": 2} if x else {"b": 2, "a": 1},
    "set": lambda x: {1, 2, 3 + x},
    "network": lambda x: linear(1.0 + x),
    "training flag": lambda x: linear(1.0).train(bool(x)),
    "object": lambda x: Scorer(1 + x),
    "object that holds an object": lambda x: Scorer(Scorer(np.array([x]))),
    "slots": lambda x: Slotted(1 + x),
    "generator": lambda x: np.random.default_rng(x),
    "partial": lambda x: functools.partial(with_default, scale=1.0 + x),
    "function": lambda x: closing_over(x),
    "cached function": lambda x: functools.cache(closing_over(x)),
    "decorated function": lambda x: torch.no_grad()(closing_over(x)),
    "module": lambda x: np if x else torch,
}


@pytest.mark.parametrize("name", VALUES)
def test_another_value_is_another_method(name):
    make = VALUES[name]
    same, again, other = (held_sha256(closing_over(make(x))) for x in (0, 0, 1))
    assert same == again and same != other


def test_every_way_to_bind_a_value():
    assert held_sha256(functools.partial(with_default, scale=2)) == held_sha256(
        functools.partial(with_default, scale=2)
    )
    found = [
        with_default,
        functools.partial(with_default, scale=2),
        functools.partial(with_default, scale=3),
        Scorer(1),
        Scorer(2),
        Scorer(1).scores,
        Scorer(2).scores,
        Slotted(1).scores,
        Slotted(2).scores,
        closing_over(1),
        gate_ixg,
    ]
    assert len({held_sha256(one) for one in found}) == len(found)


def test_a_global_that_was_changed(monkeypatch):
    before = held_sha256(of_a_global)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2.0)
    assert held_sha256(of_a_global) != before
    monkeypatch.undo()
    assert held_sha256(of_a_global) == before


def test_a_default_that_was_changed():
    before = held_sha256(with_default)
    with_default.__defaults__ = (2.0,)
    try:
        assert held_sha256(with_default) != before
    finally:
        with_default.__defaults__ = (1.0,)


def load(folder, name, text):
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


METHOD = "from helpers_of_mine import sign\n\ndef method(model, batch, settings):\n    return sign() * helper()\n\n"


@pytest.mark.parametrize(
    ("method", "helper"),
    [
        (METHOD + "def helper():\n    return -1\n", "def sign():\n    return 1\n"),
        (METHOD + "def helper():\n    return 1\n", "def sign():\n    return -1\n"),
    ],
)
def test_a_helper_that_was_changed(tmp_path, monkeypatch, method, helper):
    """A changed sign in a function that the method calls, beside it or in another file of the user's."""
    found = []
    for version, (own, other) in enumerate(
        [(METHOD + "def helper():\n    return 1\n", "def sign():\n    return 1\n"), (method, helper)]
    ):
        folder = tmp_path / str(version)
        folder.mkdir()
        load(folder, "helpers_of_mine", other)
        found.append(held_sha256(load(folder, "method_of_mine", own).method))
    for name in ("helpers_of_mine", "method_of_mine"):
        sys.modules.pop(name)
    assert found[0] != found[1]


def test_a_method_of_this_project_is_told_by_what_it_means():
    assert held_sha256(METHODS["gate_ixg"].function) == held_sha256(gate_ixg)
    digests = [told_apart({name: method})["methods"][name] for name, method in METHODS.items()]
    assert len(set(digests)) == len(METHODS)


@pytest.mark.parametrize("held", [threading.Lock(), sys.__stdin__, (n for n in [1]), torch.empty(2, device="meta")])
def test_what_cannot_be_known_is_said(held):
    with pytest.raises(Unknown):
        held_sha256(closing_over(held))
    found = told_apart({"mine": Method("mine", closing_over(held)), "gate_ixg": METHODS["gate_ixg"]})
    assert list(found["methods"]) == ["gate_ixg"]
    [line] = found[UNKNOWN]
    assert line.startswith("mine: ") and "computed anew every time" in line and "\n" not in line


def test_the_line_is_one_line():
    assert "\n" not in describe_unknown("mine", Unknown("a\nb"))
