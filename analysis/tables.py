"""Tidy tables on disk: CSV that reads back as it was and that a spreadsheet does not run.

Takes and gives pandas tables. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from analysis.report import write_atomically

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


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table back. Raises FileNotFoundError, or ValueError for a file that is no table."""
    try:
        return pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a CSV table ({str(error).strip().splitlines()[0]})") from error
