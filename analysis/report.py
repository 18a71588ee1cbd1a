"""The page a person reads: text, pictures and tables of a run in one self-contained HTML file.

Takes plain strings, PNG files and pandas tables; gives a file that needs no network, no script and no
neighbour: pictures are embedded, the style is inline, a content policy forbids everything else. All text is
escaped (jinja2 autoescape). The same input gives the same bytes. Knows neither methods nor figures: what the
page says is decided by its caller.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from attribution.atomic_writing import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    answer: Sequence[str],
    warnings: Sequence[str] = (),
    figures: Sequence[tuple[str, str, str | os.PathLike[str]]] = (),
    tables: Sequence[tuple[str, str, pd.DataFrame]] = (),
    manifest: Mapping[str, Any] | None = None,
    max_rows: int = 200,
) -> Path:
    """Write the page to `path`, whole or not at all, and give the path.

    `figures` are (title, caption, PNG file), `tables` (title, caption, table), shown in the order given.
    Of a table the columns are shown, not the index; `layer, head` become one, `L5H3`; beyond `max_rows` rows
    it is cut and says so.
    `manifest` is shown as dotted keys and values. FileNotFoundError: no such picture. ValueError: not a PNG.
    """
    taken: set[str] = set()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        answer=list(answer),
        warnings=list(warnings),
        figures=[_figure(_anchor("figure", name, taken), name, caption, Path(png)) for name, caption, png in figures],
        tables=[
            _table(_anchor("table", name, taken), name, caption, table, max_rows) for name, caption, table in tables
        ],
        manifest=flatten_manifest(manifest or {}),
    )
    return write_atomically(path, page.encode("utf-8"))


def format_cell(value: Any) -> str:
    """A table cell as text: integers plain, other numbers to three significant digits, missing as a dash."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
        if isinstance(value, float) and math.isnan(value):
            return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value).replace("-", "−")
    if not isinstance(value, float):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if value == 0:
        text = "0"
    elif size >= 1e7 or size < 1e-4:
        text = f"{value:.1e}"
    else:
        decimals = max(0, 2 - math.floor(math.log10(float(f"{size:.2e}"))))
        text = f"{value:,.{decimals}f}" if size >= 1e4 else f"{value:.{decimals}f}"
    return text.replace("-", "−")


def flatten_manifest(manifest: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted key, value) in the given order; strings as they are, the rest as JSON."""
    pairs: list[tuple[str, str]] = []
    for key, value in manifest.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            pairs += flatten_manifest(value, f"{name}.")
        else:
            pairs.append(
                (
                    name,
                    value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str),
                )
            )
    return pairs


@dataclass(frozen=True)
class _Figure:
    anchor: str
    title: str
    caption: str
    width: int
    height: int
    base64: str


@dataclass(frozen=True)
class _Table:
    anchor: str
    title: str
    caption: str
    columns: list[str]
    numeric: list[bool]
    rows: list[list[str]]
    total_rows: int


def _figure(anchor: str, title: str, caption: str, png: Path) -> _Figure:
    content = png.read_bytes()
    if not content.startswith(_PNG_SIGNATURE) or len(content) < 33:
        raise ValueError(f"{png}: expected a PNG picture for the figure {title!r}")
    width, height = struct.unpack(">II", content[16:24])  # IHDR, always the first chunk
    return _Figure(anchor, title, caption, width, height, base64.b64encode(content).decode("ascii"))


def _table(anchor: str, title: str, caption: str, table: pd.DataFrame, max_rows: int) -> _Table:
    shown = table.iloc[:max_rows].copy()
    if {"layer", "head"} <= set(shown.columns) and shown[["layer", "head"]].notna().all(axis=None):
        pairs = zip(shown["layer"], shown["head"], strict=True)
        shown["head"] = [f"L{int(layer)}H{int(head)}" for layer, head in pairs]
        shown = shown.drop(columns="layer")
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in shown.dtypes]
    columns = [[format_cell(value) for value in _whole(shown.iloc[:, at])] for at in range(shown.shape[1])]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return _Table(anchor, title, caption, [str(name) for name in shown.columns], numeric, rows, len(table))


def _whole(column: pd.Series) -> list[Any]:
    """Values of a column; floats that are all whole numbers (ranks beside missing values) as integers."""
    values = column.tolist()
    finite = [v for v in values if isinstance(v, float) and math.isfinite(v)]
    if finite and all(v == int(v) and abs(v) < 1e15 for v in finite):
        return [int(v) if isinstance(v, float) and math.isfinite(v) else v for v in values]
    return values


def _anchor(kind: str, title: str, taken: set[str]) -> str:
    """A link target from a title: ASCII, unique on the page."""
    stem = f"{kind}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}".rstrip("-")
    anchor, number = stem, 1
    while anchor in taken:
        number += 1
        anchor = f"{stem}-{number}"
    taken.add(anchor)
    return anchor
