"""How a figure of the ``default`` preset looks: one frozen dataclass and the law it is drawn from.

Takes a numpy Generator; gives a :class:`FigureStyle` in pixels of a 640 x 480 canvas. Knows nothing of the chirp: style
and content are independent, so that no title, tick or colour bar tells where the chirp is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Side = Literal["left", "right", "top", "bottom"]
OPPOSITE: dict[Side, Side] = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}

FONT_FAMILIES = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral")
COLORMAPS = ("viridis", "viridis", "viridis", "plasma", "inferno", "magma", "cividis", "gray", "turbo")
TITLE_WORDS = (
    "EEG",
    "Spectrogram",
    "Recording",
    "Channel",
    "Session",
    "Subject",
    "Trial",
    "Run",
    "Segment",
    "Power spectrum",
)
TITLE_TAILS = ("C3", "Fz", "Oz", "A", "B", "left temporal", "overview", "raw", "night", "baseline", "detail", "")
X_LABELS = ("Time (s)", "Time [s]", "Time, s", "t (s)", "Seconds", "Time")
Y_LABELS = ("Frequency (Hz)", "Frequency [Hz]", "Freq. (Hz)", "f (Hz)", "Hz", "Frequency")
COLORBAR_LABELS = ("Intensity", "Power (dB)", "Magnitude", "Amplitude (a.u.)", "PSD", "Level")
COLORBAR_RANGES = ((0.0, 1.0), (-80.0, 0.0), (0.0, 255.0), (-3.0, 3.0), (0.0, 50.0), (-0.2, 0.8))
# In the preset ``colorbar`` bars run from 0 to a maximum between these, with a tick every 0.5.
COLORBAR_MAXIMA = (0.8, 2.6)
COLORBAR_TICKS_PER_UNIT = 2
# Its ticks are larger than others: at 224 pixels those are a pixel or two, too little to be read.
COLORBAR_TICK_PT, COLORBAR_TICK_LENGTH_PX, COLORBAR_TICK_LINE_PX = 20.0, 8, 3
NO_CHROME_SHARE, MOVED_CHROME_SHARE = 0.1, 0.1


@dataclass(frozen=True)
class FigureStyle:
    """Everything of a figure but its spectrogram. Absent things are None (or 0 ticks); sizes in points at 100 dpi."""

    font_family: str
    title: str | None
    title_pt: float
    title_side: Side
    title_align: float  # 0 = left end of the axes, 1 = right end
    x_label: str | None
    y_label: str | None
    label_pt: float
    tick_pt: float
    x_tick_step_s: int  # 0 = no ticks
    y_tick_step_hz: int
    x_side: Side
    y_side: Side
    colorbar_side: Side | None
    colorbar_gap_px: int
    colorbar_thickness_px: int
    colorbar_label: str | None
    colorbar_range: tuple[float, float]
    colorbar_num_ticks: int
    colormap: str
    frame: Literal["box", "open", "none"]
    line_px: int
    tick_length_px: int
    paper: int  # grey level of the margin
    # Where the axes lie within the room that is left: relative width and height, then relative offsets.
    axes_scale: tuple[float, float]
    axes_offset: tuple[float, float]
    # Where set, the bar runs from 0 to it with ticks at round steps, instead of the range and number of ticks above.
    colorbar_max: float | None = None


def sample_style(rng: np.random.Generator) -> FigureStyle:
    """Draw one style: about 10 % without any chrome, 10 % with chrome at unusual places, the rest as people plot."""
    kind = rng.random()
    bare = kind < NO_CHROME_SHARE
    moved = not bare and kind < NO_CHROME_SHARE + MOVED_CHROME_SHARE
    has = lambda share: bool(rng.random() < share) and not bare  # noqa: E731
    # Which of the three things stand on the other side, at least one: 1 = title, 2 = x axis, 4 = y axis.
    swapped = int(rng.integers(1, 8)) if moved else 0
    word, tail = rng.choice(TITLE_WORDS), rng.choice(TITLE_TAILS)
    title = f"{word} {rng.integers(1, 1000)} {tail}".strip()
    side = str(rng.choice(("right", "left", "top", "bottom"), p=(0.55, 0.13, 0.16, 0.16)))
    return FigureStyle(
        font_family=str(rng.choice(FONT_FAMILIES)),
        title=title if has(0.85) else None,
        title_pt=float(rng.uniform(9, 15)),
        title_side="bottom" if swapped & 1 else "top",
        title_align=float(rng.choice((0.0, 0.5, 0.5, 1.0))),
        x_label=str(rng.choice(X_LABELS)) if has(0.9) else None,
        y_label=str(rng.choice(Y_LABELS)) if has(0.9) else None,
        label_pt=float(rng.uniform(8, 13)),
        tick_pt=float(rng.uniform(7, 11)),
        x_tick_step_s=int(rng.choice((5, 10, 15, 20, 30))) if has(0.95) else 0,
        y_tick_step_hz=int(rng.choice((10, 20, 25, 50))) if has(0.95) else 0,
        x_side="top" if swapped & 2 else "bottom",
        y_side="right" if swapped & 4 else "left",
        colorbar_side=side if has(0.85) else None,  # type: ignore[arg-type]
        colorbar_gap_px=int(rng.integers(14, 26)),
        colorbar_thickness_px=int(rng.integers(10, 24)),
        colorbar_label=str(rng.choice(COLORBAR_LABELS)) if has(0.7) else None,
        colorbar_range=COLORBAR_RANGES[int(rng.integers(len(COLORBAR_RANGES)))],
        colorbar_num_ticks=int(rng.integers(2, 7)),
        colormap=str(rng.choice(COLORMAPS)),
        frame="none" if bare else str(rng.choice(("box", "box", "open", "none"))),  # type: ignore[arg-type]
        line_px=int(rng.integers(1, 3)),
        tick_length_px=int(rng.integers(3, 7)),
        paper=int(rng.choice((255, 255, 255, 250, 240))),
        axes_scale=(float(rng.uniform(0.85, 1.0)), float(rng.uniform(0.85, 1.0))),
        axes_offset=(float(rng.random()), float(rng.random())),
    )
