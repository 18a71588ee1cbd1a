"""Controls against products of whole matrices, the fused layout, LoRA merged by PEFT, and numbers by hand."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import CONFIG, KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model
from torch import nn

from attribution.backbone import tiny_backbone
from attribution.batch import MethodSettings
from attribution.contract import check_method, rotate_head_bases
from attribution.controls import layer_index, parameter_norm, random_scores
from attribution.vit import ViTRegressor, attention_modules, output_projections

SETTINGS = MethodSettings()


def slow_norms(model):
    """‖W_o^h W_v^h‖ as the norm of the whole product, entry by entry; LoRA merged by PEFT itself."""
    model = copy.deepcopy(model)
    if hasattr(model.backbone, "merge_and_unload"):
        model.backbone = model.backbone.merge_and_unload()
    found = []
    for attention, projection in zip(attention_modules(model), output_projections(model), strict=True):
        value = attention.v_proj.weight if hasattr(attention, "v_proj") else attention.qkv.weight[24:]
        output, value = projection.weight.numpy(), value.numpy()
        assert output.shape == value.shape == (12, 12)
        for head in range(2):
            total = 0.0
            for row, col in np.ndindex(12, 12):
                entry = sum(output[row, 6 * head + at] * value[6 * head + at, col] for at in range(6))
                total += entry**2
            found.append(total**0.5)
    return torch.tensor(found, dtype=torch.float64).view(-1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_parameter_norm_is_the_norm_of_the_whole_product(kind):
    model = tiny_model(kind)
    got = parameter_norm(model, tiny_batch(model), SETTINGS)
    assert got.shape == (4, 3, 2)
    torch.testing.assert_close(got, slow_norms(model).expand(4, -1, -1), atol=0, rtol=1e-12)


def test_parameter_norm_sees_lora_only_where_it_acts():
    model = tiny_model("dinov2_lora")
    batch = tiny_batch(model)
    active = parameter_norm(model, batch, SETTINGS)
    with model.backbone.disable_adapter():
        base = parameter_norm(model, batch, SETTINGS)
    assert float((active - base).abs().max()) > 0.1
    plain = copy.deepcopy(model)
    plain.backbone = plain.backbone.unload()
    torch.testing.assert_close(base, parameter_norm(plain, batch, SETTINGS), atol=0, rtol=0)
    model.backbone.merge_adapter()
    torch.testing.assert_close(parameter_norm(model, batch, SETTINGS), active, atol=0, rtol=1e-12)


class FusedAttention(nn.Module):
    """timm's layout, `qkv` and `proj`."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, states):
        query, key, value = self.qkv(states).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / 6**0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(-2))


class FusedBackbone(nn.Module):
    """Two of them over 4 x 4 patches and a CLS token of zeros."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 12, 4, 4)
        self.blocks = nn.ModuleList([FusedAttention(), FusedAttention()])

    def forward(self, pixel_values):
        tokens = nn.functional.pad(self.patch_embed(pixel_values).flatten(2).transpose(1, 2), (0, 0, 1, 0))
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens


def fused_model(lora):
    """LoRA on the whole `qkv`, as it comes for a model with fused projections."""
    backbone = FusedBackbone()
    if lora:
        backbone = get_peft_model(backbone, LoraConfig(r=2, target_modules=["qkv"]))
    model = ViTRegressor(backbone, CONFIG, hidden_size=12)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval().requires_grad_(False)


@pytest.mark.parametrize("lora", [False, True])
def test_parameter_norm_of_fused_projections(lora):
    model = fused_model(lora)
    batch = tiny_batch(model)
    got = parameter_norm(model, batch, SETTINGS)
    torch.testing.assert_close(got, slow_norms(model).expand(4, -1, -1), atol=0, rtol=1e-12)
    turned = rotate_head_bases(model, seed=3)
    torch.testing.assert_close(turned(batch.pixel_values), model(batch.pixel_values), atol=0, rtol=1e-10)
    torch.testing.assert_close(parameter_norm(turned, batch, SETTINGS), got, atol=1e-9, rtol=0)
    check_method(parameter_norm, lambda: fused_model(lora))


def test_parameter_norm_of_the_planted_model_is_one_for_the_planted_head_alone():
    model = planted_model()
    expected = torch.zeros(6, 2, 2, dtype=torch.float64)
    expected[:, *PLANTED_HEAD] = 1
    torch.testing.assert_close(parameter_norm(model, planted_batch(model), SETTINGS), expected, atol=0, rtol=0)


def test_parameter_norm_refuses_what_is_not_base_plus_difference():
    backbone = tiny_backbone("dinov2", 0, image_size=16, patch_size=4, num_layers=3, num_heads=2, hidden_size=12)
    adapted = get_peft_model(backbone, LoraConfig(r=2, target_modules=["v_proj"], use_dora=True))
    model = ViTRegressor(adapted, CONFIG).eval()
    with pytest.raises(ValueError, match=r"^parameter_norm: expected a value projection under plain LoRA"):
        parameter_norm(model, tiny_batch(model), SETTINGS)


def test_random_scores_and_layer_index_by_hand():
    model = tiny_model()
    batch = tiny_batch(model)
    found = random_scores(model, batch, MethodSettings(seed=5))
    expected = np.random.default_rng([5, 7, 12]).random((3, 2))
    assert batch.indices[2] == 12 and np.array_equal(found[2].numpy(), expected)
    layers = layer_index(model, batch, SETTINGS)
    assert torch.equal(layers[3], torch.tensor([[0.0, 0], [1, 1], [2, 2]], dtype=torch.float64))


def test_controls_make_no_pass():
    model = tiny_model()
    batch = tiny_batch(model)
    model.register_forward_pre_hook(lambda *_: pytest.fail("a pass was made"))
    for function in (random_scores, layer_index, parameter_norm):
        assert function(model, batch, SETTINGS).shape == (4, 3, 2)
