"""The settings of a comparison: defaults, a YAML file, the command line, in this order.

Takes a YAML file and option values; gives a checked :class:`CompareSettings`. Knows no model and no method.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from attribution.own_folder import require_folder_name

BUNDLED_MODEL = "bundled"
CONTROL_MODEL = "tiny-random"
MOST = 2**31 - 1  # of anything that is counted, and of seeds
AUTO = "auto"
DEFAULT_INTERVAL = 0.1
LISTS = ("methods", "truths", "checks")  # settings that are names, comma-separated on the command line


@dataclass(frozen=True)
class CompareSettings:
    """What ``python -m analysis.compare`` is asked to do.

    ``model``: ``bundled``, a folder written by ``attribution.finetune``, or ``tiny-random`` (a control: a small random
    network). ``data``: a preset of ``data_synth`` or a folder. ``methods``: names, or ``default``. ``steps`` of the
    path integrals of head methods, ``pixel_steps`` of pixel methods. ``estimate``: pictures to sweep for every truth,
    the effects on the others are estimated; None sweeps all, ``auto`` so many that 95 % intervals of the ten heads that
    matter most reach ``interval`` of the effect to either side.

    ``truths``: what removes a head (zero, mean, resample, counterfactual, optimal, shapley), and ``checks``, further
    trials of the methods (:mod:`analysis.checks`); ``default`` stands for the usual ones, or for all with ``methods:
    all``. What is expensive takes the first pictures alone: ``path_pictures`` for methods of many passes,
    ``resample_pictures`` and ``shapley_pictures`` for these truths, ``curve_pictures`` for removal in each method's
    order, knock-out, and heads with and without text, ``distraction_pictures`` for whether heads matter more where
    something irrelevant is shown, ``check_pictures`` for the other checks. Where effects are estimated all truths take
    all pictures.
    """

    output_dir: str | None = None
    model: str = BUNDLED_MODEL
    data: str = "default"
    methods: tuple[str, ...] = ("default",)
    truths: tuple[str, ...] = ("default",)
    checks: tuple[str, ...] = ("default",)
    num_pictures: int = 16
    steps: int = 16
    pixel_steps: int = 8
    estimate: int | str | None = None
    interval: float | None = None
    path_pictures: int = 32
    resample_pictures: int = 128
    shapley_pictures: int = 16
    curve_pictures: int = 32
    distraction_pictures: int = 32
    check_pictures: int = 16
    permutations: int = 10
    batch_size: int = 16
    bootstrap_replicates: int = 2000
    num_permutations: int = 9999
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least = {"steps": 1, "pixel_steps": 1, "batch_size": 1, "bootstrap_replicates": 10, "num_permutations": 10}
        at_least |= {name: 2 for name in vars(self) if name.endswith("_pictures")} | {"permutations": 1}
        for name, least in {**at_least, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected a whole number >= {least}, got {_told(value)}")
            if value > MOST:
                raise ValueError(f"{name}: expected a whole number up to {MOST}, got {value}")
        if self.estimate not in (None, AUTO) and (
            not isinstance(self.estimate, int) or isinstance(self.estimate, bool) or not 3 <= self.estimate <= MOST
        ):
            expected = f"a whole number >= 3, up to {MOST}, or {AUTO}"
            raise ValueError(f"estimate: expected {expected}, got {_told(self.estimate)}")
        if (self.interval is None) != (self.estimate != AUTO):
            raise ValueError(f"interval: expected with --estimate {AUTO}, and there, got {_told(self.interval)}")
        if self.interval is not None and (
            not isinstance(self.interval, float) or not 0 < self.interval <= 1  # NaN is neither
        ):
            raise ValueError(f"interval: expected a share above 0 and up to 1, or 10%, got {_told(self.interval)}")
        for name in ("model", "data", "device"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a text, got {_told(getattr(self, name))}")
        if self.output_dir is not None and not isinstance(self.output_dir, str):
            raise ValueError(f"output_dir: expected a text, got {_told(self.output_dir)}")
        if self.output_dir is not None:
            require_folder_name(self.output_dir, "output_dir")
        for name in LISTS:
            value = getattr(self, name)
            if not value or not all(isinstance(one, str) for one in value):
                raise ValueError(f"{name}: expected a list of names, got {_told(value)}")


class _PlainLoader(yaml.SafeLoader):
    """YAML as settings need it: a value stands where it is used, and a key once. A few lines of aliases may stand for
    more than fits anywhere, and of a key's two values one would be lost in silence."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node; ComposerError for an alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(
                None, None, f"line {mark.line + 1}: found an alias (*), expected values written out", mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A table; ConstructorError for a key that is there twice."""
        known = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in known:
                line = key.start_mark.line + 1
                raise ConstructorError(
                    None, None, f"line {line}: {key.value}: expected once, it is there twice", key.start_mark
                )
            known.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def read_settings(path: Path) -> CompareSettings:
    """Settings from a YAML file without aliases. Raises ValueError naming the file and key for anything it does not
    know, and for a key that is there twice."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a table of settings, got {type(content).__name__}")
    try:
        return with_overrides(CompareSettings(), content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _told(value: object) -> str:
    """A value in a message, shortened where it is long or deep."""
    return reprlib.repr(value)


def with_overrides(settings: CompareSettings, values: Mapping[str, Any]) -> CompareSettings:
    """Settings with some values replaced; hyphens in names count as underscores. ValueError for an unknown name."""
    known = {field.name for field in fields(CompareSettings)}
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in named:
            raise ValueError(f"{name}: expected once, it is there with - and with _")
        named[name] = value
    unknown = sorted(set(named) - known)
    if unknown:
        raise ValueError(f"unknown key {', '.join(unknown)}, expected one of {', '.join(sorted(known))}")
    for name in LISTS:
        if name in named:
            given = named[name]
            if not isinstance(given, (str, list, tuple)):
                raise ValueError(f"{name}: expected a list of names, got {_told(given)}")
            given = given.split(",") if isinstance(given, str) else given
            named[name] = tuple(one.strip() if isinstance(one, str) else one for one in given)
    if "estimate" in named:
        named["estimate"] = _number_or_auto(named["estimate"])
        of_auto = DEFAULT_INTERVAL if settings.interval is None else settings.interval
        named.setdefault("interval", of_auto if named["estimate"] == AUTO else None)
    if "interval" in named:
        named["interval"] = _share(named["interval"])
    return replace(settings, **named)


def _number_or_auto(value: Any) -> Any:
    """A number that was given as text as a number; anything else as it is, for the settings to refuse."""
    try:
        return int(value) if isinstance(value, str) and value != AUTO else value
    except ValueError:
        return value


def _share(value: Any) -> Any:
    """`10%`, `0.1` and 1 as a share; anything else as it is, for the settings to refuse."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return value
    text = str(value).strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return value
