"""Figures of the roles of heads: the data on the artists. `role_tables` makes the tables without a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from analysis import role_plots
from analysis.artists import head_name
from analysis.role_plots import CODES, DIFFERENCE, KINDS, MARKS

CONCEPTS = tuple(CODES)
ITEMS = ("text", "title", "x_label", "y_label", "x_ticks", "y_ticks", "colorbar")
SIZES = [(12, 6), (12, 12)]


def role_tables(num_layers: int = 12, num_heads: int = 6, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Tables shaped like a run's: all roles occur, lifts are heavy-tailed with zeros, some evidence is missing."""
    rng = np.random.default_rng(seed)
    heads = [(layer, head) for layer in range(num_layers) for head in range(num_heads)]
    roles: list[dict] = []
    concepts: list[dict] = []
    for model in ("finetuned", "pretrained"):
        for query in ("cls", "mean"):
            lifts = np.exp(rng.normal(0.1, 1.1, (len(heads), len(CONCEPTS)))) * (rng.random((len(heads), 6)) > 0.04)
            for (layer, head), row in zip(heads, lifts, strict=True):
                where = {"layer": layer, "head": head, "model": model, "query": query}
                concepts += [where | {"concept": c, "lift": v, "n": 256} for c, v in zip(CONCEPTS, row, strict=True)]
                for tau in (2.0, 3.0, 5.0):
                    found = [c for c, v in zip(CONCEPTS, row, strict=True) if v > tau]
                    kind = ("diffuse", "monosemantic", "polysemantic")[min(len(found), 2)]
                    verdict, evidence = "", np.nan
                    if kind == "monosemantic":
                        verdict = str(rng.choice(list(MARKS)))
                        evidence = np.nan if verdict == "untested" else rng.normal(0.5, 0.4)
                        kind = ("monosemantic", "monosemantic", "positional", "unclassified")[(layer + head) % 4]
                    roles.append(
                        where
                        | {"tau": tau, "semanticity": kind, "concepts": ";".join(found), "verdict": verdict}
                        | {"evidence": evidence, "n": 256}
                    )
    card = pd.DataFrame(heads, columns=["layer", "head"])
    card["ablation_zero_var_pct"] = rng.standard_t(1.5, len(card)) * 0.3
    card["iou_chirp_adjusted"] = rng.beta(1.2, 9, len(card)) - 0.03
    changes: list[dict] = []
    for item in ITEMS:
        values = rng.normal(0, 0.02, (num_layers, num_heads)) + np.linspace(0, 0.05, num_layers)[:, None]
        for layer, row in enumerate(values):
            for head, value in ((np.nan, row.mean()), *enumerate(row)):
                bounds = {"ci_low": value - 0.02, "ci_high": value + 0.03}
                changes.append({"layer": layer, "head": head, "item": item, DIFFERENCE[0]: value, "n": 256} | bounds)
    slopes = [(item, rng.normal(0, 0.01), -0.0123, 0.0212, 256) for item in ITEMS]
    return {
        "roles": pd.DataFrame(roles),
        "concepts": pd.DataFrame(concepts),
        "scorecard": card,
        "distraction": pd.DataFrame(changes),
        "slopes": pd.DataFrame(slopes, columns=["item", *role_plots.SLOPE, "n"]),
    }


@pytest.fixture(scope="module")
def tables():
    return role_tables()


def one_role(**changed) -> dict:
    row = {"layer": 0, "head": 0, "model": "finetuned", "query": "cls", "tau": 3.0, "semanticity": "monosemantic"}
    return row | {"concepts": "chirp", "verdict": "detector", "evidence": 1.0} | changed


def few_roles() -> pd.DataFrame:
    """One head of each look; the last place of the grid (L1H3) has no row."""
    rows = [
        one_role(),
        one_role(head=1, concepts="text", verdict="position prior", evidence=0.5),
        one_role(head=2, concepts="edge", verdict="undecided", evidence=-0.3),
        one_role(head=3, concepts="sink", verdict="untested", evidence=np.nan),
        one_role(layer=1, semanticity="polysemantic", concepts="chirp;text;edge", verdict="", evidence=np.nan),
        one_role(layer=1, head=1, semanticity="diffuse", concepts=np.nan, verdict=np.nan, evidence=np.nan),
        one_role(layer=1, head=2, concepts="colorbar", verdict="detector", evidence=7.0),
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=1)


