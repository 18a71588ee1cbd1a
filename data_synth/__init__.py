"""Synthetic chirp spectrogram pictures with ground-truth masks of everything in them.

``ChirpDataset("test", 16)[0]`` is a :class:`Sample`: picture, region masks, patch labels, labels in units. The package
knows no model. ``python -m data_synth`` writes a data set to disk.
"""

from . import early_stop as early_stop  # first: what follows takes long to import
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
    colorbar_pictures,
    labelled_pictures,
)
from .raster import REGIONS, TEXT_REGIONS
from .tasks import Task, task_of

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
    "Task",
    "colorbar_pictures",
    "labelled_pictures",
    "task_of",
]
