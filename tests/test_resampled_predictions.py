"""Predictions that resample ablation reports are means over donors, each by gates in a whole pass of its own."""

import torch
from tiny_models import tiny_batch, tiny_model

from attribution.ablation import resample_ablation
from attribution.contexts import contexts
from attribution.vit import gated


def test_ablated_predictions_and_errors_are_means_over_donors():
    model = tiny_model("dinov2")
    batch = tiny_batch(model)
    found = resample_ablation(model, batch)
    num_images, num_donors = batch.donor_pixel_values.shape[:2]
    assert num_donors == 4
    units = torch.tensor(model.config.label_std, dtype=torch.float64) ** 2
    with torch.no_grad():
        intact = (model(batch.pixel_values) - batch.labels) ** 2
        for layer, head in ((0, 1), (2, 0)):
            gates = torch.ones(num_images, 3, 2, dtype=torch.float64)
            gates[:, layer, head] = 0
            by_donor = []
            for donor in range(num_donors):
                there = contexts(model, batch.donor_pixel_values[:, donor])
                with gated(model, gates, there):
                    by_donor.append(model(batch.pixel_values))
            predictions = torch.stack(by_donor)
            assert predictions.std(dim=0).min() > 1e-9  # donors differ
            torch.testing.assert_close(found.ablated_predictions[:, layer, head], predictions.mean(0))
            squared = ((predictions - batch.labels) ** 2 - intact).mean(0)
            torch.testing.assert_close(found.delta_target_sq[:, layer, head], squared * units)
            torch.testing.assert_close(found.delta_loss[:, layer, head], squared.mean(-1))
