"""results/README.md and the committed tables name the same columns.

Each table is looked up in the rows that name its file, and in the list of columns that tables share. Every name in
backticks there must be a column of the table, a family of them (`score_<method>`, `shift_…`, `_trimmed`), a value in
it, a file or an option; and every column of the table must be among the names.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.intervals import bootstrap_indices
from analysis.scorecard import Truth, scorecard_table

RESULTS = Path(__file__).resolve().parents[1] / "results"
README = RESULTS / "README.md"
RUN_FOLDERS = ("reference", "published", "colorbar", "seed-1", "seed-2")


@dataclass
class Read:
    """What the page says: names by file (relative to the folder of results), of which file a table has the columns
    ("as `claims.csv`"), and names that tables share."""

    named: dict[str, set[str]] = field(default_factory=dict)
    like: dict[str, str] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)


def cells_of(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def names_in(text):
    """What stands in backticks; several names may share a pair."""
    return {name.strip() for quoted in re.findall(r"`([^`]+)`", text) for name in quoted.split(",")}


@cache
def read_page():
    """A file without a folder lies in that of the last link before the table to a folder, else in a run's."""
    page, folder, header = Read(), "reference", []
    lines = README.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("|"):
            links = [link for link in re.findall(r"\]\(([\w./-]+)\)", line) if (RESULTS / link).is_dir()]
            folder = links[-1] if links else folder
            if line.startswith("## "):
                folder = "reference"
            continue
        cells = cells_of(line)
        if number + 1 < len(lines) and re.fullmatch(r"\|( ?:?-+:? ?\|)+", lines[number + 1]):
            header = cells
        elif header[0] == "column":
            page.shared |= names_in(" ".join(cells))
        else:
            for file in names_in(cells[0]):
                if file.endswith(".csv"):
                    place = file if "/" in file else f"{folder}/{file}"
                    page.named.setdefault(place, set()).update(names_in(" ".join(cells[1:])))
                    if other := re.search(r"\bas `(\w+\.csv)`", line):
                        page.like[place] = f"reference/{other[1]}"
    return page


def names_of(place):
    """All names that may explain a column of the table."""
    page = read_page()
    return page.named[place] | page.named.get(page.like.get(place, ""), set()) | page.shared


def files():
    return sorted(read_page().named)


def as_pattern(name):
    """A name as a pattern of columns: `<any>` and `…` stand for something, a leading `_` for a column before it."""
    parts = re.split(r"(<\w+>|…)", name)
    text = "".join(r"[\w-]+" if part == "…" or part.startswith("<") else re.escape(part) for part in parts)
    return re.compile(r"\w+" + text if name.startswith("_") else text)


def tables_of(place):
    """Column names and the values of text columns, of the file in every run folder that has it."""
    folder, name = place.rsplit("/", 1)
    folders = RUN_FOLDERS if folder == "reference" else (folder,)
    found = [pd.read_csv(RESULTS / one / name) for one in folders if (RESULTS / one / name).exists()]
    if name == "head_scorecard.csv":
        found += [estimated_scorecard()]
    columns = {str(column) for table in found for column in table.columns}
    words = {str(word) for table in found for column in table.select_dtypes(exclude="number") for word in table[column]}
    return columns, words


def estimated_scorecard():
    """The scorecard of estimated effects, beside a truth of fewer pictures: neither is among the committed runs."""
    effects = np.random.default_rng(0).normal(size=(4, 2, 3))
    squared, loss = effects[..., None], np.ones(4)
    estimated = Truth("zero_estimated", effects, squared, loss, effects[0] > 0, effects[0], 2)
    fewer = Truth("resample", effects[:3], squared[:3], loss[:3])
    return scorecard_table(
        [estimated, fewer],
        *(None, {}, {}, None, {}),
        ("start_time_s",),
        ("s",),
        lambda count: bootstrap_indices(count, 10),
    )


def is_file_or_option(name):
    roots = (RESULTS, RESULTS.parent, *(RESULTS / run for run in RUN_FOLDERS))
    return name.startswith("--") or (("." in name or "/" in name) and any((root / name).exists() for root in roots))


def unexplained(columns, names):
    """Columns that no name stands for. What follows a column's name (`_trimmed`) must follow one that is explained."""
    whole = [as_pattern(name) for name in names if not name.startswith(("_", "<column>"))]
    known = {column for column in columns if any(pattern.fullmatch(column) for pattern in whole)}
    endings = [name.removeprefix("<column>") for name in names if name.startswith(("_", "<column>"))]
    for _ in range(2):  # an ending may follow another: of the limits of a trimmed mean, say
        known |= {
            column
            for column in columns
            for ending in endings
            if column.endswith(ending) and column.removesuffix(ending) in known
        }
    return columns - known


def untrue(names, columns, words):
    """Names that stand for nothing in the table."""
    return {
        name
        for name in names
        if not is_file_or_option(name) and not any(as_pattern(name).fullmatch(thing) for thing in columns | words)
    }


def test_every_committed_table_has_its_row():
    page = read_page()
    there = {path.relative_to(RESULTS).as_posix() for path in RESULTS.glob("*/*.csv")}
    there |= {f"../attribution/models/default/{path.name}" for path in models().glob("*.csv")}
    of_runs = {name: run for name in there for run in RUN_FOLDERS if name.startswith(f"{run}/")}
    runs = {name.replace(run, "reference", 1) for name, run in of_runs.items()}
    others = there - set(of_runs)
    assert runs | others == set(page.named)


def models():
    return RESULTS.parent / "attribution" / "models" / "default"


@pytest.mark.parametrize("place", files())
def test_every_column_is_explained_and_every_name_is_true(place):
    columns, words = tables_of(place)
    assert columns, f"{place}: named in results/README.md, and not there"
    assert not unexplained(columns, names_of(place)), place
    assert not untrue(read_page().named[place] - read_page().shared, columns, words), place


def test_every_shared_column_is_one():
    columns = set().union(*(tables_of(place)[0] for place in files()))
    plain = {name for name in read_page().shared if not name.startswith("<column>")}
    assert plain <= columns
    for ending in (name.removeprefix("<column>") for name in read_page().shared - plain):
        assert any(column.endswith(ending) and column.removesuffix(ending) in columns for column in columns)


def test_a_wrong_name_and_a_column_without_one_are_found():
    """The tests above can fail."""
    place = "reference/curves.csv"
    columns, words = tables_of(place)
    names = names_of(place)
    assert unexplained(columns | {"area_of_a_circle"}, names) == {"area_of_a_circle"}
    assert unexplained(columns, names - {"removed"}) == {"removed"}
    assert unexplained(columns | {"nowhere_ci_low"}, names) == {"nowhere_ci_low"}
    assert untrue(read_page().named[place] | {"radius", "radius_…", "radius.csv"}, columns, words) == {
        "radius",
        "radius_…",
        "radius.csv",
    }
