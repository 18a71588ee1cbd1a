"""Tidy tables on disk: CSV that reads back as it was and that a spreadsheet does not run.

Takes and gives pandas tables. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.report import write_atomically

NO_NUMBER = ("", "nan", "NaN")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def escape_formula(value: object) -> object:
    """A string that a spreadsheet would take for a formula, made text by a leading quote; anything else as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def write_table(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write a table as CSV, whole or not at all: no index, ``\\n`` line ends, missing numbers as empty cells.

    Strings that could be read as formulas are escaped; numbers never are.
    """
    strings = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    escaped = table.assign(**{name: table[name].map(escape_formula) for name in strings})
    return write_atomically(path, escaped.to_csv(index=False, lineterminator="\n").encode())


def read_table(path: str | os.PathLike[str], texts: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table back; columns named in ``texts`` as they stand, an empty cell as an empty text. Raises
    FileNotFoundError, or ValueError for a file that is no table."""
    try:
        if not texts:
            return pd.read_csv(path)
        others = {str(name): list(NO_NUMBER) for name in pd.read_csv(path, nrows=0).columns if name not in texts}
        return pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=others)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a CSV table ({str(error).strip().splitlines()[0]})") from error


def require_numbers(table: pd.DataFrame, path: Path, columns: Sequence[str], *, whole: bool = False) -> None:
    """ValueError naming file, row and column of the first cell that is no finite number (or none from 0 on, without a
    fraction, where ``whole``)."""
    for name in columns:
        numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = ~np.isfinite(numbers)
        if whole:
            wrong |= (numbers < 0) | (numbers != np.floor(numbers))
        if wrong.any():
            place = int(wrong.argmax())
            expected = "a whole number from 0 on" if whole else "a finite number"
            row = int(table.index[place]) + 2  # as in the file, also of a part of its rows
            raise ValueError(f"{path}: row {row}: {name}: expected {expected}, got {table[name].iloc[place]}")


def require_all_heads(table: pd.DataFrame, path: Path) -> tuple[int, int]:
    """How many layers, and heads in each, a table with one row a head has (``layer``, ``head``, from 0). ValueError
    naming the file unless every head has one row."""
    missing = [name for name in ("layer", "head") if name not in table]
    if missing:
        raise ValueError(f"{path}: missing column(s) {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"{path}: expected a row for each head, got none")
    require_numbers(table, path, ("layer", "head"), whole=True)
    shape = int(table["layer"].max()) + 1, int(table["head"].max()) + 1
    if len(table) != shape[0] * shape[1] or table.duplicated(["layer", "head"]).any():
        raise ValueError(
            f"{path}: expected one row for each head of {shape[0]} layers x {shape[1]} heads, got {len(table)} rows"
        )
    return shape
