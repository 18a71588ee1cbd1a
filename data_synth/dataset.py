"""Pictures with ground truth: index in, picture, masks, labels and parameters out.

Takes a :class:`SynthConfig`, a split and an index; gives a :class:`Sample`. Image i of a split comes from
``default_rng([seed, split, i])`` alone, so it is the same for any count, order or number of workers. Knows no model.
"""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chirp import PRESETS, ChirpParams, Preset, check_preset, chirp_mask, noise, ridge, sample_params
from .layouts import SPLITS, Projection, grid_cols, grid_rows, layout_pool
from .published import PublishedFigure, published_figure
from .raster import REGION_INDEX, REGIONS, patch_counts, patch_labels

SYNTHESIZER_VERSION = 1
TARGET_NAMES = ("start_time_s", "start_freq_hz", "end_freq_hz")
TARGET_UNITS = ("s", "Hz", "Hz")
# Colour limits of the default preset, wide enough that nothing clips: ridge 0.58, noise within 0.09.
COLOR_LIMITS = (-0.25, 0.85)
NUM_REFERENCE_PICTURES = 512


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
    """

    index: int
    split: str
    params: ChirpParams
    clean: NDArray[np.float32]
    noise: NDArray[np.float32]
    projection: Projection | PublishedFigure


@dataclass(frozen=True)
class Sample:
    """One picture and the truth about it.

    ``image`` uint8 [row col 3]; ``coverage`` float32 [region row col], the share of every pixel that each of
    :data:`~data_synth.raster.REGIONS` covers (sums to 1); ``patch_labels`` uint8 [row col], one region per patch;
    ``labels`` float64 [3] in s, Hz, Hz.
    """

    index: int
    split: str
    params: ChirpParams
    image: NDArray[np.uint8]
    coverage: NDArray[np.float32]
    patch_labels: NDArray[np.uint8]
    labels: NDArray[np.float64]


def labels_of(params: ChirpParams) -> NDArray[np.float64]:
    """Start time (s), start frequency (Hz), end frequency (Hz)."""
    return np.array([params.start_time_s, params.start_freq_hz, params.end_freq_hz], dtype=np.float64)


@dataclass(frozen=True)
class ChirpDataset:
    """``count`` pictures of a split; ``dataset[i]`` is a :class:`Sample`. Works as a map-style torch Dataset.

    Splits share neither chirps nor, in the default preset, layouts. ``compact`` keeps layouts compressed: 25 MB for 512
    of them instead of 1.3 GB, and 2 ms more a picture, which is the same to the bit.
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

    def _rng(self, index: int) -> np.random.Generator:
        index = operator.index(index)
        if not 0 <= index < self.count:
            raise IndexError(f"index {index}: expected 0 to {self.count - 1}")
        return np.random.default_rng([self.config.seed, SPLITS.index(self.split), index])

    def params(self, index: int) -> ChirpParams:
        """The chirp of a picture without drawing it."""
        return sample_params(self._rng(index), self.config.preset)

    def scene(self, index: int) -> Scene:
        """Everything picture ``index`` is drawn from."""
        rng = self._rng(index)
        config = self.config
        params = sample_params(rng, config.preset)
        layout_index = int(rng.integers(config.num_layouts))
        background = noise(rng, params.noise_level)
        clean = ridge(params, config.preset)
        if config.preset == "published":
            projection: Projection | PublishedFigure = published_figure(clean + background, params, index)
        else:
            projection = self._pool(layout_index)  # type: ignore[attr-defined]
        return Scene(index, self.split, params, clean, background, projection)

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
        labels=labels_of(scene.params),
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
    target_names: tuple[str, ...] = TARGET_NAMES
    target_units: tuple[str, ...] = TARGET_UNITS
    reference_count: int = NUM_REFERENCE_PICTURES

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        scene = self.dataset.scene(index)
        return {"image": render_image(scene, self.dataset.config), "labels": labels_of(scene.params)}

    def labels_array(self, count: int) -> NDArray[np.float64]:
        """Labels of the first ``count`` pictures [image target] without drawing them."""
        return np.stack([labels_of(self.dataset.params(index)) for index in range(count)])

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