def texts_at(ax) -> dict[tuple[float, float], str]:
    """Texts of cells by layer and head."""
    return {text.get_position()[::-1]: text.get_text() for text in ax.texts}


# ---- role_map ----


def test_role_map_writes_the_code_and_the_mark_of_each_head():
    ax = role_plots.role_map(few_roles()).axes[0]
    assert texts_at(ax) == {
        **{(0, 0): "ch D", (0, 1): "tx P", (0, 2): "ed ?", (0, 3): "si –"},
        **{(1, 0): "3", (1, 1): "–", (1, 2): "cb D"},
    }


def test_role_map_shades_the_colour_of_the_concept_by_the_evidence():
    cells = role_plots.role_map(few_roles()).axes[0].images[0].get_array()
    assert np.allclose(cells[0, 0], to_rgb(KINDS["chirp"]))  # full at 1 and, clipped, above it
    assert np.allclose(cells[1, 2], to_rgb(KINDS["colorbar"]))
    half = 1 - (0.35 + 0.65 * 0.5) * (1 - np.array(to_rgb(KINDS["text"])))
    assert np.allclose(cells[0, 1], half)
    for place, kind in (((0, 2), "edge"), ((0, 3), "sink")):  # below 0, none at all: palest, yet no white
        assert np.allclose(cells[place], 1 - 0.35 * (1 - np.array(to_rgb(KINDS[kind]))))
        assert cells[place].min() < 0.9
    assert np.allclose(cells[1, 0], to_rgb(KINDS["polysemantic"]))
    assert np.allclose(cells[1, 1], to_rgb(KINDS["diffuse"]))
    assert (cells[1, 3] == 1).all()  # no row


def test_role_map_has_a_panel_for_each_model_that_there_is(tables):
    roles = tables["roles"]
    panels = role_plots.role_map(roles).axes
    assert [ax.get_title() for ax in panels] == ["fine-tuned", "pretrained"]
    assert [len(ax.texts) for ax in panels] == [72, 72]
    only = roles[roles["model"] == "finetuned"]
    assert [ax.get_title() for ax in role_plots.role_map(only).axes] == ["fine-tuned"]
    assert [ax.get_title() for ax in role_plots.role_map(roles, models=("pretrained",)).axes] == ["pretrained"]


def test_role_map_takes_the_query_and_the_threshold_asked_for(tables):
    roles = tables["roles"]
    figure = role_plots.role_map(roles, query="mean", tau=5)
    assert figure.get_suptitle() == "Roles of the heads (mean query, τ = 5)"
    chosen = roles.query("query == 'mean' and tau == 5 and model == 'pretrained'")
    texts = texts_at(figure.axes[1])
    for row in chosen[chosen["semanticity"] == "monosemantic"].itertuples():
        assert texts[row.layer, row.head] == f"{CODES[row.concepts]} {MARKS[row.verdict]}"
    assert sum(text.isdigit() for text in texts.values()) == (chosen["semanticity"] == "polysemantic").sum()


def test_role_map_marks_a_concept_among_others_and_takes_a_positional_head_for_its_concept():
    rows = [one_role(semanticity="unclassified"), one_role(head=1, semanticity="positional", verdict="position prior")]
    assert texts_at(role_plots.role_map(pd.DataFrame(rows)).axes[0]) == {(0, 0): "ch D+", (0, 1): "ch P"}


def test_role_map_reads_a_file_whose_cells_are_all_empty():
    row = one_role(semanticity="diffuse", concepts=np.nan, verdict=np.nan, evidence=np.nan)
    assert texts_at(role_plots.role_map(pd.DataFrame([row])).axes[0]) == {(0, 0): "–"}


def test_role_map_explains_the_colours_in_use_and_every_mark():
    (legend,) = role_plots.role_map(few_roles()).legends
    kinds = ["chirp (ch)", "text (tx)", "colorbar (cb)", "edge (ed)", "sink (si)", "polysemantic", "diffuse"]
    assert [text.get_text() for text in legend.get_texts()] == kinds
    assert all(f"{mark} {verdict}" in legend.get_title().get_text() for verdict, mark in MARKS.items())


def contrast(one, other) -> float:
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return np.dot(linear, (0.2126, 0.7152, 0.0722)) + 0.05

    ratio = luminance(one) / luminance(other)
    return max(ratio, 1 / ratio)


