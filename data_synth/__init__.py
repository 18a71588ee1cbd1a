"""Synthetic chirp spectrogram pictures with ground-truth masks of everything in them.

``ChirpDataset("test", 16)[0]`` is a :class:`Sample`: picture, region masks, patch labels, labels in units. The package
knows no model. ``python -m data_synth`` writes a data set to disk.
"""

from .chirp import ChirpParams
from .dataset import (
    NUM_REFERENCE_PICTURES,
    SYNTHESIZER_VERSION,
    TARGET_NAMES,
    TARGET_UNITS,
    ChirpDataset,
    LabelledPictures,
    Sample,
    SynthConfig,
    labelled_pictures,
)
from .raster import REGIONS, TEXT_REGIONS

__all__ = [
    "NUM_REFERENCE_PICTURES",
    "REGIONS",
    "SYNTHESIZER_VERSION",
    "TARGET_NAMES",
    "TARGET_UNITS",
    "TEXT_REGIONS",
    "ChirpDataset",
    "ChirpParams",
    "LabelledPictures",
    "Sample",
    "SynthConfig",
    "labelled_pictures",
]
