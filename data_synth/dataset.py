"""Pictures with ground truth: index in, picture, masks, labels and parameters out.

Takes a :class:`SynthConfig`, a split and an index; gives a :class:`Sample`. Image i of a split comes from
``default_rng([seed, split, i])`` alone, so it is the same for any count, order or number of workers. Knows no model.

The preset ``colorbar`` asks another question of the pictures of ``default``: the maximum of the colour bar, which there
says nothing. Image i has the chirp and the noise of image i of ``default``, and its layout, or the next one in the pool
whose bar has room. The bar runs from 0 to a maximum drawn from ``default_rng([seed, split, i, 1001])``, uniform from
0.8 to 2.6, with ticks every 0.5: how far apart they stand on the bar tells it. What is shown is thought of as scaled by
the maximum, so neither a colour nor a pixel of the spectrogram tells it.
"""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chirp import PRESETS, ChirpParams, Preset, check_preset, chirp_mask, noise, ridge, sample_params
from .figure import with_colorbar_max
from .layouts import SPLITS, Projection, first_with_room, grid_cols, grid_rows, layout_pool, project_again
from .published import PublishedFigure, published_figure
from .raster import REGION_INDEX, REGIONS, patch_counts, patch_labels
from .style import COLORBAR_MAXIMA
from .tasks import CHIRP_TASK, task_of

SYNTHESIZER_VERSION = 1
TARGET_NAMES, TARGET_UNITS = CHIRP_TASK.target_names, CHIRP_TASK.target_units
# Colour limits of the default preset, wide enough that nothing clips: ridge 0.58, noise within 0.09.
COLOR_LIMITS = (-0.25, 0.85)
NUM_REFERENCE_PICTURES = 512
# Layouts and twins use streams 1 to 200 of the same seed, split and index.
COLORBAR_STREAM = 1001


@dataclass(frozen=True)
class SynthConfig:
    """What defines a data set: preset, seed, picture and patch size in pixels, layouts per split."""

    preset: Preset = "default"
    seed: int = 0
    image_size: int = 224
    patch_size: int = 14
    num_layouts: int = 512

    def __post_init__(self) -> None:
        check_preset(self.preset)
        if self.seed < 0:
            raise ValueError(f"seed: expected a number >= 0, got {self.seed}")
        if self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"image_size: expected a multiple of patch_size {self.patch_size}, got {self.image_size}")
        if self.num_layouts < 1:
            raise ValueError(f"num_layouts: expected at least 1, got {self.num_layouts}")


@dataclass(frozen=True)
class Scene:
    """What a picture is drawn from: the chirp, its noise, its noise-free ridge and its layout.

    ``clean`` and ``noise`` are float32 [frequency bin, time bin]; ``clean`` is zero in a chirp-free twin.
    ``colorbar_max`` is None where it is not asked for.
    """

    index: int
    split: str
    params: ChirpParams
    clean: NDArray[np.float32]
    noise: NDArray[np.float32]
    projection: Projection | PublishedFigure
    colorbar_max: float | None = None


@dataclass(frozen=True)
class Sample:
    """One picture and the truth about it.

    ``image`` uint8 [row col 3]; ``coverage`` float32 [region row col], the share of every pixel that each of
    :data:`~data_synth.raster.REGIONS` covers (sums to 1); ``patch_labels`` uint8 [row col], one region per patch;
    ``labels`` float64 [target] in the units of :func:`~data_synth.tasks.task_of` the preset.
    """

    index: int
    split: str
    params: ChirpParams
    image: NDArray[np.uint8]
    coverage: NDArray[np.float32]
    patch_labels: NDArray[np.uint8]
    labels: NDArray[np.float64]


def labels_of(params: ChirpParams, colorbar_max: float | None = None) -> NDArray[np.float64]:
    """Start time (s), start frequency (Hz), end frequency (Hz); the colour bar's maximum alone where that is asked."""
    if colorbar_max is not None:
        return np.array([colorbar_max], dtype=np.float64)
    return np.array([params.start_time_s, params.start_freq_hz, params.end_freq_hz], dtype=np.float64)


