"""Scores from attention against loops over entries, models with a known answer, and weights read by hand."""

import math

import numpy as np
import pytest
import torch
from tiny_models import CONFIG, KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from attribution.attention_scores import attention_distance, cls_entropy, max_weight, value_norm
from attribution.batch import Batch, MethodSettings
from attribution.contract import check_method, rotate_head_bases
from attribution.heads import attention_maps
from attribution.methods import METHODS, read_attention_methods
from attribution.prefix import block_list
from attribution.vit import ViTRegressor, attention_modules, head_layout, output_projections

SETTINGS = MethodSettings(internal_batch_size=3)
OF_ATTENTION = (cls_entropy, max_weight, attention_distance)


def attentions_of(model, pixel_values):
    """Attentions [image layer head query key] as transformers reports them."""
    with torch.no_grad():
        return torch.stack(model.backbone(pixel_values, output_attentions=True).attentions, dim=1).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_attention_are_the_loops(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    special = head_layout(model).num_special_tokens
    weights = attentions_of(model, batch.pixel_values)
    entropies, largest, distances = (function(model, batch, SETTINGS).numpy() for function in OF_ATTENTION)
    for place in np.ndindex(4, 3, 2):
        attention = weights[place]
        row = [float(value) for value in attention[0, special:]]
        shares = [value / sum(row) for value in row]
        assert entropies[place] == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-12)
        assert largest[place] == pytest.approx(max(row), abs=1e-13)
        total = 0.0
        for query in range(16):
            keys = attention[special + query, special:]
            for key in range(16):
                distance = math.hypot(query // 4 - key // 4, query % 4 - key % 4)
                total += distance * keys[key] / keys.sum() / 16
        assert distances[place] == pytest.approx(total, abs=1e-12)


def test_scores_of_attention_are_what_the_maps_hold():
    model = tiny_model("registers")
    batch = tiny_batch(model)
    maps = attention_maps(model, batch.pixel_values)
    torch.testing.assert_close(cls_entropy(model, batch, SETTINGS), maps.entropy["cls"], atol=1e-13, rtol=0)
    torch.testing.assert_close(attention_distance(model, batch, SETTINGS), maps.distance_patches, atol=1e-13, rtol=0)
    expected = maps.cls.flatten(3).amax(-1) * (1 - maps.special_mass["cls"])
    torch.testing.assert_close(max_weight(model, batch, SETTINGS), expected, atol=1e-13, rtol=0)


def test_uniform_attention_by_hand():
    model = planted_model()
    batch = planted_batch(model)
    for function, expected in (
        (cls_entropy, math.log(4)),  # four patches alike
        (max_weight, 0.2),  # of five tokens
        (attention_distance, (0 + 1 + 1 + math.sqrt(2)) / 4),
    ):
        expected = torch.full((6, 2, 2), expected, dtype=torch.float64)
        torch.testing.assert_close(function(model, batch, SETTINGS), expected, atol=1e-14, rtol=0)


def test_attention_on_one_patch_has_no_entropy():
    model = tiny_model()
    for module in attention_modules(model):  # logits so large that one key takes everything
        module.q_proj.weight.mul_(1e5)
    batch = tiny_batch(model)
    entropies = cls_entropy(model, batch, SETTINGS)
    assert bool(torch.isfinite(entropies).all()) and float(entropies.abs().max()) < 1e-6
    assert bool(((max_weight(model, batch, SETTINGS) - 0.5).abs() > 0.49).all())  # all, or nothing: CLS took it


def test_directions_are_fixed_in_the_table():
    assert {name: METHODS[name].direction for name in ("cls_entropy", "max_weight", "attention_distance")} == {
        "cls_entropy": "-",
        "max_weight": "+",
        "attention_distance": "+",
    }


def test_methods_of_attention_share_one_forward():
    model = tiny_model()
    batch = tiny_batch(model)
    names = [name for name, method in METHODS.items() if method.of_attention is not None]
    assert {"cls_mass", "cls_entropy", "max_weight", "attention_distance", "rollout_drop"} == set(names)
    seen = []
    handle = model.head.register_forward_hook(lambda _, args, output: seen.append(len(output)))
    found = read_attention_methods(model, batch, SETTINGS, heads=names).scores
    handle.remove()
    assert seen == [3, 1]
    for name in names:
        expected = METHODS[name].function(model, batch, SETTINGS).float()
        torch.testing.assert_close(found[name], expected, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_value_norm_is_the_loop_over_attention_values_and_weights(kind):
    """‖γ ⊙ W_o^h Σ_key A[query, key] v[key]‖, entry by entry from attention weights and values."""
    model = tiny_model(kind)
    batch = tiny_batch(model, 2)
    values = []
    handles = [m.v_proj.register_forward_hook(lambda _, __, out: values.append(out)) for m in attention_modules(model)]
    weights = attentions_of(model, batch.pixel_values)
    for handle in handles:
        handle.remove()
    got = value_norm(model, batch, SETTINGS).numpy()
    scaled = False
    for layer, (block, projection) in enumerate(zip(block_list(model), output_projections(model), strict=True)):
        scale = np.ones(12)
        if hasattr(block, "layer_scale1"):
            scale, scaled = block.layer_scale1.lambda1.numpy(), True
        matrix = projection.weight.numpy()
        for image, head in np.ndindex(2, 2):
            attention, value = weights[image, layer, head], values[layer][image].numpy()[:, 6 * head : 6 * head + 6]
            norms = []
            for query in range(len(attention)):
                context = sum(attention[query, key] * value[key] for key in range(len(attention)))
                written = [scale[out] * float(matrix[out, 6 * head : 6 * head + 6] @ context) for out in range(12)]
                norms.append(math.sqrt(sum(number**2 for number in written)))
            assert got[image, layer, head] == pytest.approx(sum(norms) / len(norms), rel=1e-10)
    assert scaled == (kind != "vit")


def test_value_norm_of_the_planted_model_by_hand():
    """The planted head writes a fifth of the sum of normalised channel 0 over patches into one channel."""
    model = planted_model()
    batch = planted_batch(model)
    got = value_norm(model, batch, SETTINGS)
    others = got.clone()
    others[:, *PLANTED_HEAD] = 0
    assert float(others.abs().max()) == 0
    for image, level in enumerate((-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)):
        token = np.array([level, 0, 0, 0, 0, 0, 3.0, -3.0])  # channel 0, and the position embedding
        normalised = (token - token.mean()) / math.sqrt(token.var() + 1e-6)
        cls = np.array([0, 0, 0, 0, 0, 0, 3.0, -3.0])
        of_cls = (cls - cls.mean()) / math.sqrt(cls.var() + 1e-6)
        expected = abs(4 * normalised[0] + of_cls[0]) / 5
        assert float(got[image, *PLANTED_HEAD]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_value_norm_knows_no_basis(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    own = value_norm(model, batch, SETTINGS)
    turned = value_norm(rotate_head_bases(model, seed=4), batch, SETTINGS)
    assert float((own - turned).abs().max()) <= (1e-6 if kind == "vit" else 1e-9)


def test_value_norm_feels_layer_scale():
    model = tiny_model()
    batch = tiny_batch(model)
    before = value_norm(model, batch, SETTINGS)
    block_list(model)[2].layer_scale1.lambda1.mul_(3)  # of the last block: nothing upstream changes
    after = value_norm(model, batch, SETTINGS)
    torch.testing.assert_close(after[:, 2], 3 * before[:, 2], atol=0, rtol=1e-12)
    torch.testing.assert_close(after[:, :2], before[:, :2], atol=0, rtol=0)


def test_value_norm_on_dinov3():
    config = DINOv3ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4
    )
    backbone = DINOv3ViTModel(config)
    backbone.set_attn_implementation("eager")
    model = ViTRegressor(backbone, CONFIG)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    model = model.double().eval().requires_grad_(False)
    batch = tiny_batch(model)
    written = []
    handles = [
        block.layer_scale1.register_forward_hook(lambda _, __, out: written.append(out)) for block in block_list(model)
    ]
    got = value_norm(model, batch, SETTINGS)
    written.clear()
    for layer, head in np.ndindex(2, 2):  # what reaches the residual stream, with the head and without
        projection = output_projections(model)[layer]
        both = []
        for kept in (1.0, 0.0):

            def hook(_, args, kept=kept, head=head):
                context = args[0].clone()
                context[..., 8 * head : 8 * head + 8] *= kept
                return (context,)

            handle = projection.register_forward_pre_hook(hook)
            written.clear()
            model(batch.pixel_values)
            both.append(written[layer])
            handle.remove()
        expected = (both[0] - both[1]).norm(dim=-1).mean(-1)
        torch.testing.assert_close(got[:, layer, head], expected, atol=1e-10, rtol=0)
    for handle in handles:
        handle.remove()


class Unknown(torch.nn.Module):
    """A block of another make around one of a known make."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        return self.block(*args, **kwargs)


def test_value_norm_refuses_blocks_it_does_not_know_and_names_the_model():
    model = tiny_model("vit")
    blocks = block_list(model)
    blocks[1] = Unknown(blocks[1])
    batch = tiny_batch(model)
    model.eval()
    with pytest.raises(ValueError, match=r"^ViTModel is not known to be made of blocks .* found Unknown$"):
        value_norm(model, batch, SETTINGS)


@pytest.mark.parametrize("function", [*OF_ATTENTION, value_norm])
def test_promises_and_refusals(function):
    check_method(function, lambda: tiny_model("dinov2_lora"))
    model = tiny_model()
    batch = tiny_batch(model)
    one = Batch(*(values[:1] for values in (batch.pixel_values, batch.labels, batch.indices)), batch.pixel_values[0])
    assert function(model, one, SETTINGS).shape == (1, 3, 2)
    with pytest.raises(ValueError, match="eval mode"):
        function(model.train(), batch, SETTINGS)
    if function is not value_norm:
        model.eval().set_attn_implementation("sdpa")
        with pytest.raises(ValueError, match="gives no weights"):
            function(model, batch, SETTINGS)
