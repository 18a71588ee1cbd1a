"""Norms of patch tokens against the hidden states that transformers gives."""

import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from attribution.token_norms import patch_token_norms
from attribution.vit import unwrapped


@pytest.mark.parametrize(("kind", "special"), [("vit", 1), ("dinov2", 1), ("dinov2_lora", 1), ("registers", 5)])
def test_norms_of_the_last_hidden_state(kind, special):
    model = tiny_model(kind)
    batch = tiny_batch(model, 5)
    found = patch_token_norms(model, batch.pixel_values, batch_size=2)
    with torch.no_grad():
        states = unwrapped(model.backbone)(batch.pixel_values, output_hidden_states=True).hidden_states[-1]
    expected = states[:, special:].double().norm(dim=-1).reshape(5, 4, 4)
    assert found.shape == (5, 4, 4) and torch.allclose(found, expected, rtol=1e-12)


def test_refuses_train_mode_and_leaves_no_hook():
    model = tiny_model()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    patch_token_norms(model, tiny_batch(model).pixel_values)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    with pytest.raises(ValueError, match="eval"):
        patch_token_norms(model.train(), tiny_batch(model).pixel_values)