@dataclass(frozen=True)
class ChirpDataset:
    """``count`` pictures of a split; ``dataset[i]`` is a :class:`Sample`. Works as a map-style torch Dataset.

    Splits share neither chirps nor, but for the preset ``published``, layouts. ``compact`` keeps layouts compressed:
    25 MB for 512 of them instead of 1.3 GB, and 2 ms more a picture, which is the same to the bit.
    """

    split: str
    count: int
    config: SynthConfig = field(default_factory=SynthConfig)
    compact: bool = False

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.count < 1:
            raise ValueError(f"count: expected at least 1, got {self.count}")
        config = self.config
        pool = layout_pool(
            config.seed, self.split, config.image_size, config.patch_size, config.num_layouts, compact=self.compact
        )
        object.__setattr__(self, "_pool", pool)
        object.__setattr__(self, "_first_with_room", first_with_room(pool, config.num_layouts))

    def __getstate__(self) -> dict[str, Any]:
        return {"split": self.split, "count": self.count, "config": self.config, "compact": self.compact}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return render(self.scene(index), self.config)

    def _rng(self, index: int, *stream: int) -> np.random.Generator:
        index = operator.index(index)
        if not 0 <= index < self.count:
            raise IndexError(f"index {index}: expected 0 to {self.count - 1}")
        return np.random.default_rng([self.config.seed, SPLITS.index(self.split), index, *stream])

    def params(self, index: int) -> ChirpParams:
        """The chirp of a picture without drawing it."""
        return sample_params(self._rng(index), self.config.preset)

    def colorbar_max(self, index: int) -> float | None:
        """Where the colour bar of a picture ends, without drawing it; None where the preset does not ask for it."""
        if self.config.preset != "colorbar":
            return None
        return float(self._rng(index, COLORBAR_STREAM).uniform(*COLORBAR_MAXIMA))

    def labels(self, index: int) -> NDArray[np.float64]:
        """The labels of a picture, float64 [target] in units, without drawing it."""
        return labels_of(self.params(index), self.colorbar_max(index))

    def scene(self, index: int) -> Scene:
        """Everything picture ``index`` is drawn from."""
        rng = self._rng(index)
        config = self.config
        params = sample_params(rng, config.preset)
        layout_index = int(rng.integers(config.num_layouts))
        background = noise(rng, params.noise_level)
        clean = ridge(params, config.preset)
        colorbar_max = self.colorbar_max(index)
        if config.preset == "published":
            projection: Projection | PublishedFigure = published_figure(clean + background, params, index)
        else:
            projection = self._projection(layout_index, colorbar_max)
        return Scene(index, self.split, params, clean, background, projection, colorbar_max)

    def _projection(self, layout_index: int, colorbar_max: float | None) -> Projection:
        if colorbar_max is None:
            return self._pool(layout_index)  # type: ignore[attr-defined]
        drawn = self._pool(self._first_with_room(layout_index))  # type: ignore[attr-defined]
        layout = with_colorbar_max(drawn.layout, colorbar_max)
        return project_again(drawn, layout, self.config.image_size, self.config.patch_size)

    def image(self, index: int) -> NDArray[np.uint8]:
        """The picture alone, uint8 [row col 3]: what a model is trained on."""
        return render_image(self.scene(index), self.config)


def render_image(scene: Scene, config: SynthConfig) -> NDArray[np.uint8]:
    """Draw a scene, uint8 [row col 3]."""
    values = scene.clean + scene.noise
    if isinstance(scene.projection, PublishedFigure):
        return scene.projection.image(values, config.image_size)
    projection = scene.projection
    low, high = COLOR_LIMITS
    level = np.clip((values - low) * (256 / (high - low)), 0, 255).astype(np.uint8)
    colours = projection.lut[level].astype(np.float32)
    bins = colours.shape[0]
    stretched = (projection.rows @ colours.reshape(bins, -1)).reshape(-1, bins, 3).transpose(2, 0, 1) @ projection.cols
    total = projection.chrome + stretched.transpose(1, 2, 0)
    return np.floor(total * np.float32(1 / projection.whole) + np.float32(0.5 + 1e-4)).astype(np.uint8)


