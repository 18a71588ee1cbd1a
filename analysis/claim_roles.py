"""What the claims say of roles, measured: C3 and the first part of C5 by counting heads, C4 by counting detectors that
do not matter.

Takes the tables of ``roles`` (one model, one threshold, both queries) and ``role_halves``, and effects; gives rows
(columns of :data:`analysis.verdict_rules.MEASURED`). Left out, one at a time, are heads where heads are counted, and
pictures where their effects decide (C4). Judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import betaincinv

from analysis.artists import head_name
from analysis.fragility import (
    SHARE,
    LeftOut,
    largest_share,
    left_out,
    picture_names,
    trimmed,
    without_each,
)
from analysis.intervals import Indices, Interval, bootstrap_interval, interval_over_images
from analysis.plan import read_plan
from analysis.verdict_rules import (
    CHIRP_DETECTED,
    CHIRP_MINUS,
    CHIRP_SHARE,
    CONFIRMED,
    DETECTORS,
    KAPPA,
    NAMED_DETECTORS,
    POLYSEMANTIC,
    by_query,
    by_tau,
    word_of,
)

HEADS, SHARE_OF_HEADS = "heads", "share of heads"
DETECTOR, STAYS, OPEN, UNJUDGED = "detector", "position prior", "undecided", "untested"
NO_MASKS = "pictures without masks have no roles"
NO_ROLES = "no roles by this threshold or query"

Floats = NDArray[np.float64]
Row = dict[str, Any]
Limits = tuple[float, float, float]  # value, low, high


def chirp_alone(
    roles: pd.DataFrame, num_layers: int, others: Mapping[float, pd.DataFrame] = MappingProxyType({})
) -> list[Row]:
    """C3: share of monosemantic chirp heads (CLS query), deeper and earlier layers; intervals over heads. ``others``:
    roles by the plan's other thresholds of looking."""
    plan = read_plan()["C3"]
    level = plan["level"]
    beside = {by_tau(CHIRP_SHARE, tau): others.get(tau, pd.DataFrame()) for tau in plan["taus_beside"]}
    if not len(roles) or num_layers <= max(plan["layers"]):
        note = f"the model has {num_layers} layers" if len(roles) else NO_MASKS
        return [{"quantity": name, "note": note} for name in (CHIRP_SHARE, CHIRP_MINUS, CHIRP_DETECTED, *beside)]
    roles = roles[roles["query"] == "cls"]
    deeper, earlier = (roles[roles["layer"].isin(plan[name])] for name in ("layers", "earlier_layers"))
    is_one, was_one = (_is_chirp_alone(found) for found in (deeper, earlier))
    names, of_earlier = _head_names(deeper), _head_names(earlier)
    count: Row = {"n_pictures": int(roles["n"].max()), "level": level}
    share = _counted("C3", CHIRP_SHARE, is_one, names, level) | count
    before: Row = dict(zip(("value", "ci_low", "ci_high"), proportion(was_one, level), strict=True))
    before |= {"quantity": "the same share of layers 1-5", "unit": SHARE_OF_HEADS, "n_heads": len(earlier)} | count

    def minus(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Limits:
        return difference(proportion(one, level), proportion(other, level))

    each = [minus(np.delete(is_one, place), was_one) for place in range(len(is_one))]
    each += [minus(is_one, np.delete(was_one, place)) for place in range(len(was_one))]
    row = _head_row("C3", CHIRP_MINUS, SHARE_OF_HEADS, minus(is_one, was_one), each, [*names, *of_earlier])
    looks = deeper["concepts"].fillna("").astype(str).map(lambda told: "chirp" in told.split(";")).to_numpy(bool)
    rows = [share, before, row | {"n_heads": len(deeper) + len(earlier)} | count]
    rows.append(_counted("C3", CHIRP_DETECTED, looks, names, level) | count)
    for quantity, found in beside.items():
        if not len(found):
            rows.append({"quantity": quantity, "note": NO_ROLES})
            continue
        here = found[(found["query"] == "cls") & found["layer"].isin(plan["layers"])]
        rows.append(_counted("C3", quantity, _is_chirp_alone(here), _head_names(here), level) | count)
    return rows


def proportion(is_one: NDArray[np.bool_], level: float) -> Limits:
    """Share and its Clopper-Pearson limits, quantiles of beta distributions."""
    number, count, tail = int(is_one.sum()), len(is_one), (1 - level) / 2
    low = betaincinv(number, count - number + 1, tail) if number else 0.0
    high = betaincinv(number + 1, count - number, 1 - tail) if number < count else 1.0
    return number / count, float(low), float(high)


def difference(one: Limits, other: Limits) -> Limits:
    """One share minus another, limits by square-and-add of the two intervals (Newcombe 1998, method 10, whose Wilson
    intervals are exact ones here)."""
    (p, low, high), (q, below, above) = one, other
    value = p - q
    return value, value - float(np.hypot(p - low, above - q)), value + float(np.hypot(high - p, q - below))


def irrelevant_detectors(
    roles: pd.DataFrame,
    effects: Floats,
    indices: Indices,
    others: Mapping[float, pd.DataFrame] = MappingProxyType({}),
) -> list[Row]:
    """C4: how many heads of layers 1 to 4 detect an irrelevant thing and do not matter: by either query, then by each,
    by the thresholds of ``others``, and those alone that the study names and that look at nothing else.

    ``value`` and ``ci_low``: heads that twins confirm, whose interval of the effect lies within the margin.
    ``ci_high``: those and all that may be such; NaN where it is heads that no twin judged that could make up the
    number asked.
    """
    plan = read_plan()["C4"]
    rows = []
    for quantity, here, concepts in _detector_rows(roles, others):
        if here is None:
            rows.append({"quantity": quantity, "note": NO_ROLES if len(roles) else NO_MASKS})
        elif len(here) and not here["verdict"].isin([DETECTOR, STAYS, OPEN]).any() and (here["verdict"] != "").any():
            rows.append({"quantity": quantity, "note": "pictures without twins confirm no detector"})
        else:
            own = here[here["layer"].isin(plan["layers"])]
            rows.append(_detectors(quantity, own, concepts, effects, indices))
    return rows


def _detector_rows(
    roles: pd.DataFrame, others: Mapping[float, pd.DataFrame]
) -> Iterator[tuple[str, pd.DataFrame | None, Sequence[str]]]:
    """Every quantity of C4 with the roles that it counts (None: there are no roles) and the things looked at."""
    plan = read_plan()["C4"]

    def by(queries: Sequence[str], of: pd.DataFrame | None) -> pd.DataFrame | None:
        found = None if of is None or not len(of) else of[of["query"].isin(queries)]
        return None if found is None or not len(found) else found

    yield DETECTORS, by(plan["queries"], roles), plan["concepts"]
    for query in plan["queries"]:
        yield by_query(query), by([query], roles), plan["concepts"]
    for tau in plan["taus_beside"]:
        yield by_tau(DETECTORS, tau), by(plan["queries"], others.get(tau)), plan["concepts"]
    every = by(plan["queries"], roles)  # no head that looks at one thing alone is a number, no roles are none
    alone = None if every is None else every[every["semanticity"] == "monosemantic"]
    yield NAMED_DETECTORS, alone, plan["named"]


def _detectors(quantity: str, roles: pd.DataFrame, concepts: Sequence[str], effects: Floats, indices: Indices) -> Row:
    level = read_plan()["C1"]["level"]
    states = looking(roles, concepts)
    found = {head: effects[:, head[0], head[1]] for head in states}
    value, low, high = _number(states, {head: _limits(one, indices, level, "mean") for head, one in found.items()})
    heads = len(roles[["layer", "head"]].drop_duplicates())
    row: Row = {"quantity": quantity, "unit": HEADS, "value": value, "ci_low": low, "ci_high": high}
    row |= {"level": level, "n_pictures": len(effects), "n_heads": heads, "note": _told(states)}
    if not states:
        return row
    inner = _number(states, {head: _limits(one, indices, level, "trimmed") for head, one in found.items()})
    row |= trimmed(Interval(*(np.array([one]) for one in inner)))
    row[SHARE] = max(largest_share(one) for one in found.values())
    count = len(effects)
    if count < 3:
        return row
    rest = {
        head: interval_over_images(without_each(one), indices(count - 1), level=level) for head, one in found.items()
    }
    each = [_number(states, {head: (one.low[place], one.high[place]) for head, one in rest.items()})
            for place in range(count)]  # fmt: skip
    return row | _without("C4", row, each, picture_names(range(count)))


def looking(roles: pd.DataFrame, concepts: Collection[str]) -> dict[tuple[int, int], str]:
    """Heads that look at one of these things, by any query of these rows, and what twins make of that: detector,
    undecided, or untested where no twin judged it; those that stay are left out."""
    found: dict[tuple[int, int], str] = {}
    order = (DETECTOR, OPEN, UNJUDGED)
    for row in roles.to_dict("records"):
        named = str(row["concepts"]).split(";") if isinstance(row["concepts"], str) else []
        if not set(concepts) & set(named) or row["verdict"] == STAYS:
            continue
        state = row["verdict"] if row["verdict"] in (DETECTOR, OPEN) else UNJUDGED
        head = (int(row["layer"]), int(row["head"]))
        found[head] = min(state, found.get(head, state), key=order.index)
    return found


def _number(states: dict[tuple[int, int], str], limits: dict[tuple[int, int], tuple[float, float]]) -> Limits:
    """How many surely are detectors that do not matter, twice, and how many at most."""
    margin, least = read_plan()["C1"]["margin_var_pct"], read_plan()["C4"]["least_heads"]
    small = {head: -margin < low and high < margin for head, (low, high) in limits.items()}
    matters = {head: low >= margin or high <= -margin for head, (low, high) in limits.items()}
    sure = sum(state == DETECTOR and small[head] for head, state in states.items())
    unjudged = sum(state == UNJUDGED and not matters[head] for head, state in states.items())
    possible = sum(not matters[head] for head in states)
    unknown = sure < least <= possible and possible - unjudged < least
    return float(sure), float(sure), float("nan") if unknown else float(possible)


def _told(states: dict[tuple[int, int], str]) -> str:
    number = {state: sum(one == state for one in states.values()) for state in (DETECTOR, OPEN, UNJUDGED)}
    return (
        f"{len(states)} head(s) of these layers attend to such a thing and do not stay when it goes: twins confirm "
        f"{number[DETECTOR]}, leave {number[OPEN]} undecided, and have not judged {number[UNJUDGED]}"
    )


def maps_repeat(roles: pd.DataFrame, halves: pd.DataFrame, indices: Indices) -> list[Row]:
    """C5 from roles: how many heads are polysemantic (CLS query), do roles repeat in other pictures, do twins confirm
    the monosemantic ones?"""
    level = read_plan()["C5"]["level"]
    if not len(roles) or not len(halves):
        return [{"quantity": name, "note": NO_MASKS} for name in (POLYSEMANTIC, KAPPA, CONFIRMED)]
    roles = roles[roles["query"] == "cls"]
    pictures = {"n_pictures": int(roles["n"].max())}
    many = (roles["semanticity"] == "polysemantic").to_numpy()
    number = float(many.sum())
    each = [(number - one,) * 3 for one in many.astype(float)]
    rows = [_head_row("C5", POLYSEMANTIC, HEADS, (number,) * 3, each, _head_names(roles)) | {"n_heads": len(roles)}]
    rows[0] |= pictures
    rows.append(_kappa(halves, indices, level))
    mono = roles[roles["semanticity"] == "monosemantic"]
    if not len(mono) or (mono["verdict"] == UNJUDGED).all():
        note = "pictures without twins confirm no head" if len(mono) else "no head is monosemantic"
        return [*rows, {"quantity": CONFIRMED, "note": note}]
    return [*rows, _confirmed(mono, level) | {"level": level} | pictures]


def _confirmed(mono: pd.DataFrame, level: float) -> Row:
    """The share of monosemantic heads that twins confirm, left out one at a time: its lower limit counts those that are
    confirmed, its upper one all whose attention was not seen to stay; what twins left open, or had no edit for, is
    evidence of neither."""

    def limits(verdicts: NDArray[Any]) -> Limits:
        value, low, _ = proportion(verdicts == DETECTOR, level)
        return value, low, proportion(verdicts != STAYS, level)[2]

    verdicts = mono["verdict"].to_numpy(dtype=object)
    count = len(verdicts)
    each = [limits(np.delete(verdicts, place)) for place in range(count)] if count > 1 else []
    return _head_row("C5", CONFIRMED, SHARE_OF_HEADS, limits(verdicts), each, _head_names(mono)) | {"n_heads": count}


def _kappa(halves: pd.DataFrame, indices: Indices, level: float) -> Row:
    first, second = (halves[name].to_numpy(dtype=object) for name in ("role_a", "role_b"))
    if len(set(first) | set(second)) == 1:
        return {"quantity": KAPPA, "note": "every head has the same role: there is nothing to tell apart"}

    def interval(a: NDArray[Any], b: NDArray[Any]) -> Limits:
        if len(a) < 2:
            return float("nan"), float("nan"), float("nan")
        found = bootstrap_interval(partial(kappa, a, b), indices(len(a)), level=level)
        return float(found.value[0]), float(found.low[0]), float(found.high[0])

    each = [interval(np.delete(first, place), np.delete(second, place)) for place in range(len(first))]
    row = _head_row("C5", KAPPA, "Cohen's kappa", interval(first, second), each, _head_names(halves))
    return row | {"level": level, "n_heads": len(halves), "n_pictures": int(halves["n_a"].max())}


def kappa(first: NDArray[Any], second: NDArray[Any], counts: Floats) -> Floats:
    """Cohen's kappa of two labellings [head] under rows of counts, [replicate 1]; NaN where all labels are one."""
    names = sorted(set(first) | set(second))
    one, other = (
        np.array([[label == name for name in names] for label in labels], float) for labels in (first, second)
    )
    total = counts.sum(axis=1)
    agreed = counts @ (first == second).astype(float) / total
    chance = ((counts @ one) * (counts @ other)).sum(axis=1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1 - 1e-12, (agreed - chance) / (1 - chance), np.nan)[:, None]


def _is_chirp_alone(roles: pd.DataFrame) -> NDArray[np.bool_]:
    return ((roles["semanticity"] == "monosemantic") & (roles["concepts"] == "chirp")).to_numpy()


def _counted(claim: str, quantity: str, is_one: NDArray[np.bool_], names: Sequence[str], level: float) -> Row:
    each = [proportion(np.delete(is_one, place), level) for place in range(len(is_one))] if len(is_one) > 1 else []
    row = _head_row(claim, quantity, SHARE_OF_HEADS, proportion(is_one, level), each, names)
    return row | {"n_heads": len(is_one)}


def _head_row(claim: str, quantity: str, unit: str, found: Limits, each: Sequence[Limits], names: Sequence[str]) -> Row:
    row: Row = {"quantity": quantity, "unit": unit} | dict(zip(("value", "ci_low", "ci_high"), found, strict=True))
    return row | _without(claim, row, each, names)


def _without(claim: str, row: Row, each: Sequence[Limits], names: Sequence[str]) -> Row:
    says: Callable[[float, float], str] = partial(word_of, claim, row["quantity"])
    limits = Interval(*np.array(each, dtype=np.float64).reshape(-1, 3).T)
    return left_out(row["value"], says(row["ci_low"], row["ci_high"]), LeftOut(names[: len(each)], limits), says)


def _limits(values: Floats, indices: Indices, level: float, estimator: str) -> tuple[float, float]:
    found = interval_over_images(values[:, None], indices(len(values)), estimator=estimator, level=level)
    return float(found.low[0]), float(found.high[0])


def _head_names(rows: pd.DataFrame) -> list[str]:
    return [head_name(layer, head) for layer, head in zip(rows["layer"], rows["head"], strict=True)]
