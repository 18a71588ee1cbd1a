"""Every sentence of the short answer, found again from the tables it cites.

A sentence that the command prints, or that a report shows, must have one of the forms below; each number and name in
it is computed anew, with plain Python, from the CSV files beside it. A form has no digit outside its groups, so a
number that nothing here explains fails the test, as does a sentence of another form.
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest
from scipy.stats import spearmanr

from analysis.answer import Reference, compare_with_reference, describe_league, describe_run, read_reference
from analysis.artists import CONTROLS
from analysis.score_files import read_scores
from analysis.tables import read_table

RESULTS = Path(__file__).resolve().parents[1] / "results"
REFERENCE = RESULTS / "reference"
RUNS = [REFERENCE, RESULTS / "published", RESULTS / "seed-1", RESULTS / "seed-2"]  # `colorbar`: of an earlier make
ENOUGH = 128  # pictures, below which a run is indicative (results/README.md)
AGREEING = 0.7


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of a run, as lists of rows of text, and the run it is compared with."""

    folder: Path
    reference: "Tables | None" = None

    @cached_property
    def read(self):
        """What has been read: a table's rows, and what the groups of a form must be."""
        return {}

    def rows(self, name, **where):
        """Rows of a table with these values."""
        if name not in self.read:
            with open(self.folder / f"{name}.csv", encoding="utf-8", newline="") as file:
                self.read[name] = list(csv.DictReader(file))
        return [row for row in self.read[name] if all(row[key] == value for key, value in where.items())]

    def expected(self, form):
        """What the groups of a form must be."""
        if form not in self.read:
            self.read[form] = SENTENCES[form](self)
        return self.read[form]

    @cached_property
    def effect(self):
        """The column of mean effects: the first `ablation_<kind>_var_pct`."""
        return next(name for name in self.rows("head_scorecard")[0] if re.fullmatch(r"ablation_.+_var_pct", name))

    @cached_property
    def effects(self):
        """{(layer, head): mean effect}"""
        return {(int(row["layer"]), int(row["head"])): float(row[self.effect]) for row in self.rows("head_scorecard")}

    @property
    def count(self):
        """Number of pictures."""
        (count,) = {row["n"] for row in self.rows("head_scorecard")}
        return int(count)

    def top(self, number):
        """The heads of the largest effects, largest first."""
        return sorted(self.effects, key=lambda one: -self.effects[one])[:number]

    def trials(self):
        """Methods on trial in the league: no controls, none that stands for another."""
        return [row for row in self.rows("league") if row["is_control"] == "False" and row["same_as"] == ""]


def heads_that_matter(run):
    kind = re.fullmatch(r"ablation_(\w+?)(_estimated)?_var_pct", run.effect)
    named = ", ".join(f"L{layer}H{head} ({run.effects[layer, head]:+.2f} %)" for layer, head in run.top(3))
    return {
        "n": str(run.count),
        "kind": ("estimated " if kind[2] else "") + kind[1],
        "heads": named,
    }


def ranking(run, truth):
    """Rows of methods on trial by agreement with a truth of other pictures, best first."""
    rows = run.rows("agreement", truth=truth, estimator="mean", statistic="spearman")
    rows = [row for row in rows if row["method"] not in CONTROLS and row["value_cross"]]
    for row in rows:
        if truth == run.rows("agreement")[0]["truth"] and int(row["n"]) == run.count and row["value"]:
            # the same pictures, from the means of scores and effects
            assert float(row["value"]) == pytest.approx(of_means(run, row["method"]), abs=1e-6)
    return sorted(rows, key=lambda row: -float(row["value_cross"]))


def ablations(run):
    """The truths by ablation, in the order of the table."""
    names = dict.fromkeys(row["truth"] for row in run.rows("agreement"))
    return [name for name in names if re.fullmatch(r"ablation_.+(?<!_abs)", name)]


def in_words(truth):
    return {"zero_estimated": "estimated zero"}.get(truth.removeprefix("ablation_"), truth.removeprefix("ablation_"))


