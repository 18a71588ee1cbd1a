"""Verdicts over several runs, from folders whose measured values are known."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_check_claims import alike, effects_of, grid, indices, joint, many_roles, roles_of, slope, told

from analysis.audit import TREND_COLUMNS
from analysis.checks.claims import COLUMNS as RUN_COLUMNS
from analysis.checks.claims import table_of
from analysis.claim_checks import require_own_tables, require_values, table_sha256
from analysis.claim_effects import deeper_heads, distraction_over_depth, early_heads
from analysis.claim_plots import STUDY_LAYERS, claim_figure
from analysis.claim_roles import chirp_alone, irrelevant_detectors, maps_repeat
from analysis.claim_tables import (
    VERDICT_COLUMNS,
    Fragility,
    Released,
    claims_table,
    fragility,
    markdown,
    row_fragility,
    verdicts_table,
)
from analysis.claims import main, read_run, released_values
from analysis.manifest import read_manifest
from analysis.plan import CLAIMS, plan_sha256
from analysis.tables import read_table, write_table
from analysis.verdict_rules import (
    CHIRP_SHARE,
    DETECTORS,
    KAPPA,
    KNOCKED_OUT,
    MEAN_EARLY,
    MEASURED,
    POLYSEMANTIC,
    SIXTH_RATIO,
    SLOPE_OF,
    judge,
)
from analysis.verdicts_v1 import ENDING


@lru_cache
def measured(*, early=0.4, noise=0.1, outlier=0.0, count=40):
    """Judged rows of a run in which every claim but C1 and C4 is supported."""
    effects = effects_of([early] * 5 + [3 * early] * 7, noise=noise, count=count)
    effects[3, :3] += outlier
    roles = many_roles()
    twins = roles_of("monosemantic", grid(L1H2="text"), grid(L1H2="detector"))
    c3 = roles.assign(semanticity=np.where(roles["layer"] > 4, "monosemantic", "diffuse"), concepts="chirp")
    return judge(
        table_of(
            C1=early_heads(effects, indices, 2.0, joint(10.0, 8.0, 12.0)),
            C2=deeper_heads(effects, indices),
            C3=chirp_alone(c3, 12),
            C4=irrelevant_detectors(twins, effects, indices),
            C5=[*maps_repeat(roles, alike(roles), indices), *told()],
            C6=distraction_over_depth(
                {item: slope(0.2, count=count) for item in ("text", "colorbar", "title")}, indices
            ),
        )
    )


def write_run(folder, rows=None, *, preset="default", plan=None, weights=None, **parts):
    folder.mkdir(parents=True)
    write_table(measured() if rows is None else rows, folder / "claims.csv")
    layer, head = np.indices((12, 4)).reshape(2, -1)
    pd.DataFrame({"layer": layer, "head": head}).to_csv(folder / "head_scorecard.csv", index=False)
    config = {"backbone": "packaged", "synthesizer": {"preset": preset}}
    model = {"config": config, "weights_sha256": weights or folder.name}
    record = {"data": {"preset": preset}, "model": model, "plan_sha256": plan or plan_sha256()}
    record["pictures"] = {"done": 40, "total": 40}
    record["command"] = ["python", "-m", "analysis.compare", "--checks", "claims", "--output-dir", "a folder"]
    (folder / "manifest.json").write_text(json.dumps(record | parts))
    return folder


def write_audit(folder):
    folder.mkdir()
    row = {name: 0.0 for name in TREND_COLUMNS} | {"configuration": "as_released", "order": "original"}
    row |= {"early_var_pct": 40.0, "early_pct": 10.0, "sixth_over_early": 2.5, "late_over_early": 4.0}
    pd.DataFrame([row]).to_csv(folder / "trend.csv", index=False)
    record = {"model": {"name": "ours"}, "data": {"preset": "published"}, "pictures": {"done": 64, "total": 64}}
    record["command"] = ["python", "-m", "analysis.published"]
    (folder / "manifest.json").write_text(json.dumps(record))
    return folder


def test_tables_figures_and_manifest(tmp_path, capsys):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", measured(early=0.9))]
    runs.append(write_run(tmp_path / "three", measured(early=0.1, outlier=40.0), preset="published"))
    output = tmp_path / "claims"
    audit = write_audit(tmp_path / "audit")
    assert main([*map(str, runs), "--audit", str(audit), "--output-dir", str(output)]) == 0
    verdicts = pd.read_csv(output / "verdicts.csv")
    assert list(verdicts.columns) == list(VERDICT_COLUMNS) and len(verdicts) == 12
    found = verdicts.set_index(["claim", "preset"])
    assert found.loc[("C1", "default"), ["verdict", "by_model"]].tolist() == ["differs", "one: supported; two: refuted"]
    assert found.loc[("C1", "default"), "verdict_v1"] == "not in every model (1 of 2)"
    assert found.loc[("C2", "default"), "verdict"] == "supported" == found.loc[("C6", "published"), "verdict"]
    assert found.loc[("C1", "published"), "verdict"] == "undecided"
    assert found.loc[("C1", "published"), "fragility"].startswith(
        "without picture 3 supported, by trimmed means supported"
    )
    assert found.loc[("C2", "published"), "verdict"] == "untestable"
    assert "12 x 4 heads" in found.loc[("C1", "published"), "differs"]
    assert "ViT-B/16" in found.loc[("C1", "published"), "differs"]
    table = pd.read_csv(output / "claims.csv")
    assert len(table) == 3 * len(measured())
    first = table[table["quantity"] == MEAN_EARLY]
    assert first.set_index("run")["as_released"].dropna().to_dict() == {"three": 40.0}  # of its own pictures alone
    assert first.set_index("run")["as_released_pct_of_baseline"].dropna().to_dict() == {"three": 10.0}
    for claim in CLAIMS:
        assert (output / "figures" / f"{claim.lower()}.png").stat().st_size > 5_000
    first, beside, changed = (output / "verdicts.md").read_text().split("\n\n")[0::2]
    assert first.count("\n") == 13 and all(line.count(" | ") == 5 for line in first.splitlines()[2:])
    assert "released procedure (of our model `ours`, 64 published pictures)" in first.splitlines()[0]
    assert "2 of DINOv2-small of 12 x 4 heads" in first and "**differs** (one: supported; two: refuted)" in first
    assert "one at a time, not together: 10 [8, 12] %" in first
    assert "effect of removing layers 1-3 together" in beside and "slope" in beside
    assert changed.count("\n") == 8 and "default pictures: not in every model (1 of 2) → **differs**" in changed
    assert "not blind" in (output / "verdicts.md").read_text()
    assert markdown(verdicts) == (output / "verdicts.md").read_text()
    assert json.loads((output / "manifest.json").read_text())["runs"] == ["one", "two", "three"]
    out = capsys.readouterr()
    assert out.out.count("C1 (default, 2 model(s)): differs.") == 1 and out.err == ""


def test_words_of_rows_that_change_are_told_where_the_claims_does_not():
    """A guard that is not met hides what its tests say: theirs is told of each."""
    heads = [f"L0H{head}" for head in range(5)]
    rows = pd.DataFrame(
        {
            "claim": "C5",
            "quantity": [POLYSEMANTIC, KAPPA, KNOCKED_OUT],
            "part": ["guard", "test", "test"],
            "word": ["untestable", "supported", "refuted"],
            "verdict": "untestable",
            "left_out": "L0H0",
            "changing": [np.nan, np.nan, f"undecided: {', '.join(heads)}"],
            "trimmed_verdict": ["", "", "undecided"],
            "largest_picture_share": np.nan,
        }
    )
    told = fragility(rows).told()
    assert told.startswith("no single head changes it")
    assert f"of these, {KNOCKED_OUT}: without any of 5 heads (L0H0, L0H1, L0H2, …) undecided" in told
    one = rows.iloc[2].to_dict()
    assert row_fragility(one) == "without any of 5 heads (L0H0, L0H1, L0H2, …) undecided, by trimmed means undecided"
    assert row_fragility(one, dict.fromkeys(heads, "undecided"), True) == ""
    effects = rows.iloc[1:2].assign(claim="C4", verdict="supported", left_out="picture 3")
    assert fragility(effects).told() == "no single picture's effect changes it"


def test_what_the_released_procedure_gives(tmp_path):
    released = released_values(write_audit(tmp_path / "audit"))
    assert (released.model, released.preset, released.num_pictures) == ("ours", "published", 64)
    found = released.values
    assert found[MEAN_EARLY] == (40.0, 10.0)
    assert found[SIXTH_RATIO][0] == 2.5
    assert len(found) == 3  # it measures nothing of what heads look at


def test_an_audit_of_another_make_is_one_line(tmp_path):
    audit = write_audit(tmp_path / "audit")
    trend = pd.read_csv(audit / "trend.csv")
    trend.drop(columns="early_pct").to_csv(audit / "trend.csv", index=False)
    with pytest.raises(ValueError, match=r"trend\.csv: missing column\(s\) early_pct"):
        released_values(audit)
    trend[trend["configuration"] != "as_released"].to_csv(audit / "trend.csv", index=False)
    with pytest.raises(ValueError, match=r"trend\.csv: expected one row of as_released, original, got 0"):
        released_values(audit)
    trend.to_csv(audit / "trend.csv", index=False)
    (audit / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json: expected model, preset and pictures of an audit"):
        released_values(audit)


def test_an_audit_that_is_none_is_one_line(tmp_path, capsys):
    audit = write_audit(tmp_path / "audit")
    manifest, trend = ((audit / name).read_text() for name in ("manifest.json", "trend.csv"))
    spoilt = [
        ("trend.csv", trend.replace("10.0", ""), "trend.csv: row 2: early_pct: expected a finite number, got nan"),
        ("trend.csv", trend.replace("2.5", "some"), "trend.csv: row 2: sixth_over_early: expected a finite number"),
        (
            "manifest.json",
            manifest.replace("analysis.published", "analysis.compare"),
            "of python -m analysis.published",
        ),
        ("manifest.json", manifest.replace('"done": 64', '"done": 6'), "pictures: expected as many done as there are"),
        (
            "manifest.json",
            manifest.replace('{"name": "ours"}', "null"),
            "expected the manifest of a run, model an object",
        ),
        ("manifest.json", "[" * 100_000, "manifest.json: expected JSON"),
    ]
    run = write_run(tmp_path / "run")
    for name, text, message in spoilt:
        (audit / "manifest.json").write_text(manifest)
        (audit / "trend.csv").write_text(trend)
        (audit / name).write_text(text)
        assert main([str(run), "--audit", str(audit), "--output-dir", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error and not (tmp_path / "out").exists()


def test_a_model_counts_once(tmp_path, capsys):
    runs = [write_run(tmp_path / name, weights="w") for name in ("one", "copy")]
    assert main([*map(str, runs), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "one and " in error and "copy: the same weights, on default pictures both" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    other = write_run(tmp_path / "elsewhere", weights="w", preset="published")
    assert main([str(runs[0]), str(other), "--output-dir", str(tmp_path / "out")]) == 0


def test_values_and_counts_that_no_run_writes(tmp_path, capsys):
    rows = measured()
    shifted = rows.assign(value=rows["value"] + 50)
    before = MEAN_EARLY + ENDING
    broken = {
        "far": (edit(rows, MEAN_EARLY, value=-999), "row 2 (mean effect of layers 1-3): expected value between"),
        "shifted": (shifted, "row 2 (mean effect of layers 1-3): expected value between"),
        "trimmed": (edit(rows, MEAN_EARLY, trimmed_value=9.0), "expected trimmed_value between"),
        "without": (edit(rows, CHIRP_SHARE, without_value=9.0), "expected without_value between"),
        "before": (edit(rows, before, value=9.0), f"expected the value {rows['value'].iloc[0]} of the row"),
        "kappa": (edit(rows, KAPPA, value=3.0), "expected value between -1 and 1, got 3.0"),
        "empty": (edit(rows, MEAN_EARLY, value=np.nan), "expected a value between its limits, got none"),
        "negative": (edit(rows, MEAN_EARLY, n_pictures=-3), "n_pictures: expected a whole number >= 1, got -3"),
        "half": (edit(rows, MEAN_EARLY, n_pictures=2.5), "n_pictures: expected a whole number >= 1, got 2.5"),
        "uncounted": (edit(rows, MEAN_EARLY, n_pictures=np.nan), "n_pictures: expected a whole number >= 1, got none"),
        "many": (edit(rows, MEAN_EARLY, n_pictures=10**6), "n_pictures: expected at most the 40 of the run, got 1e+06"),
        "headless": (edit(rows, MEAN_EARLY, n_heads=0), "n_heads: expected a whole number >= 1, got 0"),
        "heads": (edit(rows, CHIRP_SHARE, n_heads=49), "n_heads 49 do not belong to the 12 x 4 heads"),
        "early": (edit(rows, MEAN_EARLY, n_heads=11), "n_heads 11 do not belong to the 12 x 4 heads"),
    }
    cases = {write_run(tmp_path / name, table): message for name, (table, message) in broken.items()}
    for name, pictures in (("part", {"done": 1, "total": 999}), ("half-one", {"done": 4.0, "total": 4.0})):
        cases[write_run(tmp_path / name, pictures=pictures)] = "pictures: expected as many done as there are"
    cases[write_run(tmp_path / "unnamed", model={"config": {"backbone": "packaged", "synthesizer": {}}})] = (
        "manifest.json: model: weights_sha256: expected a text, got None"
    )
    for name, change, message in (
        ("short", lambda card: card.iloc[:2], "do not belong to the 1 x 2 heads of head_scorecard.csv"),
        ("gap", lambda card: card.drop(index=5), "head_scorecard.csv: expected one row for each head of 12 layers x 4"),
        ("lower", lambda card: card[card["layer"] < 11], "do not belong to the 11 x 4 heads of head_scorecard.csv"),
        ("other", lambda card: card.assign(ablation_zero_var_pct=0.7), "expected 0.7, as head_scorecard.csv says, got"),
    ):
        run = write_run(tmp_path / name)
        change(pd.read_csv(run / "head_scorecard.csv")).to_csv(run / "head_scorecard.csv", index=False)
        cases[run] = message
    for run, message in cases.items():
        assert main([str(run), "--output-dir", str(tmp_path / "out")]) == 2, run
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, (run, error)
        assert not (tmp_path / "out").exists()


def test_a_table_belongs_to_its_manifest(tmp_path, capsys):
    """A run over other pictures, of the same model and as many heads and pictures: the digest tells."""
    own = write_run(tmp_path / "own")
    own_sha256 = table_sha256(own / "claims.csv")
    assert read_run(write_run(tmp_path / "same", claims_sha256=own_sha256)).preset == "default"
    moved = write_run(tmp_path / "moved", measured(early=0.45), preset="published", claims_sha256=own_sha256)
    assert main([str(moved), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "claims.csv: not the table that the run wrote" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["reference", "published", "seed-1", "seed-2"])
def test_committed_runs_belong_together(name):
    """Whatever plan they were made by: their values lie within their limits, and are those of their scorecards."""
    folder = Path(__file__).resolve().parents[1] / "results" / name
    rows = read_table(folder / "claims.csv")[list(MEASURED)]
    require_values(rows, folder / "claims.csv")
    scorecard = read_table(folder / "head_scorecard.csv")
    assert "ablation_zero_var_pct" in scorecard and rows["trimmed_value"].notna().sum() > 10
    require_own_tables(folder, read_manifest(folder / "manifest.json"), rows, scorecard)


def test_models_of_two_kinds_are_named_both():
    table, _ = table_of_runs(a=measured(), b=measured())
    kinds = {"a": "DINOv2-small, fine-tuned on default pictures", "b": "ViT-B, fine-tuned on others"}
    found = verdicts_table(table.assign(differs=table["run"].map(kinds)))
    assert set(found["differs"]) == {"; and ".join(kinds.values())}


@pytest.mark.parametrize(("share", "words"), [(0.0123, "1.2 %"), (0.0996, "10 %"), (0.996, "100 %"), (1.0, "100 %")])
def test_the_share_of_the_largest_picture_in_words(share, words):
    assert f"largest picture {words} of the effect" in Fragility("supported", {}, "picture", "", share).told()


def test_a_column_is_not_believed(tmp_path, capsys):
    """Words edited to what one would like, everywhere; the measured values say otherwise."""
    rows = measured(early=0.9)
    edited = rows.assign(verdict="supported", verdict_v1="supported")
    edited["word"] = edited["word"].where(edited["word"] == "", "supported")
    edited["trimmed_verdict"], edited["without_verdict"], edited["changes_without_one"] = "supported", "supported", "no"
    honest = read_run(write_run(tmp_path / "honest", rows))
    found = read_run(write_run(tmp_path / "edited", edited))
    pd.testing.assert_frame_equal(found.rows, honest.rows)
    assert found.rows.groupby("claim")["verdict"].first()["C1"] == "refuted"
    assert honest.not_believed == () and found.not_believed == ("C1", "C4")
    assert main([str(tmp_path / "edited"), "--output-dir", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == (
        "note: edited: its verdicts on C1, C4 are not those of its measured values, which count\n"
    )
    assert pd.read_csv(tmp_path / "out" / "verdicts.csv").set_index("claim").loc["C1", "verdict"] == "refuted"


def test_reading_a_run_gives_what_the_check_wrote(tmp_path):
    found = read_run(write_run(tmp_path / "run")).rows
    expected = measured()
    for name in RUN_COLUMNS:
        one, other = (table[name].astype(object).where(table[name].notna(), "").tolist() for table in (found, expected))
        assert one == pytest.approx(other), name


def table_of_runs(**rows):
    """The tables of runs of one preset, without a disk."""
    parts = [
        found.assign(preset="default", run=run, differs="x; the study", as_released=np.nan, as_released_of="")
        for run, found in rows.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table, verdicts_table(table).set_index("claim")


def test_one_word_over_models_or_they_differ():
    words = {"C1": "refuted", "C2": "supported"}
    _, found = table_of_runs(a=measured(early=0.9), b=measured(early=0.95))
    assert {claim: found.loc[claim, "verdict"] for claim in words} == words
    assert found.loc["C1", "by_model"] == "a: refuted; b: refuted" and (found["models"] == 2).all()
    _, found = table_of_runs(a=measured(early=0.9), b=measured(), c=measured(early=0.1, outlier=40.0))
    assert found.loc["C1", "verdict"] == "differs"
    assert found.loc["C1", "by_model"] == "a: refuted; b: supported; c: undecided"
    assert found.loc["C1", "verdict_v1"] == "not in every model (1 of 3)"


def test_models_on_other_numbers_of_pictures_are_not_put_together():
    _, found = table_of_runs(a=measured(), b=measured(count=32))
    assert found.loc["C6", "verdict"] == "differs"
    assert found.loc["C6", "by_model"] == (
        f"a: supported; b: supported; not on as many pictures ({SLOPE_OF}text): a 40, b 32"
    )
    assert found.loc["C1", "verdict"] == "differs"
    assert found.loc["C3", "verdict"] == "supported"  # roles of as many pictures


def test_fragility_in_words():
    _, found = table_of_runs(a=measured(), b=measured(early=0.1, outlier=40.0))
    first, second = found.loc["C1", "fragility"].split("; ")
    assert first.startswith("a: no single picture changes it, by trimmed means supported, largest picture")
    assert second.startswith("b: without picture 3 supported, by trimmed means supported, largest picture")
    assert found.loc["C1", "changes_without_one"] == "a: no; b: yes"
    assert found.loc["C3", "fragility"] == "no single head changes it" and found.loc["C3", "trimmed_verdict"] == ""
    share = measured(early=0.1, outlier=40.0).set_index("quantity").loc[MEAN_EARLY, "largest_picture_share"]
    assert found.loc["C1", "largest_picture_share"] == share > 0.8


def test_a_claim_changes_where_its_word_does_not_where_a_test_does():
    """One test is refuted whatever is left out; another, that a picture decides, changes nothing."""
    rows = measured().copy()
    rows["changing"] = rows["changing"].astype(object)
    of = rows["claim"] == "C2"
    rows.loc[of & (rows["quantity"] == SIXTH_RATIO), ["changing", "left_out"]] = ["undecided: picture 5", "picture 5"]
    _, found = table_of_runs(a=rows)
    assert found.loc["C2", "fragility"].startswith("without picture 5 undecided")
    rows.loc[of & rows["quantity"].str.startswith("effect of layers 6-12 over"), "word"] = "refuted"
    rows.loc[of, "verdict"] = "refuted"
    _, found = table_of_runs(a=rows)
    assert found.loc["C2", "fragility"].startswith("no single picture changes it")


def edit(rows, quantity, **cells):
    found = rows.copy()
    for name, value in cells.items():
        found[name] = found[name].astype(object)
        found.loc[found["quantity"] == quantity, name] = value
    return found


def test_refusals_are_one_line_and_code_2(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    rows = measured()
    (tmp_path / "empty").mkdir()
    without = write_run(tmp_path / "without")
    (without / "claims.csv").unlink()
    broken = {
        "old": (rows.drop(columns="left_out"), "missing column(s) left_out"),
        "words": (edit(rows, MEAN_EARLY, value="little"), "row 2: value: expected a number, got 'little'"),
        "endless": (edit(rows, MEAN_EARLY, ci_high=np.inf), "row 2: ci_high: expected a number"),
        "level": (edit(rows, MEAN_EARLY, level=0.5), "level 0.5, the plan asks 0.9"),
        "upside": (edit(rows, MEAN_EARLY, ci_low=9.0), "ci_low 9.0 above ci_high"),
        "fewer": (rows[rows["quantity"] != DETECTORS], f"missing row(s) {DETECTORS}"),
        "twice": (pd.concat([rows, rows.iloc[:1]]), "more than one row for 'mean effect of layers 1-3'"),
        "more": (edit(rows, MEAN_EARLY, claim="C9"), "expected the claims C1, C2, C3, C4, C5, C6, got C9"),
        "calmed": (
            edit(measured(early=0.1, outlier=40.0), MEAN_EARLY, changing=""),
            "changing is '', but without picture 3 its limits say supported",
        ),
        "form": (edit(rows, KAPPA, changing="all of them"), "expected 'word: picture 0"),
    }
    cases = {(str(write_run(tmp_path / name, table)),): message for name, (table, message) in broken.items()}
    for name, text in (("listed", "[1]"), ("torn", "{"), ("bare", json.dumps({"plan_sha256": plan_sha256()}))):
        (write_run(tmp_path / name) / "manifest.json").write_text(text)
    cases |= {
        (str(tmp_path / "listed"),): "manifest.json: expected a JSON object, got list",
        (str(tmp_path / "torn"),): "manifest.json: expected JSON",
        (str(tmp_path / "bare"),): "manifest.json: expected the manifest of a run",
        (str(write_run(tmp_path / "other", plan="0" * 64)),): "judged by another plan",
        (
            str(write_run(tmp_path / "before", plan=plan_sha256(1))),
        ): "judged by version 1 of the plan, expected version 2; "
        "make it anew (stored scores are reused): python -m analysis.compare --checks claims --output-dir 'a folder'",
        (str(tmp_path / "empty"),): "expected a finished run",
        (str(without),): "needs --checks claims",
        (str(run), str(run)): "folders of different names",
        (str(run), "--audit", str(tmp_path / "empty")): "expected a finished audit",
    }
    for words, message in cases.items():
        assert main([*words, "--output-dir", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, (words, error)
        assert not (tmp_path / "out").exists()
    assert read_run(run).preset == "default"


def test_figures_show_values_words_ranges_and_fragility():
    table, verdicts = table_of_runs(a=measured(), b=measured(early=0.1, outlier=40.0))
    figure = claim_figure(table, verdicts.reset_index(), "C1")
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["supported", "undecided"]
    rows = table[table["quantity"] == MEAN_EARLY].to_dict("records")
    points = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in points] == [row["value"] for row in rows]
    assert [line.get_markerfacecolor() == "white" for line in points] == [False, True]
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [rows[1]["without_value"]]
    diamonds = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "d"]
    assert diamonds == [row["trimmed_value"] for row in rows]
    (band,) = ax.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-0.5, 0.5))
    assert "differs" in figure.get_suptitle()
    assert len(figure.axes) == 5
    share = next(
        one for one in claim_figure(table, verdicts.reset_index(), "C3").axes if CHIRP_SHARE[:20] in one.get_title()
    )
    assert share.patches[0].get_x() == pytest.approx(0.8)
    assert not any("version 1" in one.get_title() for one in claim_figure(table, verdicts.reset_index(), "C2").axes)
    slopes = claim_figure(table, verdicts.reset_index(), "C6")
    panels = [one for one in slopes.axes if "slope over layers" in one.get_title().replace("\n", " ")]
    assert len(panels) == 3 and len({one.get_xlim() for one in panels}) == 1
    assert "from 1" not in slopes.get_suptitle()  # no quantity of it counts layers
    for one in panels:
        right = one.patches[0].get_x() + one.patches[0].get_width()
        assert right == pytest.approx(one.get_xlim()[1])  # the claimed range goes as far as the shared axis
    assert all(len(one.get_xticks()) <= 7 for one in (*figure.axes, *slopes.axes))  # two may lie beyond the limits
    assert STUDY_LAYERS in figure.get_suptitle().replace("\n", " ") and figure.get_figwidth() <= 9.6
    with pytest.raises(ValueError, match="no rows of C9"):
        claim_figure(table, verdicts.reset_index(), "C9")


def test_a_figure_says_of_which_pictures_the_released_procedures_value_is():
    table, verdicts = table_of_runs(a=measured(), b=measured())
    table.loc[table["run"] == "b", ["preset", "as_released"]] = ["published", 0.05]
    figure = claim_figure(table, verdicts.reset_index(), "C1")
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "released procedure, published pictures" in told
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"] == [0.05]


def test_the_tables_of_runs_keep_every_column():
    run = type("Run", (), {"name": "a", "preset": "default", "rows": measured(), "differs": "x"})
    released = Released("ours", "default", 64, {MEAN_EARLY: (1.0, 2.0)})
    table = claims_table([run], released)
    assert set(RUN_COLUMNS) < set(table.columns) and len(table) == len(measured())
    assert table.loc[table["quantity"] == MEAN_EARLY, "as_released"].tolist() == [1.0]
    other = claims_table([run], replace(released, preset="published"))
    assert other["as_released"].isna().all()


def test_the_readme_shows_the_committed_verdicts():
    root = Path(__file__).resolve().parents[1]
    committed = (root / "results" / "claims" / "verdicts.md").read_text(encoding="utf-8")
    assert committed in (root / "README.md").read_text(encoding="utf-8")
    assert json.loads((root / "results" / "claims" / "manifest.json").read_text())["plan_sha256"] == plan_sha256()
    assert markdown(pd.read_csv(root / "results" / "claims" / "verdicts.csv")) == committed