@pytest.mark.parametrize("size", SIZES)
def test_role_map_has_texts_that_fit_their_cells_and_read_on_them(size):
    figure = role_plots.role_map(role_tables(*size)["roles"])
    figure.draw_without_rendering()
    for ax in figure.axes:
        cell = ax.get_window_extent()
        for text in ax.texts:
            box = text.get_window_extent()
            assert box.width < 0.95 * cell.width / size[1] and box.height < 0.95 * cell.height / size[0]
            head, layer = text.get_position()
            if text.get_text() != "–":  # the dash of a diffuse head may step back
                assert contrast(text.get_color(), ax.images[0].get_array()[layer, head]) > 4.2


def test_colours_of_concepts_differ_for_every_kind_of_colour_vision():
    """Distances after the dichromat simulations of Viénot et al. (1999) in linear RGB; codes tell the rest apart."""
    full = np.array([to_rgb(KINDS[name]) for name in KINDS]) ** 2.2
    protan = np.array([[0.112, 0.888, 0], [0.112, 0.888, 0], [0.004, -0.004, 1]])
    deutan = np.array([[0.293, 0.707, 0], [0.293, 0.707, 0], [-0.021, 0.021, 1]])
    for seen in (full, full @ protan.T, full @ deutan.T):
        shown = np.clip(seen, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(shown[:, None] - shown[None], axis=2) + np.eye(len(shown))
        assert apart.min() > 0.12
    assert len(set(CODES.values())) == len(CODES)


# ---- lifts_before_after ----


def test_lifts_before_after_places_each_head_and_floors_zeros(tables):
    concepts = tables["concepts"]
    figure = role_plots.lifts_before_after(concepts.sample(frac=1, random_state=0).sort_values("concept"))
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title().splitlines()[0] for ax in panels] == sorted(CONCEPTS)
    for ax in panels:
        rows = concepts[(concepts["query"] == "cls") & (concepts["concept"] == ax.get_title().splitlines()[0])]
        pairs = rows.pivot(index=["layer", "head"], columns="model", values="lift")[["pretrained", "finetuned"]]
        drawn = ax.collections[0].get_offsets().data
        assert sorted(drawn.tolist()) == sorted(pairs.clip(lower=0.01).to_numpy().tolist())
        rho = pairs.corr(method="spearman").iloc[0, 1]
        assert ax.get_title().endswith(f"Spearman ρ = {rho:.2f}, 72 heads".replace("-", "−"))
        assert ax.get_xscale() == ax.get_yscale() == "log"
        assert ax.get_xlim() == ax.get_ylim() and ax.get_xlim()[0] < drawn.min() and drawn.max() < ax.get_xlim()[1]
        change = np.log(pairs["finetuned"].clip(lower=0.01) / pairs["pretrained"].clip(lower=0.01)).abs()
        most = {head_name(*head) for head in change.nlargest(4).index}
        assert {text.get_text() for text in ax.texts if text.get_text()} == most


def test_lifts_before_after_skips_concepts_without_pairs(tables):
    concepts = tables["concepts"].copy()
    concepts.loc[concepts["concept"] == "sink", "lift"] = np.nan
    concepts = concepts[~((concepts["concept"] == "edge") & (concepts["model"] == "pretrained"))]
    figure = role_plots.lifts_before_after(concepts)
    titles = dict(ax.get_title().split("\n") for ax in figure.axes if ax.get_title())
    assert list(titles) == ["chirp", "text", "colorbar", "corner"]
    assert titles["chirp"].endswith("72 heads")
    assert "CLS query" in figure.get_supxlabel()
    none = role_plots.lifts_before_after(concepts.assign(lift=np.nan))
    assert all(ax.get_title().endswith("no head with both lifts") for ax in none.axes if ax.get_title())


def test_lifts_before_after_gives_no_correlation_of_a_constant(tables):
    figure = role_plots.lifts_before_after(tables["concepts"].assign(lift=0.0), labelled=0)
    assert figure.axes[0].get_title() == "chirp\nSpearman ρ = –, 72 heads"
    assert not figure.axes[0].texts


# ---- quadrant_by_role ----


def drawn_roles(ax) -> dict[str, object]:
    return {c.get_label(): c for c in ax.collections if not c.get_label().startswith("_")}


