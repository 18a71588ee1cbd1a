"""The methods as a text table, and what is left out of it, and why.

Takes the tables of `attribution.methods` and settings; gives text. Runs nothing.
"""

import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from attribution.batch import MethodSettings
from attribution.method import Method, cost
from attribution.methods import METHODS, PIXEL_METHODS

_WRAPPED: dict[str, Any] = {"width": 120, "initial_indent": "  ", "subsequent_indent": "      "}

LEFT_OUT: dict[str, str] = {
    "LRP": "has no rule for LayerNorm and GELU",
    "GuidedBackprop": "touches only the two ReLUs of the regression head, the backbone has none",
    "Deconvolution": "touches only the two ReLUs of the regression head, the backbone has none",
    "KernelShap, Lime": "need thousands of forward passes per picture for the gates of all heads",
    "LayerGradCam (for heads)": "averages over the channels of all heads, so it cannot tell heads apart",
    "FeatureAblation (of the gates)": "is zero ablation itself: the test of the truth, not a method on trial",
    "ShapleyValueSampling (of the gates)": "a truth that knows redundancy, on few pictures; not a method on trial",
}


def describe(
    methods: Mapping[str, Method] | None = None,
    settings: MethodSettings | None = None,
    *,
    num_layers: int = 12,
    num_targets: int = 3,
) -> str:
    """A text table of the methods (head methods, then pixel methods, unless given), and in words what each is.

    Unless methods are given, also what is left out, and why. Lines are at most 120 characters as long as names are
    short.
    """
    settings = MethodSettings() if settings is None else settings
    tables = {"heads": METHODS, "pixels": PIXEL_METHODS} if methods is None else {"": methods}
    rows: list[tuple[str, ...]] = [
        ("method", "gives", "family", "paper", "sign", "fwd", "bwd", "default", "approximate, needs")
    ]
    words: list[str] = []
    for gives, table in tables.items():
        words += ["", f"What the methods for {gives} are:" if gives else "What they are:"]
        for name, method in table.items():
            passes = cost(method, settings, num_layers=num_layers, num_targets=num_targets)
            sign = "signed" if method.signed else method.direction
            default = "yes" if method.default else "no"
            remarks = ", ".join(
                ("approximate",) * method.approximate
                + tuple(name.removesuffix("_pixel_values") for name in method.needs)
            )
            rows.append((name, gives, method.family, method.paper, sign, *map(str, passes), default, remarks))
            words.append(textwrap.fill(f"{name}: {_what(method)}", **_WRAPPED))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [
        "",
        f"fwd, bwd: passes per picture at {settings.steps} steps, {num_layers} layers, {num_targets} targets.",
        "sign: signed, if scores predict the sign of the effect; else whether a larger (+) or smaller (-) one matters.",
        "approximate: has no rule for some operation of the model. needs: what else a picture needs.",
        *words,
    ]
    if methods is None:
        lines += ["", "Left out:", *(textwrap.fill(f"{name}: {why}", **_WRAPPED) for name, why in LEFT_OUT.items())]
    return "\n".join(lines)


def _what(method: Method) -> str:
    """First line of the function's docstring, and what else is to be known."""
    doc = (inspect.getdoc(method.function) or "").split("\n")[0].rstrip(".")
    return "; ".join(part for part in (doc, method.note) if part)