def standing(run, row):
    limits = f" [{float(row['cross_ci_low']):.2f}, {float(row['cross_ci_high']):.2f}]" if row["cross_ci_low"] else ""
    fewer = "" if int(row["n"]) == run.count else f" on {row['n']} pictures"
    return f"{in_words(row['truth'])} {float(row['value_cross']):.2f}{limits}{fewer}"


def closest_and_farthest(run):
    truths = ablations(run)
    firsts = [ranking(run, truth)[0] for truth in truths if ranking(run, truth)]
    need = min(3, len(firsts))
    names = list(dict.fromkeys(row["method"] for row in firsts))
    told = {name: ", ".join(standing(run, row) for row in firsts if row["method"] == name) for name in names}
    often = [name for name in names if sum(row["method"] == name for row in firsts) >= need]
    what = "closest to ablation, on other pictures than the truth's (Spearman over heads, 95 % intervals)"
    if often:
        others = "; ".join(f"{name} under {told[name]}" for name in names if name != often[0])
        body = f"Method {what}: {often[0]} under {told[often[0]]}" + (f"; but {others}" if others else "") + "."
    else:
        groups = "; ".join(f"{name} under {told[name]}" for name in names)
        body = f"No method is {what}, under {need} of {len(firsts)} truths: {groups}."
    last = ranking(run, truths[0])[-1]
    return {
        "told": body,
        "kind": in_words(truths[0]),
        "last": last["method"],
        "last_rho": f"{float(last['value_cross']):.2f}",
        "last_n": None if int(last["n"]) == run.count else last["n"],
    }


def lead(run):
    """Differences over different pictures, of the method that is first under most truths."""
    firsts = [ranking(run, truth)[0]["method"] for truth in ablations(run) if ranking(run, truth)]
    best = max(dict.fromkeys(firsts), key=firsts.count)
    assert firsts.count(best) >= min(3, len(firsts))
    rows = [
        row
        for row in run.rows("differences", pictures="different", best=best)
        if row["truth"] in ablations(run) and row["method"] not in CONTROLS and row["p_holm"]
    ]
    sure = {}
    for row in rows:
        is_ahead = float(row["difference"]) > 0 and float(row["p_holm"]) < 0.05
        sure[row["method"]] = sure.get(row["method"], True) and is_ahead
    unsure = [name for name, ahead in sure.items() if not ahead]
    return {
        "best": best,
        "ahead": str(sum(sure.values())),
        "others": str(len(sure)),
        "level": "0.05",
        "unsure": f"; not of {', '.join(unsure)}" if unsure else "",
    }


def of_means(run, method):
    """Spearman over heads of mean score and mean effect; ranks are those of scores turned to matter more."""
    ranks = {
        (int(row["layer"]), int(row["head"])): float(row["rank"]) for row in run.rows("head_scores", method=method)
    }
    return spearmanr([-ranks[one] for one in run.effects], list(run.effects.values())).statistic


def truths_agree(run):
    rows = [row for row in run.rows("truths", statistic="spearman", estimator="mean") if row["value"]]
    values = [float(row["value"]) for row in rows]
    for row, value in zip(rows, values, strict=True):
        columns = [f"{row[key]}_var_pct" for key in ("truth_a", "truth_b")]
        heads = run.rows("head_scorecard")
        if int(row["n"]) == run.count and all(column in heads[0] for column in columns):
            both = [[float(head[column]) for head in heads] for column in columns]
            assert value == pytest.approx(spearmanr(*both).statistic, abs=1e-6)
    least = rows[values.index(min(values))]
    return {
        "low": f"{min(values):.2f}",
        "high": f"{max(values):.2f}",
        "first": least["truth_a"].removeprefix("ablation_"),
        "second": least["truth_b"].removeprefix("ablation_"),
    }


def better_than_depth(run):
    """By ranks among all methods, of which depth is one."""
    ranks = [name for name in run.rows("league")[0] if name.startswith("rank_")]
    (depth,) = run.rows("league", method="layer_index")
    trials = [row for row in run.trials() if any(row[name] for name in ranks)]
    better = [
        row["method"] for row in trials if all(row[name] and float(row[name]) < float(depth[name]) for name in ranks)
    ]
    return {
        "under": "under every truth" if len(ranks) > 1 else "by this truth",
        "better": str(len(better)),
        "of": str(len(run.trials())),
        "names": ", ".join(better) or "none",
    }