def few_scores() -> pd.DataFrame:
    card = few_roles()[["layer", "head"]].sort_values(["layer", "head"], ignore_index=True)
    return card.assign(iou_chirp_adjusted=np.linspace(0, 0.6, 7), ablation_zero_var_pct=np.linspace(3, 1, 7))


def test_quadrant_by_role_draws_each_role_at_its_heads_with_its_look():
    card = few_scores()
    ax = role_plots.quadrant_by_role(card, few_roles())
    roles = drawn_roles(ax)
    names = ["chirp detector", "text position prior", "edge undecided", "sink untested"]
    names += ["polysemantic", "diffuse", "colorbar detector"]
    for name, row in zip(names, card.itertuples(), strict=True):
        assert roles[name].get_offsets().tolist() == [[row.iou_chirp_adjusted, row.ablation_zero_var_pct]]
    filled, prior, hollow, many = (roles[names[at]] for at in (0, 1, 2, 4))
    assert np.allclose(filled.get_facecolor()[0, :3], to_rgb(KINDS["chirp"]))
    assert np.allclose(prior.get_facecolor()[0, :3], to_rgb(KINDS["text"]))
    assert np.allclose(hollow.get_facecolor()[0, :3], 1)
    assert np.allclose(hollow.get_edgecolor()[0, :3], to_rgb(KINDS["edge"]))
    assert roles["diffuse"].get_sizes()[0] < filled.get_sizes()[0]
    corners = {len(c.get_paths()[0].vertices) for c in (prior, many)}
    assert corners == {5} and len(filled.get_paths()[0].vertices) > 5
    lines = [line.get_xydata()[0] for line in ax.lines]
    assert lines[0][0] == pytest.approx(0.3) and lines[1][1] == pytest.approx(2)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[-3:] == ["detector", "position prior", "undecided or untested"]
    assert texts[:-3] == ["chirp", "text", "colorbar", "edge", "sink", "polysemantic", "diffuse"]


def test_quadrant_by_role_reads_the_fine_tuned_model_at_one_threshold(tables):
    roles = tables["roles"]
    ax = role_plots.quadrant_by_role(tables["scorecard"], roles, query="mean", tau=2)
    chosen = roles.query("model == 'finetuned' and query == 'mean' and tau == 2")
    counts = chosen.groupby(["concepts", "verdict"]).size()
    drawn = drawn_roles(ax)
    assert len(drawn["chirp detector"].get_offsets()) == counts["chirp", "detector"]
    assert sum(len(c.get_offsets()) for c in drawn.values()) == 72
    assert "mean query, τ = 2" in ax.get_title()
    assert "symmetric log" in ax.get_ylabel()
    assert ax.get_title().endswith("\ndashed: medians over heads")
    assert "helps less than the median head,\nlooks there more" in [text.get_text() for text in ax.texts]
    names = [text.get_text() for text in ax.texts if text.get_text().startswith("L")]
    top = tables["scorecard"].nlargest(1, "ablation_zero_var_pct").iloc[0]
    assert 8 < len(names) <= 16 and head_name(top["layer"], top["head"]) in names


def test_quadrant_by_role_counts_heads_without_a_value_and_takes_axes():
    card = few_scores()
    card.loc[0, "ablation_zero_var_pct"] = np.nan
    mine = role_plots.new_axes(None, 5, 4)
    ax = role_plots.quadrant_by_role(card, few_roles(), ax=mine)
    assert ax is mine and "1 heads without a value" in ax.get_title()
    none = role_plots.quadrant_by_role(card.assign(iou_chirp_adjusted=np.nan), few_roles())
    assert [text.get_text() for text in none.texts] == ["no head has both values"]


# ---- role_counts ----


def test_role_counts_stacks_what_the_table_counts(tables):
    roles = tables["roles"]
    panels = role_plots.role_counts(roles).axes
    assert [ax.get_title() for ax in panels] == ["fine-tuned", "pretrained"]
    for ax, rows_of_model in zip(
        panels, (roles[roles["model"] == m] for m in ("finetuned", "pretrained")), strict=True
    ):
        assert [label.get_text() for label in ax.get_yticklabels()] == ["τ = 2", "τ = 3", "τ = 5"]
        for at, tau in enumerate((2, 3, 5)):
            bars = [c for c in ax.containers if round(c.patches[0].get_y() + 0.41) == at]
            rows = rows_of_model[(rows_of_model["query"] == "cls") & (rows_of_model["tau"] == tau)]
            counts = {c.get_label(): c.patches[0].get_width() for c in bars}
            assert sum(counts.values()) == 72
            assert counts["polysemantic"] == (rows["semanticity"] == "polysemantic").sum()
            own = rows[(rows["concepts"] == "text") & (rows["verdict"] == "untested")]
            assert counts.get("text untested", 0) == len(own)
            ends = np.cumsum([c.patches[0].get_width() for c in bars])
            assert [c.patches[0].get_x() for c in bars] == [0, *ends[:-1]]


