"""What a user's method is made of: whatever changes its numbers changes its digest, or it is not reused."""

import collections
import contextvars
import dataclasses
import datetime
import decimal
import functools
import importlib.util
import operator
import sys
import threading
import weakref

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
    "deque": lambda x: collections.deque([1, 2 + x]),
    "length of a deque": lambda x: collections.deque([1], maxlen=2 + x),
    "decimal": lambda x: decimal.Decimal(1 + x),
    "date": lambda x: datetime.date(2020, 1, 1 + x),
    "timedelta": lambda x: datetime.timedelta(days=x),
    "itemgetter": lambda x: operator.itemgetter(x),
    "methodcaller": lambda x: operator.methodcaller("sum", x),
    "keywords of a methodcaller": lambda x: operator.methodcaller("sum", dim=x),
    "mask": lambda x: np.ma.masked_array([1.0, 2.0], mask=[0, x]),
    "factory": lambda x: collections.defaultdict(int if x else list, a=1),
    "entries beside a factory": lambda x: collections.defaultdict(int, a=1 + x),
    "counter": lambda x: collections.Counter({"a": 1 + x}),
    "namedtuple": lambda x: Pair(1, 2 + x),
    "dataclass": lambda x: Options(1 + x),
    "list of one's own": lambda x: OwnList([1, 2 + x]),
    "scale of a list": lambda x: scaled(OwnList([1]), x),
    "mapping of one's own": lambda x: OwnDict(a=1 + x),
    "scale of a mapping": lambda x: scaled(OwnDict(a=1), x),
    "tuple of one's own": lambda x: OwnTuple((1, 2 + x)),
    "scale of a tuple": lambda x: scaled(OwnTuple((1,)), x),
    "set of one's own": lambda x: OwnSet({1 + x}),
    "scale of a set": lambda x: scaled(OwnSet({1}), x),
    "text of one's own": lambda x: OwnStr(f"a{x}"),
    "scale of a text": lambda x: scaled(OwnStr("a"), x),
    "number of one's own": lambda x: OwnInt(x),
    "scale of a number": lambda x: scaled(OwnInt(1), x),
    "float of one's own": lambda x: OwnFloat(x + 0.5),
    "scale of a float": lambda x: scaled(OwnFloat(0.5), x),
    "array of one's own": lambda x: np.array([1.0, 2.0 + x]).view(OwnArray),
    "scale of an array": lambda x: scaled(np.ones(2).view(OwnArray), x),
    "attribute of a tensor": lambda x: scaled(torch.ones(2), x),
    "attribute of a parameter": lambda x: scaled(torch.nn.Parameter(torch.ones(2)), x),
    "tensor of one's own": lambda x: torch.full((2,), 1.0 + x).as_subclass(OwnTensor),
    "scale of a tensor of one's own": lambda x: scaled(torch.ones(2).as_subclass(OwnTensor), x),
    "attribute of a partial": lambda x: scaled(functools.partial(with_default), x),
    "slice of a tensor": lambda x: slice(np.array([x])),
    "class of equal content": lambda x: OwnList([1]) if x else OtherList([1]),
}
Pair = collections.namedtuple("Pair", ["a", "b"])


@dataclasses.dataclass(frozen=True)
class Options:
    scale: int


class OwnList(list):
    pass


class OtherList(list):
    pass


class OwnDict(dict):
    pass


class OwnTuple(tuple):
    pass


class OwnSet(set):
    pass


class OwnStr(str):
    pass


class OwnInt(int):
    pass


class OwnFloat(float):
    pass


class OwnArray(np.ndarray):
    pass


class OwnTensor(torch.Tensor):
    pass


def scaled(value, scale):
    value.scale = scale
    return value


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


def digests(tmp_path, texts):
    """Digests of the method in each version of a user's files, given by name of module."""
    found = []
    for version, modules in enumerate(texts):
        folder = tmp_path / str(version)
        folder.mkdir()
        loaded = [load(folder, name, text) for name, text in modules.items()]
        found.append(held_sha256(loaded[-1].method))
    for modules in texts:
        for name in modules:
            sys.modules.pop(name, None)
    return found