def worth_their_price(run):
    """The method on one half of the pictures against ablation of as many pictures of it as the price pays for."""
    paid = {row["method"]: row["spearman_matched"] for row in run.rows("ablation_at_cost") if row["spearman_matched"]}
    truth = run.rows("agreement")[0]["truth"]
    rows = run.rows("agreement", truth=truth, estimator="mean", statistic="spearman")
    own = {row["method"]: float(row["value_cross"] or "nan") for row in rows}
    names = [
        row["method"] for row in run.trials() if row["method"] in paid and own[row["method"]] == own[row["method"]]
    ]
    better = [name for name in names if own[name] > float(paid[name])]
    return {"of": str(len(names)), "better": str(len(better)), "names": ", ".join(better) or "none"}


def no_reference(run):
    return {"n": str(run.count), "enough": str(ENOUGH)} if run.count < ENOUGH else {"n": None, "enough": None}


def agrees_with_reference(run):
    other = run.reference
    both = [one for one in run.effects if one in other.effects]
    rho = spearmanr([run.effects[one] for one in both], [other.effects[one] for one in both]).statistic
    return no_reference(run) | {
        "verdict": "agree" if rho >= AGREEING else "do not agree well",
        "rho": f"{rho:.2f}",
        "shared": str(len(set(run.top(10)) & set(other.top(10)))),
        "top": "10",
        "own": str(other.count) if run.count > other.count else None,
        "estimated": " (these effects are estimates, its are not)" if "_estimated" in run.effect else "",
    }


def indicative_run(run):
    assert run.count < ENOUGH
    return {"n": str(run.count), "enough": str(ENOUGH)}


def fewer_pictures(run):
    numbers = {row["method"]: int(row["n"]) for row in run.rows("head_scores")}
    few = {name: number for name, number in numbers.items() if number < run.count}
    return {"n": str(min(few.values())), "names": ", ".join(few)}


def missing_tables(run):
    names = sorted(name for name in ("differences", "calibration", "truths", "twins", "roles") if not exists(run, name))
    return {"names": re.compile("|".join(re.escape(name) for name in names))}


def exists(run, name):
    return (run.folder / f"{name}.csv").exists()


CAUTION = r"ndicative: (?P<n>\d+) pictures, fewer than (?P<enough>\d+)"
# Form of a sentence -> what its groups must be; None for a group that must not be there.
SENTENCES: dict[str, Callable[[Tables], dict]] = {
    r"Heads that matter most on (?P<n>\d+) pictures \((?P<kind>[a-z ]+) ablation, % of the label variance\): "
    r"(?P<heads>.+)\.": heads_that_matter,
    r"(?P<told>(?:Method|No method is) closest to ablation.+\.) Farthest from (?P<kind>[a-z ]+) ablation: "
    r"(?P<last>\w+) \((?P<last_rho>[-\d.]+)(?:, on (?P<last_n>\d+) pictures)?\)\.": closest_and_farthest,
    r"(?P<best>\w+) is ahead of (?P<ahead>\d+) of (?P<others>\d+) other methods under every truth under which it is "
    r"first \(differences tested over pictures, Holm's p below (?P<level>[\d.]+)\)(?P<unsure>.*)\.": lead,
    r"The truths, two by two, agree with a Spearman of (?P<low>[-\d.]+) to (?P<high>[-\d.]+) over heads "
    r"\(least: (?P<first>\w+) and (?P<second>\w+)\)\.": truths_agree,
    r"Methods that order heads better than their depth alone (?P<under>under every truth|by this truth): "
    r"(?P<better>\d+) of (?P<of>\d+) \((?P<names>[\w, ]+)\)\.": better_than_depth,
    r"Of (?P<of>\d+) methods whose price pays for ablation of at least one picture in a half, (?P<better>\d+) agree "
    r"better with the effects of the other half than that ablation does \((?P<names>[\w, ]+)\)\.": worth_their_price,
    rf"No reference run to compare with\.(?: i{CAUTION})?": no_reference,
    rf"The reference run explains another model, so it is not compared with\.(?: i{CAUTION})?": no_reference,
    r"These pictures, (?:of another kind|which are among its own|(?P<own>\d+) of which are its own), "
    r"(?P<verdict>agree|do not agree well) with it(?P<estimated>(?: \([\w ,]+\))?): Spearman (?P<rho>[-\d.]+) over "
    rf"heads, (?P<shared>\d+) of the (?P<top>\d+) top heads shared\.(?: I{CAUTION}\.)?": agrees_with_reference,
    rf"I{CAUTION}: intervals are too narrow at this number and ranks unstable\.": indicative_run,
    r"Of the first (?P<n>\d+) pictures alone, to be read as indicative: (?P<names>[\w, ]+); column n of other tables "
    r"says how many theirs are\.": fewer_pictures,
    r"Nothing to be said by (?P<names>\w+): these pictures or methods do not allow it\.": missing_tables,
    r"CONTROL RUN: a small random network that was never trained\. Its heads mean nothing\.": lambda run: {},
}
OF_REFERENCE = "Reference run, "