@pytest.mark.parametrize("size", SIZES)
def test_role_counts_writes_numbers_only_where_they_fit(size):
    ax = role_plots.role_counts(role_tables(*size)["roles"]).axes[0]
    bars = {
        (c.patches[0].get_x() + c.patches[0].get_width() / 2, round(c.patches[0].get_y() + 0.41)): c.patches[0]
        for c in ax.containers
    }
    assert len(ax.texts) > 10
    for text in ax.texts:
        bar = bars[text.get_position()]
        assert text.get_text().splitlines()[-1] == f"{bar.get_width():g}"
        box, room = text.get_window_extent(), bar.get_window_extent()
        assert box.width < room.width and box.height < room.height
    assert size == (12, 6) or len(ax.texts) < len(bars)


def test_role_counts_of_one_model_and_one_threshold():
    figure = role_plots.role_counts(few_roles())
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts] == ["D\n1", "P\n1", "D\n1", "?\n1", "–\n1", "1", "1"]
    assert np.allclose(ax.containers[0].patches[0].get_facecolor()[:3], to_rgb(KINDS["chirp"]))


# ---- distraction_profile ----


def test_distraction_profile_draws_whole_layers_with_their_intervals(tables):
    table = tables["distraction"]
    figure = role_plots.distraction_profile(table.sample(frac=1, random_state=3).sort_values("item"), tables["slopes"])
    assert len(figure.axes) == 7
    slopes = tables["slopes"].set_index("item")
    for ax, item in zip(figure.axes, sorted(ITEMS), strict=True):
        rows = table[table["head"].isna() & (table["item"] == item)].sort_values("layer")
        assert np.array_equal(ax.lines[1].get_xydata(), rows[["layer", DIFFERENCE[0]]])
        spans = [path.vertices[:, 1].tolist() for path in ax.collections[0].get_paths()]
        assert np.allclose(sorted(spans), sorted(rows[["ci_low", "ci_high"]].to_numpy().tolist()))
        mean = f"{slopes.loc[item, 'slope_var_pct_per_layer']:.4f}".replace("-", "−")
        assert ax.get_title() == f"{item.replace('_', ' ')}\nslope {mean} [−0.0123, 0.0212]"
    label = figure.get_supylabel()
    assert label == "effect with minus effect without the item\n(% of the label variance)"


def test_distraction_profile_without_a_slope_or_a_layer_and_with_heavy_tails(tables):
    table, slopes = tables["distraction"].copy(), tables["slopes"].copy()
    slopes = slopes[slopes["item"] != "title"]
    slopes.loc[slopes["item"] == "text", role_plots.SLOPE] = np.nan
    table = table[~((table["item"] == "text") & (table["layer"] == 2))]
    table.loc[table["item"] == "colorbar", DIFFERENCE] *= 100
    figure = role_plots.distraction_profile(table, slopes)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["text\nno slope", "title\nno slope"]
    assert len(figure.axes[0].lines[1].get_xdata()) == 11
    assert "symmetric log" in figure.get_supylabel()
    assert {ax.get_yscale() for ax in figure.axes} == {"symlog"}


# ---- what must never happen ----


def twice(table):
    return pd.concat([table] * 2)


