"""How many pictures an estimate must sweep, by the variances it is made of; the command that asks for a width."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from analysis import sample_size as sample_size_module
from analysis import truths
from analysis.compare import main, parse
from analysis.estimate import Estimate, drawn_pictures, estimate_effects, sample_pictures
from analysis.sample_size import HEADS_ASKED, sample_size


def made(total=400, swept=50, heads=12, explained=0.9, seed=0):
    """Effects of normal pictures whose prediction explains so much of the variance, and their estimate."""
    rng = np.random.default_rng(seed)
    mean = np.linspace(1.0, 3.0, heads)
    told = rng.normal(size=(total, heads))
    effects = mean + np.sqrt(explained) * told + np.sqrt(1 - explained) * rng.normal(size=(total, heads))
    sample = sample_pictures(total, swept, seed)
    return effects, told, sample, estimate_effects(effects[sample], told, sample)


def test_the_number_is_that_of_the_variance():
    """σ²·(R²/N + (1 − R²)/n) at the number told is the square of the width asked for, head by head."""
    effects, told, _, found = made()
    size = sample_size(found, 0.1)
    assert size.total == 400 and size.out_of_reach == 0 and size.pictures_for_all == 400
    factor = student_t.ppf(0.975, 48)
    mean, spread = found.pseudo_values.mean(axis=0), found.pseudo_values.var(axis=0, ddof=1)
    variance = spread / (found.r2 + (1 - found.r2) * 400 / 50)
    top = np.argsort(-mean)[:HEADS_ASKED]

    def widest(number):
        width = factor * np.sqrt(variance * (found.r2 / 400 + (1 - found.r2) / number))
        return (width / mean)[top].max()

    assert widest(size.needed) <= 0.1 < widest(size.needed - 1)
    assert size.widest == pytest.approx((factor * np.sqrt(spread / 400) / mean)[top].max())
    # And so it comes out when as many are swept.
    more = sample_pictures(400, size.needed, 0)
    again = sample_size(estimate_effects(effects[more], told, more), 0.1)
    assert again.widest == pytest.approx(0.1, rel=0.15)


def test_a_better_predictor_and_a_wider_interval_need_fewer():
    number = {(explained, interval): sample_size(made(explained=explained)[3], interval).needed
              for explained in (0.5, 0.9) for interval in (0.1, 0.2)}  # fmt: skip
    assert number[0.9, 0.1] < number[0.5, 0.1] and number[0.5, 0.2] < number[0.5, 0.1]


def test_out_of_reach_is_said_with_what_would_do():
    """Where all pictures together leave the interval wider, near what they give is enough."""
    effects, _, _, found = made(total=60, swept=20)
    size = sample_size(found, 0.02)
    assert size.out_of_reach == HEADS_ASKED and size.needed < 60
    spread, mean = effects.std(axis=0, ddof=1), effects.mean(axis=0)
    expected = ((1.96 * spread / (0.02 * mean)) ** 2)[np.argsort(-mean)[:HEADS_ASKED]].max()
    assert size.pictures_for_all == pytest.approx(expected, rel=0.35)


def test_heads_swept_on_all_and_heads_without_effect():
    _, _, sample, found = made()
    exact = Estimate(found.pseudo_values, np.ones(12), np.full(12, np.nan), np.ones(12, dtype=bool), sample)
    assert sample_size(exact, 0.5).needed == 0
    still = Estimate(np.zeros((400, 3)), np.ones(3), np.ones(3), np.zeros(3, dtype=bool), sample)
    size = sample_size(still, 0.1)
    assert size.needed == 0 and size.pictures_for_all == -1
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="interval: expected a positive share"):
            sample_size(found, wrong)


def test_what_is_drawn_first_is_drawn_first_again():
    assert drawn_pictures(100, 80, 3)[:48].tolist() == drawn_pictures(100, 48, 3).tolist()
    assert sorted(drawn_pictures(100, 48, 3)) == sample_pictures(100, 48, 3).tolist()


@pytest.mark.parametrize(
    ("words", "estimate", "interval"),
    [
        (["--estimate", "auto"], "auto", 0.1),
        (["--estimate", "auto", "--interval", "20%"], "auto", 0.2),
        (["--estimate=auto", "--interval", "0.05"], "auto", 0.05),
        (["--estimate", "48"], 48, None),
    ],
)
def test_settings(words, estimate, interval):
    settings, _ = parse(words)
    assert settings.estimate == estimate and settings.interval == (
        None if interval is None else pytest.approx(interval)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--estimate", "many"], "estimate: expected a whole number >= 3, up to 2147483647, or auto, got 'many'"),
        (["--interval", "10%"], "interval: expected with --estimate auto"),
        (["--estimate", "48", "--interval", "10%"], "interval: expected with --estimate auto"),
        (["--estimate", "auto", "--interval", "0"], "interval: expected a share above 0 and up to 1, or 10%, got 0.0"),
        (["--estimate", "auto", "--interval", "nan"], "interval: expected a share above 0"),
        (["--estimate", "auto", "--interval", "wide"], "interval: expected a share above 0"),
        (["--estimate", "auto", "--num-pictures", "48"], "--estimate auto: expected more than 48 pictures, got 48"),
    ],
)
def test_refusals(words, message, capsys):
    assert main(["--model", "tiny-random", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_command_sweeps_until_it_is_enough(tmp_path, capsys, monkeypatch):
    """More than the first, in whole pieces, what was swept first among them; and as narrow as it says."""
    monkeypatch.setattr(sample_size_module, "HEADS_ASKED", 1)
    monkeypatch.setattr(truths, "LEAST_SWEPT", 16)
    folder = tmp_path / "run"
    few = ["--bootstrap-replicates", "50", "--num-permutations", "50", "--methods", "cls_mass", "--truths", "zero"]
    run = ["--model", "tiny-random", "--num-pictures", "60", "--estimate", "auto", "--interval", "30%", *few]
    assert main([*run, "--output-dir", str(folder)]) == 0
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("zero: ")]
    swept = int(line.split()[1])
    assert 16 < swept < 60 and swept % 16 == 0
    assert f"{swept} of 60 pictures were swept" in said.out
    card = pd.read_csv(folder / "head_scorecard.csv")
    name = "ablation_zero_estimated_var_pct"
    top = card.nlargest(1, name).iloc[0]
    half = (top[f"{name}_ci_high"] - top[f"{name}_ci_low"]) / 2 / top[name]
    width = f"intervals within {100 * half:.0f} % of the effect"
    assert line.startswith(f"zero: {swept} of 60 pictures swept, {width}")