def explain(sentence, run):
    """Assert that a sentence has one of the forms, and that every number and name in it is what the tables give."""
    if sentence.startswith(OF_REFERENCE):  # a sentence on the reference run's own tables
        inner = sentence.removeprefix(OF_REFERENCE)
        return explain(inner[0].upper() + inner[1:], run.reference)
    matches = [(form, found) for form in SENTENCES if (found := re.fullmatch(form, sentence))]
    assert len(matches) == 1, f"of no form: {sentence}"
    form, found = matches[0]
    spans = [found.span(name) for name in found.re.groupindex]
    loose = [at.start() for at in re.finditer(r"\d", sentence) if not any(a <= at.start() < b for a, b in spans)]
    assert not loose, f"numbers outside of what is explained: {sentence}"
    expected = run.expected(form)
    assert set(expected) == set(found.re.groupindex)
    for name, value in expected.items():
        if isinstance(value, re.Pattern):
            assert value.fullmatch(found[name]), (name, sentence)
        else:
            assert found[name] == value, (name, value, sentence)
    return form


class Items(HTMLParser):
    """The items of a page's lists that are no links."""

    def __init__(self, text):
        super().__init__()
        self.items, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "li":
            self.inside, self.items = True, [*self.items, ""]
        elif tag == "a" and self.inside:
            self.items, self.inside = self.items[:-1], False

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "li"

    def handle_data(self, data):
        if self.inside:
            self.items[-1] += data


def items_of(path):
    return [item.strip() for item in Items(path.read_text(encoding="utf-8")).items]


def sentences_of(folder):
    """The short answer as the tables on disk give it."""
    tables = {
        name: read_table(folder / f"{name}.csv") if (folder / f"{name}.csv").exists() else None
        for name in ("head_scorecard", "agreement", "league", "truths", "differences")
    }
    if tables["league"] is not None:
        tables["league"]["same_as"] = tables["league"]["same_as"].astype(object).fillna("")
    about_methods = describe_run(tables["head_scorecard"], tables["agreement"], tables["differences"])
    return about_methods + describe_league(tables["league"], tables["truths"])


def test_what_a_run_prints_follows_from_its_tables(finished_run):
    run = Tables(finished_run.folder)
    *said, where = finished_run.lines[1:-1]  # between the forecast and the time it took
    assert where == f"All of it: {finished_run.folder / 'report.html'}"
    forms = [explain(sentence, run) for sentence in said]
    assert len(forms) == len(set(forms)) >= 8
    assert sorted(items_of(finished_run.folder / "report.html")) == sorted(said)
    expected = sentences_of(finished_run.folder)
    assert len(expected) >= 5 and said[-len(expected) :] == expected


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_what_is_said_of_a_committed_run_follows_from_its_tables(folder):
    run = Tables(folder)
    shown = items_of(folder / "report.html")
    forms = {explain(sentence, run) for sentence in shown}
    said = sentences_of(folder)
    assert {explain(sentence, run) for sentence in said} <= forms and set(said) <= set(shown)
    assert len(said) == len(shown) - sum(sentence.startswith(("Of the", "Nothing", "The ref")) for sentence in shown)