BROKEN = [
    ("roles: missing column.* verdict", lambda t: role_plots.role_map(t["roles"].drop(columns="verdict"))),
    ("roles: no rows with query='max'", lambda t: role_plots.role_map(t["roles"], query="max")),
    ("roles: no rows with tau='4', expected one of 2, 3, 5", lambda t: role_plots.role_map(t["roles"], tau=4)),
    ("roles: no rows with model other", lambda t: role_plots.role_map(t["roles"], models=["other"])),
    ("roles: more than one row for a head", lambda t: role_plots.role_map(twice(t["roles"]))),
    ("roles: verdict: unknown 'x'", lambda t: role_plots.role_map(pd.DataFrame([one_role(verdict="x")]))),
    ("roles: concepts, .*'axis'", lambda t: role_plots.role_map(pd.DataFrame([one_role(concepts="axis")]))),
    ("roles: concepts, .*'dull'", lambda t: role_plots.role_counts(pd.DataFrame([one_role(concepts="dull")]))),
    ("roles: no rows", lambda t: role_plots.role_counts(t["roles"].iloc[:0])),
    ("concepts: missing column.* lift", lambda t: role_plots.lifts_before_after(t["concepts"].drop(columns="lift"))),
    ("concepts: more than one row", lambda t: role_plots.lifts_before_after(twice(t["concepts"]))),
    (
        "concepts: no rows with model='pretrained'",
        lambda t: role_plots.lifts_before_after(t["concepts"].query("model == 'finetuned'")),
    ),
    (
        "head_scorecard: missing column.* iou_chirp_adjusted",
        lambda t: role_plots.quadrant_by_role(t["scorecard"][["layer", "head"]], t["roles"]),
    ),
    (
        "roles: no row for L1H3",
        lambda t: role_plots.quadrant_by_role(t["scorecard"].query("layer == 1 and head == 3"), few_roles()),
    ),
    (
        "roles: no rows with model finetuned",
        lambda t: role_plots.quadrant_by_role(t["scorecard"], t["roles"].query("model == 'pretrained'")),
    ),
    (
        "distraction: no rows",
        lambda t: role_plots.distraction_profile(t["distraction"].dropna(subset="head"), t["slopes"]),
    ),
    ("distraction: more than", lambda t: role_plots.distraction_profile(twice(t["distraction"]), t["slopes"])),
    ("distraction_slopes: more", lambda t: role_plots.distraction_profile(t["distraction"], twice(t["slopes"]))),
    (
        "distraction_slopes: missing column.* ci_low",
        lambda t: role_plots.distraction_profile(t["distraction"], t["slopes"].drop(columns="ci_low")),
    ),
]


@pytest.mark.parametrize("message, broken", BROKEN)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tables, message, broken):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        broken(tables)
    assert "\n" not in str(caught.value)


def everything(tables) -> dict:
    return {
        "role_map": role_plots.role_map(tables["roles"]),
        "lifts_before_after": role_plots.lifts_before_after(tables["concepts"]),
        "quadrant_by_role": role_plots.quadrant_by_role(tables["scorecard"], tables["roles"]).figure,
        "role_counts": role_plots.role_counts(tables["roles"]),
        "distraction_profile": role_plots.distraction_profile(tables["distraction"], tables["slopes"]),
    }


def cut_off(figure) -> list[str]:
    """Titles, labels, ticks and legends that leave the figure."""
    edge, boxes = figure.bbox.padded(1), {}
    for at, ax in enumerate(figure.axes):
        boxes[f"axes {at} {ax.get_title()}"] = ax.get_tightbbox()
    for part in (*figure.texts, *figure.legends):
        boxes[str(part)] = part.get_window_extent()
    return [name for name, box in boxes.items() if not (edge.contains(*box.min) and edge.contains(*box.max))]


def crowded(figure) -> list[str]:
    """Titles and labels of panels that run into one another."""
    parts = [part for ax in figure.axes for part in (ax.title, ax.xaxis.label, ax.yaxis.label) if part.get_text()]
    boxes = [part.get_window_extent() for part in (*parts, *figure.texts, *figure.legends)]
    pairs = ((i, j) for i in range(len(boxes)) for j in range(i))
    return [str(i) for i, j in pairs if boxes[i].overlaps(boxes[j].padded(-1))]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["12 x 6", "12 x 12", "no evidence", "all diffuse"])
def test_every_figure_draws_without_a_warning_or_a_cut_and_leaves_its_table(kind):
    tables = role_tables(12, 12 if kind == "12 x 12" else 6)
    if kind == "no evidence":
        tables["roles"]["evidence"] = np.nan
    if kind == "all diffuse":
        tables["roles"][["semanticity", "concepts", "verdict"]] = ["diffuse", "", ""]
    before = {name: table.copy() for name, table in tables.items()}
    for figure in everything(tables).values():
        figure.draw_without_rendering()
        assert not cut_off(figure)
        assert not crowded(figure)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, before[name])