def render(scene: Scene, config: SynthConfig) -> Sample:
    """Draw a scene with all masks."""
    projection = scene.projection
    mask = chirp_mask(scene.clean)
    if isinstance(projection, PublishedFigure):
        projection = projection.project(config.image_size, config.patch_size)
    chirp, background = REGION_INDEX["chirp"], REGION_INDEX["plot_background"]
    counts = projection.rows @ mask.astype(np.float32) @ projection.cols
    coverage = np.zeros((len(REGIONS), config.image_size, config.image_size), dtype=np.float32)
    scale = np.float32(1 / projection.whole)
    for region, (row0, col0, crop) in projection.crops.items():
        inside = slice(row0, row0 + crop.shape[0]), slice(col0, col0 + crop.shape[1])
        shown = crop - counts[inside] if region == background else crop
        np.multiply(shown, scale, out=coverage[region][inside])
    np.multiply(counts, scale, out=coverage[chirp])
    patches = projection.patches.copy()
    patches[chirp] = patch_counts(counts.astype(np.int32), config.patch_size)
    patches[background] -= patches[chirp]
    return Sample(
        index=scene.index,
        split=scene.split,
        params=scene.params,
        image=render_image(scene, config),
        coverage=coverage,
        patch_labels=patch_labels(patches, projection.whole * config.patch_size**2),
        labels=labels_of(scene.params, scene.colorbar_max),
    )


def label_map(scene: Scene) -> NDArray[np.uint8]:
    """The region of every pixel of the 480 x 640 canvas, uint8: the exact truth that coverages are averages of."""
    layout = scene.projection.layout
    axes = layout.axes
    labels = layout.label_map.copy()
    shown = chirp_mask(scene.clean)[np.ix_(grid_rows(axes), grid_cols(axes))]
    labels[axes.slices][shown] = REGION_INDEX["chirp"]
    return labels


@dataclass(frozen=True)
class LabelledPictures:
    """A :class:`ChirpDataset` seen as a task: ``[i]`` is ``{"image": uint8 [row col 3], "labels": float64 [target]}``.

    No masks: this is what a model is trained and judged on.
    """

    dataset: ChirpDataset
    reference_count: int = NUM_REFERENCE_PICTURES

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        scene = self.dataset.scene(index)
        return {
            "image": render_image(scene, self.dataset.config),
            "labels": labels_of(scene.params, scene.colorbar_max),
        }

    @property
    def target_names(self) -> tuple[str, ...]:
        """What each label is."""
        return task_of(self.dataset.config.preset).target_names

    @property
    def target_units(self) -> tuple[str, ...]:
        """The unit of each label, "" for none."""
        return task_of(self.dataset.config.preset).target_units

    def labels_array(self, count: int) -> NDArray[np.float64]:
        """Labels of the first ``count`` pictures [image target] without drawing them."""
        return np.stack([self.dataset.labels(index) for index in range(count)])

    @property
    def synthesizer(self) -> dict[str, Any]:
        """What made these pictures, to be stored with a model trained on them."""
        return {"name": "data_synth", "version": SYNTHESIZER_VERSION, **asdict(self.dataset.config)}


def labelled_pictures(
    split: str, count: int, seed: int = 0, preset: Preset = PRESETS[0], image_size: int = 224, patch_size: int = 14
) -> LabelledPictures:
    """Labelled pictures of one split: the factory that ``python -m attribution.finetune --data`` is given."""
    config = SynthConfig(preset=preset, seed=seed, image_size=image_size, patch_size=patch_size)
    return LabelledPictures(ChirpDataset(split, count, config))


def colorbar_pictures(
    split: str, count: int, seed: int = 0, image_size: int = 224, patch_size: int = 14
) -> LabelledPictures:
    """The pictures of :func:`labelled_pictures`, asked for the maximum of their colour bar: a control task, in which
    what was irrelevant is what is read. A factory for ``python -m attribution.finetune --data`` too."""
    return labelled_pictures(split, count, seed, "colorbar", image_size, patch_size)
