import re

import numpy as np
import pandas as pd
import pytest

from analysis.tables import escape_formula, read_table, require_all_heads, require_numbers, write_table


def test_numbers_survive_and_strings_are_no_formulas(tmp_path):
    table = pd.DataFrame(
        {
            "name": ["=1+1", "-x", "@y", "+z", "\tt", "plain", "a=b"],
            "value": [-1.0, 1 / 3, np.nan, 1e-300, 0.1, -0.0, 5.0],
            "count": np.arange(7) - 3,
        }
    )
    path = write_table(table, tmp_path / "t.csv")
    text = path.read_text()
    assert "\n-3" not in text and ",-3\n" in text  # a negative number stays a number
    back = read_table(path)
    assert list(back["name"]) == ["'=1+1", "'-x", "'@y", "'+z", "'\tt", "plain", "a=b"]
    np.testing.assert_array_equal(back["value"], table["value"])
    np.testing.assert_array_equal(back["count"], table["count"])


def test_only_strings_are_escaped():
    assert escape_formula(-3.0) == -3.0
    assert escape_formula("-3") == "'-3"


def test_unreadable_tables_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(ValueError, match=r"t\.csv: expected a CSV table"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.csv")


def test_columns_of_text_are_read_as_they_stand(tmp_path):
    (tmp_path / "a.csv").write_text("name,value\nNA,1\n,\n7,nan\n")
    table = read_table(tmp_path / "a.csv", texts=("name", "not there"))
    assert table["name"].tolist() == ["NA", "", "7"]
    assert table["value"].isna().tolist() == [False, True, True] and table["value"][0] == 1


@pytest.mark.parametrize(
    ("cells", "whole", "expected"),
    [
        ([1.0, float("nan")], False, "a.csv: row 3: value: expected a finite number, got nan"),
        (["1", "x"], False, "row 3: value: expected a finite number, got x"),
        ([float("inf"), 1], False, "row 2: value"),
        ([0, 1.5], True, "row 3: value: expected a whole number from 0 on, got 1.5"),
        ([0, -1], True, "row 3: value: expected a whole number from 0 on, got -1"),
    ],
)
def test_cells_that_are_no_numbers_are_named(tmp_path, cells, whole, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        require_numbers(pd.DataFrame({"value": cells}), tmp_path / "a.csv", ["value"], whole=whole)


def test_every_head_has_one_row(tmp_path):
    whole = pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1]})
    assert require_all_heads(whole, tmp_path) == (2, 2)
    for rows in ([0, 1, 2], [0, 1, 2, 2], [3]):
        with pytest.raises(ValueError, match="expected one row for each head of 2 layers x 2 heads"):
            require_all_heads(whole.iloc[rows], tmp_path)
    with pytest.raises(ValueError, match="expected a row for each head, got none"):
        require_all_heads(whole.iloc[:0], tmp_path)
    with pytest.raises(ValueError, match="missing column"):
        require_all_heads(whole[["head"]], tmp_path)