INSIDE = {
    "import of a name": "from helper_of_mine import S; return S",
    "import of a module": "import helper_of_mine; return helper_of_mine.S",
    "import under another name": "import helper_of_mine as h; return h.S",
    "import in a function inside": "def f():\n        from helper_of_mine import S; return S\n    return f()",
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_module_that_the_method_imports_itself(tmp_path, name):
    text = f"def method(model, batch, settings):\n    {INSIDE[name]}\n"
    versions = [{"helper_of_mine": f"S = {number}\n", "method_of_mine": text} for number in (1, 1, 2)]
    same, again, other = digests(tmp_path, versions)
    assert same == again != other


def test_a_library_that_the_method_imports_is_known(tmp_path):
    text = (
        "def method(model, batch, settings):\n    import math, torch\n    from {} import gate_ixg\n    return torch\n"
    )
    texts = [{"method_of_mine": text.format("attribution.gates")}] * 2
    assert len(set(digests(tmp_path, texts))) == 1


MEMBERS = {
    "cached method": "    @functools.cache\n    def f(self):\n        return S()\n",
    "cached property": "    @functools.cached_property\n    def f(self):\n        return S()\n",
    "partial method": "    def g(self, s):\n        return s\n    f = functools.partialmethod(g, S())\n",
    "descriptor": "    f = Descriptor(S())\n",
    "call of a descriptor": "    __call__ = Descriptor(S())\n",
    "number with a name like Python's": "    __scale__ = S()\n",
    "static method that is cached": "    f = staticmethod(functools.cache(lambda: S()))\n",
}
OF_MEMBERS = """import functools
from helper_of_mine import S
class Descriptor:
    def __init__(self, s):
        self.s = s
    def __get__(self, one, kind=None):
        return self.s
class Mine:
{}
def method(model, batch, settings):
    return Mine()
"""


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_of_a_class_that_is_no_plain_function(tmp_path, name):
    text = OF_MEMBERS.format(MEMBERS[name])
    versions = [{"helper_of_mine": f"def S():\n    return {x}\n", "method_of_mine": text} for x in (1, 1, 2)]
    same, again, other = digests(tmp_path, versions)
    assert same == again != other


OTHERS = {
    "metaclass": "class Meta(type):\n    def __call__(cls):\n        return S()\n"
    "class Mine(metaclass=Meta):\n    pass\ndef method(model, batch, settings):\n    return Mine()\n",
    "method of a member of an enum": "import enum\nclass Mine(enum.Enum):\n    A = 1\n    def f(self):\n"
    "        return S()\ndef method(model, batch, settings, one=Mine.A):\n    return one.f()\n",
    "attribute of a module": "import helper_of_mine as h\ndef method(model, batch, settings):\n    return h.anything\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_class_or_a_module_does_of_itself(tmp_path, name):
    """A helper of the helper's changes, so that no source file of what is named does."""
    helper = "from helper_of_helper import S\ndef __getattr__(name):\n    if name == 'anything':\n        return S()\n"
    helper += "    raise AttributeError(name)\n"
    versions = [
        {
            "helper_of_helper": f"def S():\n    return {x}\n",
            "helper_of_mine": helper,
            "method_of_mine": "from helper_of_helper import S\n" + OTHERS[name],
        }
        for x in (1, 1, 2)
    ]
    same, again, other = digests(tmp_path, versions)
    assert same == again != other


READERS = [
    "import importlib\ndef method(*_):\n    return importlib.import_module('json')\n",
    "from importlib import import_module as f\ndef method(*_):\n    return f('json')\n",
    "def method(*_):\n    return __import__('json')\n",
    "def method(*_):\n    return globals()['S']\n",
    "def method(*_):\n    return eval('S')\n",
    "import os\ndef method(*_):\n    return os.environ['S']\n",
    "import os\ndef method(*_):\n    return os.getenv('S')\n",
    "from os import getenv as f\ndef method(*_):\n    return f('S')\n",
    "import sys\ndef method(*_):\n    return sys.modules['json']\n",
    "def method(*_):\n    return open('x').read()\n",
    "import numpy as np\ndef method(*_):\n    return np.load('x')\n",
    "from numpy import load as f\ndef method(*_):\n    return f('x')\n",
    "def method(*_):\n    from numpy import load\n    return load('x')\n",
    "import torch\ndef method(*_):\n    return torch.load('x')\n",
    "from pathlib import Path\ndef method(*_):\n    return Path('x').read_text()\n",
    "def method(*_):\n    return [(lambda: open('x'))() for _ in range(2)]\n",
    "def helper():\n    return open('x')\ndef method(*_):\n    return helper()\n",
    "class A:\n    def f(self):\n        return open('x')\ndef method(*_):\n    return A().f()\n",
    "def method(*_):\n    import no_such_module\n",
]


@pytest.mark.parametrize("text", READERS)
def test_what_a_method_reads_while_it_runs_is_unknown(tmp_path, text):
    with pytest.raises(Unknown, match=r"reaches by|imports"):
        digests(tmp_path, [{"method_of_mine": text}])
    sys.modules.pop("method_of_mine", None)


def test_names_of_ones_own_that_sound_like_reading_are_looked_into(tmp_path):
    text = "def load_scale():\n    return 1\n"
    text += "def method(model, *_):\n    model.load_state_dict({})\n    return load_scale()\n"
    assert len(set(digests(tmp_path, [{"method_of_mine": text}] * 2))) == 1


def test_a_method_of_this_project_is_told_by_what_it_means():
    assert held_sha256(METHODS["gate_ixg"].function) == held_sha256(gate_ixg)
    digests = [told_apart({name: method})["methods"][name] for name, method in METHODS.items()]
    assert len(set(digests)) == len(METHODS)


UNKNOWN_VALUES = [
    *(threading.Lock(), sys.__stdin__, (n for n in [1]), torch.empty(2, device="meta"), threading.local()),
    *(contextvars.ContextVar("x"), torch.eye(2).to_sparse(), weakref.ref(Scorer), np.frompyfunc(closing_over(1), 3, 1)),
]


@pytest.mark.parametrize("held", UNKNOWN_VALUES)
def test_what_cannot_be_known_is_said(held):
    with pytest.raises(Unknown):
        held_sha256(closing_over(held))
    found = told_apart({"mine": Method("mine", closing_over(held)), "gate_ixg": METHODS["gate_ixg"]})
    assert list(found["methods"]) == ["gate_ixg"]
    [line] = found[UNKNOWN]
    assert line.startswith("mine: ") and "computed anew every time" in line and "\n" not in line


def test_the_line_is_one_line():
    assert "\n" not in describe_unknown("mine", Unknown("a\nb"))