def written(folder, effects, count, effect="ablation_zero_var_pct"):
    """A folder with a scorecard of these mean effects [layer head] on so many pictures."""
    rows = [
        {"layer": layer, "head": head, effect: effects[layer, head], "n": count}
        for layer in range(effects.shape[0])
        for head in range(effects.shape[1])
    ]
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "head_scorecard.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def reference():
    found = read_reference(REFERENCE)
    assert found is not None  # it is committed
    return found


@pytest.mark.parametrize(
    ("case", "count", "kind"),
    [
        ("own", 16, "ablation_zero"),
        ("more", 256, "ablation_zero"),
        ("another kind", 128, "ablation_zero"),
        ("estimated", 128, "ablation_zero_estimated"),
        ("unlike", 40, "ablation_zero"),
    ],
)
def test_what_is_said_beside_the_reference_run(reference, tmp_path, case, count, kind):
    stored = read_scores(REFERENCE / "scores" / "ablation_zero.safetensors")[0]["delta_loss"]
    part = stored[:16] if case == "own" else stored[stored.shape[0] // 2 :]
    means = [[fmean(100 * part[:, layer, head]) for head in range(6)] for layer in range(12)]
    effects = pd.DataFrame(means).to_numpy()
    if case == "unlike":
        effects = effects[::-1]
    folder = written(tmp_path / "run", effects, count, f"{kind}_var_pct")
    data = {"preset": "published"} if case == "another kind" else reference.data
    said = compare_with_reference(
        read_table(folder / "head_scorecard.csv"), None, reference, reference.weights_sha256, data
    )
    run = Tables(folder, Tables(REFERENCE))
    forms = [explain(sentence, run) for sentence in said]
    assert len(said) == 3 and len(set(forms)) == 3
    words = {
        "own": "which are among its own",
        "more": "128 of which are its own",
        "another kind": "of another kind",
        "estimated": "these effects are estimates",
        "unlike": "do not agree well",
    }
    assert words[case] in said[-1] and ("Indicative" in said[-1]) == (count < ENOUGH)
    assert explain(describe_run(read_table(folder / "head_scorecard.csv"), None)[0], run) == forms[0]


@pytest.mark.parametrize("count", [16, 128])
def test_what_is_said_without_a_reference_run(reference, tmp_path, count):
    stored = read_scores(REFERENCE / "scores" / "ablation_zero.safetensors")[0]["delta_loss"]
    folder = written(tmp_path / "run", 100 * stored.mean(axis=0), count)
    scorecard = read_table(folder / "head_scorecard.csv")
    for other, sha256 in ((None, "any"), (reference, "another")):
        (said,) = compare_with_reference(scorecard, None, other, sha256, {})
        explain(said, Tables(folder))
        assert ("fewer than 128" in said) == (count < ENOUGH)


def test_a_reference_is_read_as_it_was_written(reference):
    record = json.loads((REFERENCE / "manifest.json").read_text(encoding="utf-8"))
    assert isinstance(reference, Reference) and reference.data == record["data"]
    assert reference.weights_sha256 == record["model"]["weights_sha256"]


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_no_number_of_a_sentence_can_change_unnoticed(folder):
    """The tests above can fail: one digit another, a word more or a method less, and they do."""
    run = Tables(folder)
    for sentence in items_of(folder / "report.html"):
        numbers = list(re.finditer(r"\d+", sentence))
        for number in numbers:
            changed = sentence[: number.end() - 1] + str((int(number[0][-1]) + 1) % 10) + sentence[number.end() :]
            with pytest.raises(AssertionError):
                explain(changed, run)
        for changed in (sentence + " 3 more.", sentence.replace(", ", " and ", 1) if ", " in sentence else ""):
            with pytest.raises(AssertionError):
                explain(changed, run)
