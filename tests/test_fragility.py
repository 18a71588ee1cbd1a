"""What one picture does to a word, against deleting it."""

import numpy as np
import pytest
from scipy.stats import trim_mean, ttest_1samp

from analysis import fragility
from analysis.fieller import ratio_interval
from analysis.fragility import LeftOut, largest_share, left_out, mean_without, ratio_without, read_changing
from analysis.intervals import Interval, bootstrap_indices, interval_over_images
from analysis.verdict_words import Claimed


def indices(count):
    return bootstrap_indices(count, 200, 0)


def test_without_each_is_deletion():
    values = np.random.default_rng(0).normal(size=9)
    found = fragility.without_each(values)
    assert found.shape == (8, 9)
    assert all((found[:, place] == np.delete(values, place)).all() for place in range(9))


def test_means_and_ratios_of_the_rest():
    rng = np.random.default_rng(1)
    a, b = rng.exponential(size=(2, 15))
    means, ratios = mean_without(a, indices, 0.9), ratio_without(a, b, 0.95)
    assert list(means.names) == [f"picture {place}" for place in range(15)] == list(ratios.names)
    for place in range(15):
        rest, other = np.delete(a, place), np.delete(b, place)
        expected = ttest_1samp(rest, 0.0).confidence_interval(0.9)
        assert means.without.value[place] == pytest.approx(rest.mean())
        assert means.without.low[place] == pytest.approx(expected.low)
        assert means.without.high[place] == pytest.approx(expected.high)
        one = ratio_interval(rest[:, None], other[:, None])
        assert ratios.without.low[place] == pytest.approx(one.low[0]) and ratios.without.high[place] == pytest.approx(
            one.high[0]
        )


def test_pictures_that_say_nothing_are_not_left_out():
    values = np.array([1.0, np.nan, 2.0, 4.0, np.nan, 3.0])
    found = mean_without(values, indices, 0.95)
    assert list(found.names) == ["picture 0", "picture 2", "picture 3", "picture 5"]
    assert found.without.value.tolist() == pytest.approx([3.0, 8 / 3, 2.0, 7 / 3])
    assert (
        mean_without(values[:3], indices, 0.95).names == ()
        and left_out(1.0, "supported", mean_without(values[:3], indices, 0.95), max) == {}
    )


def test_what_is_told_is_what_moves_the_value_most_of_those_that_change_the_word():
    limits = Interval(np.array([1.0, 1.3, 0.2, 1.2]), np.array([0.5, 0.5, -0.1, -0.3]), np.array([1.5, 2.5, 0.4, 2.0]))
    found = LeftOut(["picture 4", "picture 7", "picture 8", "picture 9"], limits)
    says = Claimed(low=0.0).word
    row = left_out(1.0, "supported", found, says)
    assert row["left_out"] == "picture 8" and row["without_value"] == 0.2 and row["without_ci_high"] == 0.4
    assert row["changing"] == "undecided: picture 8, picture 9"
    assert read_changing(row["changing"]) == {"picture 8": "undecided", "picture 9": "undecided"}
    row = left_out(1.0, "undecided", found, says)
    assert row["left_out"] == "picture 7" and row["changing"] == "supported: picture 4, picture 7"
    wide = Claimed().word
    same = left_out(1.0, "supported", found, wide)
    assert same["left_out"] == "picture 8" and same["changing"] == "" and read_changing("") == {}
    with pytest.raises(ValueError, match="expected 'word: picture 0"):
        read_changing("picture 8")


def test_the_share_of_the_largest_picture():
    assert largest_share(np.array([1.0, 2.0, 5.0])) == 0.625
    assert largest_share(np.array([1.0, -3.0, 1.0, np.nan])) == 3.0  # outweighs what the others leave
    assert np.isnan(largest_share(np.zeros(3)))


def test_trimmed_columns():
    values = np.random.default_rng(2).standard_t(2, (40, 1))
    found = fragility.trimmed(interval_over_images(values, indices(40), estimator="trimmed"))
    assert found["trimmed_value"] == pytest.approx(trim_mean(values[:, 0], 0.1))
    assert found["trimmed_ci_low"] < found["trimmed_value"] < found["trimmed_ci_high"]
