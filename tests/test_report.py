"""The page: everything on it, nothing unescaped, nothing from outside, the same bytes for the same input."""

from __future__ import annotations

import base64
import os
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.artists import save_figure
from analysis.report import flatten_manifest, format_cell, write_atomically, write_report

VOID = {"meta", "img", "wbr", "br", "link", "input"}


class Page(HTMLParser):
    """Tags, their attributes and the text inside each element; fails on tags that are not closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        for tag in self.open:
            self.text[tag][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def picture(tmp_path):
    return save_figure(Figure((2, 1)), tmp_path / "effect")[0]


def content(picture, **changes):
    table = pd.DataFrame({"layer": [0, 11], "head": [3, 5], "score_gate_ig": [0.123456, np.nan], "rank": [1, 2]})
    fields = {
        "title": "Which heads matter?",
        "answer": ["L5H3 matters most.", "gate_ig finds it."],
        "warnings": ["64 of 128 pictures: indicative."],
        "figures": [("Effect of removal", "One cell per head.", picture)],
        "tables": [("Heads", "One row per head.", table)],
        "manifest": {"command": "python -m analysis.compare", "versions": {"numpy": "2.4"}, "seeds": [0, 1]},
    }
    return fields | changes


def write(tmp_path, picture, **changes) -> str:
    path = write_report(tmp_path / "report.html", **content(picture, **changes))
    return path.read_text(encoding="utf-8")


def test_the_page_holds_everything_it_was_given(tmp_path, picture):
    page = Page(write(tmp_path, picture))
    assert page.text["title"] == page.text["h1"] == ["Which heads matter?"]
    assert {"L5H3 matters most.", "gate_ig finds it.", "64 of 128 pictures: indicative."} <= set(page.text["li"])
    assert page.text["figcaption"] == ["One cell per head."]
    assert page.text["th"] == ["head", "score_gate_ig", "rank", "L0H3", "L11H5"]
    assert page.text["td"] == ["0.123", "1", "–", "2"]
    assert page.text["dt"] == ["command", "versions.numpy", "seeds"]
    assert page.text["dd"] == ["python -m analysis.compare", "2.4", "[0, 1]"]


def test_pictures_are_embedded_with_their_size(tmp_path, picture):
    (image,) = Page(write(tmp_path, picture)).all("img")
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == picture.read_bytes()
    assert (image["width"], image["height"], image["alt"]) == ("300", "150", "Effect of removal")


def test_contents_link_to_anchors_that_exist_once(tmp_path, picture):
    figures = [("Effect", "", picture), ("Effect", "", picture), ("Δ", "", picture), ("ρ & τ", "", picture)]
    page = Page(write(tmp_path, picture, figures=figures))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [attributes["href"].removeprefix("#") for attributes in page.all("a")]
    assert len(ids) == len(set(ids)) and set(links) <= set(ids)
    assert {"figure-effect", "figure-effect-2", "figure", "figure-2", "table-heads", "manifest"} <= set(links)


HOSTILE = "<script>alert('x')</script>\"&"


def test_hostile_names_are_shown_and_not_run(tmp_path, picture):
    table = pd.DataFrame({HOSTILE: [HOSTILE], "method": ["<img src=x onerror=alert(1)>"]})
    page_source = write(
        tmp_path,
        picture,
        title=HOSTILE,
        answer=[HOSTILE],
        warnings=[HOSTILE],
        figures=[(HOSTILE, HOSTILE, picture)],
        tables=[(HOSTILE, HOSTILE, table)],
        manifest={HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}},
    )
    page = Page(page_source)
    assert "script" not in page.text and len(page.all("img")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text["h1"] == [HOSTILE] and page.text["p"][0] == HOSTILE
    assert page.all("img")[0]["alt"] == HOSTILE
    assert HOSTILE in page.text["th"] and "<img src=x onerror=alert(1)>" in page.text["td"]
    assert HOSTILE in page.text["dt"] and HOSTILE in page.text["dd"]


def test_nothing_is_fetched_and_nothing_runs(tmp_path, picture):
    source = write(tmp_path, picture)
    page = Page(source)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "srcset"):
            assert name not in attributes or attributes[name].startswith(("#", "data:image/png;base64,"))
    assert "script" not in page.text and not page.all("link")
    assert "url(" not in source and "@import" not in source and "http" not in page.text["style"][0]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src" not in policy


def test_it_reads_on_a_phone_in_the_dark_and_on_paper(tmp_path, picture):
    page = Page(write(tmp_path, picture))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    style = page.text["style"][0]
    assert "prefers-color-scheme: dark" in style and "@media print" in style
    assert re.search(r"\.scroll \{[^}]*overflow: auto", style) and re.search(r"img \{[^}]*max-width: 100%", style)
    scroll = next(a for a in page.all("div") if a.get("class") == "scroll")
    assert scroll["tabindex"] == "0" and scroll["aria-label"] == "Heads"
    assert page.all("html") == [{"lang": "en"}]


def test_every_colour_of_the_style_is_defined_for_every_medium(tmp_path, picture):
    style = Page(write(tmp_path, picture)).text["style"][0]
    blocks = re.findall(r":root \{([^}]*)\}", style)
    named = [set(re.findall(r"(--[a-z-]+):", block)) for block in blocks]
    assert len(named) == 3 and named[0] == named[1] == named[2]
    assert set(re.findall(r"var\((--[a-z-]+)\)", style)) == named[0]


def test_the_same_input_gives_the_same_bytes(tmp_path, picture):
    first = write(tmp_path, picture)
    assert write(tmp_path, picture) == first


def test_the_table_given_is_not_changed(tmp_path, picture):
    table = pd.DataFrame({"layer": [0], "head": [1]})
    write(tmp_path, picture, tables=[("Heads", "", table)])
    assert table.columns.tolist() == ["layer", "head"]


def test_rows_beyond_the_limit_are_cut_and_counted(tmp_path, picture):
    table = pd.DataFrame({"n": range(7)})
    page = Page(write(tmp_path, picture, tables=[("Long", "", table)], max_rows=3))
    assert page.text["th"] == ["n", "0", "1", "2"]
    assert "The first 3 of 7 rows." in page.text["p"]


def test_layer_and_head_stay_apart_where_one_is_missing(tmp_path, picture):
    table = pd.DataFrame({"layer": [0, 1], "head": [1.0, np.nan]})
    page = Page(write(tmp_path, picture, tables=[("Heads", "", table)]))
    assert page.text["th"] == ["layer", "head", "0", "1"] and page.text["td"] == ["1", "–"]


def test_an_empty_page_is_a_page(tmp_path):
    path = write_report(tmp_path / "report.html", title="Nothing yet", answer=[])
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text["h1"] == ["Nothing yet"] and not page.all("nav") and not page.all("h2")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (-3, "−3"), (12, "12"), (100000, "100000"), (True, "yes"), (np.bool_(False), "no")),
        *(
            (0.123456, "0.123"),
            (-0.5, "−0.500"),
            (38.24, "38.2"),
            (9.999, "10.0"),
            (123.4, "123"),
            (0.0, "0"),
        ),
        *(
            (1234.5, "1234"),
            (12345.6, "12,346"),
            (1.5e9, "1.5e+09"),
            (0.00012, "0.000120"),
            (-2e-7, "−2.0e−07"),
        ),
        *((np.nan, "–"), (None, "–"), (pd.NA, "–"), (pd.NaT, "–"), (np.inf, "∞"), (-np.inf, "−∞")),
        *((np.float32(0.25), "0.250"), (np.float32(np.nan), "–"), (np.int64(7), "7"), ("−x-", "−x-")),
    ],
)
def test_format_cell(value, text):
    assert format_cell(value) == text


def test_ranks_beside_a_missing_rank_stay_whole(tmp_path, picture):
    table = pd.DataFrame({"method": ["a", "b"], "rank": [3.0, np.nan], "score": [3.0, 0.5]})
    page = Page(write(tmp_path, picture, tables=[("Ranks", "", table)]))
    assert page.text["td"] == ["3", "3.00", "–", "0.500"]


def test_flatten_manifest_keeps_the_order():
    manifest = {"b": {"y": 1, "x": {"deep": None}}, "a": [1.5, "é"], "empty": {}}
    assert flatten_manifest(manifest) == [
        ("b.y", "1"),
        ("b.x.deep", "null"),
        ("a", '[1.5, "é"]'),
        ("empty", "{}"),
    ]


def test_a_missing_picture_or_one_that_is_not_a_png_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        write(tmp_path, tmp_path / "absent.png")
    (tmp_path / "effect.png").write_bytes(b"GIF89a" + bytes(40))
    with pytest.raises(ValueError, match=r"effect\.png: expected a PNG picture for the figure 'Effect of removal'"):
        write(tmp_path, tmp_path / "effect.png")
    assert os.listdir(tmp_path) == ["effect.png"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch, step):
    path = write_atomically(tmp_path / "a.txt", b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.txt"]


def test_write_atomically_replaces_a_whole_file(tmp_path):
    path = write_atomically(tmp_path / "a.txt", b"a long first version")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second" and os.listdir(tmp_path) == ["a.txt"]
