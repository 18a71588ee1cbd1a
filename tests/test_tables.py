import numpy as np
import pandas as pd
import pytest

from analysis.tables import escape_formula, read_table, write_table


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
