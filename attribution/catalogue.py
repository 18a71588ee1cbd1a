"""The methods as a text table, and what is left out of it, and why.

Takes the tables of `attribution.methods` and settings; gives text. Runs nothing.
"""

import inspect
from collections.abc import Mapping

from attribution.batch import MethodSettings
from attribution.method import Method, cost
from attribution.methods import METHODS, PIXEL_METHODS

LEFT_OUT: dict[str, str] = {
    "LRP": "has no rule for LayerNorm and GELU",
    "GuidedBackprop": "touches only the two ReLUs of the regression head, the backbone has none",
    "Deconvolution": "touches only the two ReLUs of the regression head, the backbone has none",
    "KernelShap, Lime": "need thousands of forward passes per picture for the gates of all heads",
    "LayerGradCam (for heads)": "averages over the channels of all heads, so it cannot tell heads apart",
}


def describe(
    methods: Mapping[str, Method] | None = None,
    settings: MethodSettings | None = None,
    *,
    num_layers: int = 12,
    num_targets: int = 3,
) -> str:
    """A text table of the methods (head methods, then pixel methods, unless given) and of what is left out, and why."""
    settings = MethodSettings() if settings is None else settings
    rows: list[tuple[str, ...]] = [
        ("method", "gives", "family", "paper", "sign", "fwd", "bwd", "default", "what it is")
    ]
    for gives, table in (("heads", METHODS), ("pixels", PIXEL_METHODS)) if methods is None else (("", methods),):
        for name, method in table.items():
            passes = cost(method, settings, num_layers=num_layers, num_targets=num_targets)
            sign = "signed" if method.signed else method.direction
            doc = (inspect.getdoc(method.function) or "").split("\n")[0].rstrip(".")
            what = "; ".join(part for part in (doc, method.note, "approximate" if method.approximate else "") if part)
            default = "yes" if method.default else "no"
            rows.append((name, gives, method.family, method.paper, sign, *map(str, passes), default, what))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [
        "",
        f"fwd, bwd: passes per picture at {settings.steps} steps, {num_layers} layers, {num_targets} targets.",
    ]
    if methods is None:
        lines += ["Left out:", *(f"  {name}: {reason}" for name, reason in LEFT_OUT.items())]
    return "\n".join(lines)
