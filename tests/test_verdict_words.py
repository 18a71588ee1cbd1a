"""The words of a verdict, case by case."""

from itertools import product

import numpy as np
import pytest

from analysis.verdict_words import DIFFERS, REFUTED, SUPPORTED, UNDECIDED, UNTESTABLE, Claimed, over_models, together

NAN = float("nan")


@pytest.mark.parametrize(
    ("low", "high", "between", "with_ends"),
    [
        (2.1, 4.4, SUPPORTED, SUPPORTED),
        (2.0, 4.5, UNDECIDED, SUPPORTED),
        (1.9, 4.4, UNDECIDED, UNDECIDED),
        (1.0, 9.0, UNDECIDED, UNDECIDED),
        (4.5, 9.0, REFUTED, UNDECIDED),
        (4.6, 9.0, REFUTED, REFUTED),
        (-3.0, 2.0, REFUTED, UNDECIDED),
        (-3.0, 1.9, REFUTED, REFUTED),
        (NAN, 3.0, UNTESTABLE, UNTESTABLE),
        (3.0, np.inf, UNTESTABLE, UNTESTABLE),
    ],
)
def test_an_interval_against_a_range_of_2_to_4_5(low, high, between, with_ends):
    assert Claimed(2.0, 4.5).word(low, high) == between
    assert Claimed(2.0, 4.5, closed=True).word(low, high) == with_ends


def test_half_ranges():
    """Above 0: wholly at or below it refutes; 0 itself is not above 0."""
    above = Claimed(low=0.0)
    assert [above.word(*pair) for pair in ((0.1, 5), (0, 5), (-5, 0), (-5, 0.1))] == [
        *(SUPPORTED, UNDECIDED, REFUTED, UNDECIDED)
    ]
    least = Claimed(low=0.8, closed=True)
    assert [least.word(*pair) for pair in ((0.8, 1), (0.79, 1), (0.5, 0.8), (0.5, 0.79))] == [
        *(SUPPORTED, UNDECIDED, UNDECIDED, REFUTED)
    ]


def test_words_follow_from_single_values():
    """Supported: every value of the interval lies in the range; refuted: none does; by trying values."""
    rng = np.random.default_rng(0)
    for low, width, closed in product(rng.uniform(-2, 2, 40), (0.0, 0.3, 3.0), (True, False)):
        claimed = Claimed(-0.5, 0.5, closed)
        values = np.linspace(low, low + width, 101)
        inside = (values >= -0.5) & (values <= 0.5) if closed else (values > -0.5) & (values < 0.5)
        expected = SUPPORTED if inside.all() else UNDECIDED if inside.any() else REFUTED
        assert claimed.word(low, low + width) == expected


@pytest.mark.parametrize(
    ("tests", "guards", "expected"),
    [
        ([SUPPORTED, SUPPORTED], [], SUPPORTED),
        ([SUPPORTED, UNDECIDED], [], UNDECIDED),
        ([SUPPORTED, UNTESTABLE], [], UNTESTABLE),
        ([UNDECIDED, UNTESTABLE], [], UNTESTABLE),
        ([REFUTED, UNTESTABLE], [], REFUTED),
        ([REFUTED, SUPPORTED], [], REFUTED),
        ([SUPPORTED], [SUPPORTED], SUPPORTED),
        ([SUPPORTED], [UNTESTABLE], UNTESTABLE),
        ([REFUTED], [UNTESTABLE], UNTESTABLE),
        ([], [], UNTESTABLE),
    ],
)
def test_the_word_of_several_tests(tests, guards, expected):
    assert together(tests, guards) == expected == together(reversed(tests), guards)


def test_the_word_over_models():
    assert over_models({"one": UNDECIDED, "two": UNDECIDED}) == UNDECIDED
    assert over_models({"one": UNTESTABLE, "two": REFUTED}) == DIFFERS
    assert over_models({"one": SUPPORTED}) == SUPPORTED
