"""The pixel maps that know no model, against sums over neighbours."""

import numpy as np
import torch
from tiny_models import tiny_batch, tiny_model

from attribution.batch import Batch, MethodSettings
from attribution.methods import run_pixel_method
from attribution.pixel_controls import laplace, sobel, uniform

SETTINGS = MethodSettings()


def neighbours(grey, row, col):
    """The 3 x 3 pixels around one, the picture mirrored beyond its border."""
    return np.pad(grey, 1, mode="symmetric")[row : row + 3, col : col + 3]


def test_filters_are_sums_over_neighbours():
    model = tiny_model()
    batch = tiny_batch(model, 2)
    edges, curvature = sobel(model, batch, SETTINGS), laplace(model, batch, SETTINGS, 1)
    assert edges.shape == curvature.shape == (2, 16, 16)
    slope = np.outer([1, 2, 1], [1, 0, -1]) / 4  # columns; its transpose is that of rows
    for image, row, col in np.ndindex(2, 16, 16):
        around = neighbours(batch.pixel_values[image].numpy().mean(0), row, col)
        expected = np.sqrt(((around * slope).sum() ** 2 + (around * slope.T).sum() ** 2) / 2)
        assert abs(float(edges[image, row, col]) - expected) < 1e-12
        cross = around[0, 1] + around[2, 1] + around[1, 0] + around[1, 2]
        assert abs(float(curvature[image, row, col]) - abs(4 * around[1, 1] - cross)) < 1e-12


def test_another_scale_of_the_colours_scales_the_edges():
    model = tiny_model()
    batch = tiny_batch(model, 2)
    moved = Batch(3 * batch.pixel_values - 2, batch.labels, batch.indices, batch.baseline_pixel_values)
    for function in (sobel, laplace):
        expected = 3 * function(model, batch, SETTINGS)
        torch.testing.assert_close(function(model, moved, SETTINGS), expected, rtol=0, atol=1e-12)


def test_pictures_without_edges_get_a_uniform_map_and_others_do_not():
    model = tiny_model()
    batch = tiny_batch(model, 3)
    batch.pixel_values[1] = torch.tensor([0.1, 0.7, -1.3])[:, None, None]
    for name in ("sobel", "laplace"):
        maps = run_pixel_method(name, model, batch, SETTINGS)
        assert float(maps[1].max()) > 0 and torch.equal(maps[1], torch.ones(16, 16))
        assert len(maps[0].unique()) > 100 and len(maps[2].unique()) > 100


def test_uniform_is_the_same_everywhere():
    model = tiny_model()
    assert torch.equal(uniform(model, tiny_batch(model), SETTINGS, 2), torch.ones(4, 16, 16, dtype=torch.float64))
