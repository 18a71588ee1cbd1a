"""Attention knockout against minus infinity really added to one head's logits, and a number worked out by hand."""

import math

import pytest
import torch
from tiny_models import CONFIG, KINDS, PLANTED_HEAD, planted_batch, planted_model, tiny_batch, tiny_model
from torch import nn
from transformers.models.dinov2 import modeling_dinov2
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers
from transformers.models.vit import modeling_vit

from attribution.ablation import zero_ablation
from attribution.heads import attentions
from attribution.knockout import attention_knockout
from attribution.state import model_state
from attribution.vit import ViTRegressor, attention_modules, loss_per_image, loss_per_target

HEADS = [(layer, head) for layer in range(3) for head in range(2)]
SPECIAL = {"vit": 1, "dinov2": 1, "dinov2_lora": 1, "registers": 5}
FLOAT64 = torch.float64


@pytest.fixture
def logits(monkeypatch):
    """Puts minus infinity where told, in transformers' own eager attention; the softmax of ViT in float64 too."""
    blocked = {}
    plain = modeling_dinov2.eager_attention_forward  # transformers' ViT has the same but for a float32 softmax

    def eager(module, query, key, value, attention_mask, **kwargs):
        assert attention_mask is None
        return plain(module, query, key, value, blocked.get(module), **kwargs)

    for source in (modeling_vit, modeling_dinov2, modeling_dinov2_with_registers):
        monkeypatch.setattr(source, "eager_attention_forward", eager)
    return blocked


def regions_of(num_images, generator_seed=0):
    generator = torch.Generator().manual_seed(generator_seed)
    some = torch.rand((num_images, 4, 4), generator=generator) < 0.3
    some[1] = False  # the second picture does not contain it
    one = torch.zeros(num_images, 4, 4, dtype=torch.bool)
    one[:, 1, 2] = True
    return {"some": some, "one": one, "all": torch.ones_like(one), "none": torch.zeros_like(one)}


def by_logits(model, batch, mask, special, blocked, layer, head):
    """Predictions with minus infinity on the CLS query's logits for the patches of the mask, in one head."""
    num_images, num_tokens = len(batch), special + mask[0].numel()
    logits = torch.zeros(num_images, 2, num_tokens, num_tokens, dtype=FLOAT64)
    for image, row, col in mask.nonzero().tolist():
        logits[image, head, 0, special + 4 * row + col] = -math.inf
    module = attention_modules(model)[layer]
    blocked[module] = logits
    predictions = model(batch.pixel_values)
    del blocked[module]
    return predictions


@pytest.mark.parametrize("kind", KINDS)
def test_knockout_is_minus_infinity_on_the_logits(kind, logits):
    model = tiny_model(kind)
    batch = tiny_batch(model, 3)
    regions = regions_of(3)
    found = attention_knockout(model, batch, regions, batch_size=5)
    assert found.regions == ("some", "one", "all", "none")
    assert found.delta_loss.shape == found.mass.shape == (3, 4, 3, 2)
    assert found.delta_target_sq.shape == (3, 4, 3, 2, 3)
    intact = model(batch.pixel_values)
    units_sq = torch.tensor(CONFIG.label_std, dtype=FLOAT64) ** 2
    scale = float(loss_per_image(intact, batch.labels).max())
    for number, mask in enumerate(regions.values()):
        absent = ~mask.any(dim=(1, 2))
        for layer, head in HEADS:
            blinded = by_logits(model, batch, mask, SPECIAL[kind], logits, layer, head)
            loss = loss_per_image(blinded, batch.labels) - loss_per_image(intact, batch.labels)
            squared = (loss_per_target(blinded, batch.labels) - loss_per_target(intact, batch.labels)) * units_sq
            loss[absent], squared[absent] = torch.nan, torch.nan
            for got, expected, bound in (
                (found.delta_loss, loss, 1e-10 * scale),
                (found.delta_target_sq, squared, 1e-10 * scale * float(units_sq.max())),
            ):
                torch.testing.assert_close(got[:, number, layer, head], expected, atol=bound, rtol=0, equal_nan=True)
    assert float(found.delta_loss[:, 2].abs().min()) > 1e-6  # not a single effect is lost


@pytest.mark.parametrize("kind", KINDS)
def test_mass_is_the_share_of_the_whole_attention(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model, 3)
    regions = regions_of(3)
    found = attention_knockout(model, batch, regions).mass
    _, layers = attentions(model, batch.pixel_values, lambda weights: weights[:, :, 0])
    special = SPECIAL[kind]
    for layer, weights in enumerate(layers):  # [image head key]
        torch.testing.assert_close(found[:, 2, layer], 1 - weights[..., :special].sum(-1), atol=1e-6, rtol=0)
        torch.testing.assert_close(found[:, 1, layer], weights[..., special + 6], atol=0, rtol=0)
    assert bool(found[:, 3].isnan().all()) and bool(found[1, 0].isnan().all()) and not bool(found[0, 0].isnan().any())


def test_pictures_beyond_the_first_eight_and_in_another_order_get_the_same():
    model = tiny_model("dinov2_lora")
    batch, regions = tiny_batch(model, 10), regions_of(10)
    whole = attention_knockout(model, batch, regions)
    rows = [9, 0, 5]
    few = attention_knockout(model, batch.select(rows), {name: mask[rows] for name, mask in regions.items()})
    for name in ("delta_loss", "delta_target_sq", "mass"):
        torch.testing.assert_close(
            getattr(whole, name)[rows], getattr(few, name), atol=1e-10, rtol=1e-10, equal_nan=True
        )


def test_nothing_but_the_cls_token_is_left_to_look_at():
    """With uniform attention over 5 tokens of which 4 are patches, hiding all of them is zeroing the wired head."""
    model = planted_model()
    batch = planted_batch(model)
    everything = torch.ones(len(batch), 2, 2, dtype=torch.bool)
    found = attention_knockout(model, batch, {"all": everything, "left": everything.clone()})
    # The CLS token carries nothing in channel 0, the head's context becomes 0, and so does every prediction.
    truth = zero_ablation(model, batch)
    assert float(found.delta_loss[:, 0, *PLANTED_HEAD].min()) > 0.1
    torch.testing.assert_close(found.delta_loss[:, 0], truth.delta_loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.mass[:, 0], torch.full((len(batch), 2, 2), 0.8, dtype=FLOAT64), atol=1e-6, rtol=0)


def test_hiding_one_patch_of_four_by_hand():
    """Uniform attention over CLS and 4 equal patches: the context goes from 4v/5 to 3v/4, so the prediction with it."""
    model = planted_model()
    batch = planted_batch(model)
    one = torch.zeros(len(batch), 2, 2, dtype=torch.bool)
    one[:, 1, 0] = True
    found = attention_knockout(model, batch, {"one": one})
    _, (before, after) = _first_channel(model, batch)
    expected = loss_per_image(after, batch.labels) - loss_per_image(before, batch.labels)
    torch.testing.assert_close(found.delta_loss[:, 0, *PLANTED_HEAD], expected, atol=1e-10, rtol=0)
    assert float(expected.min()) > 1e-4


def _first_channel(model, batch):
    """v of a patch, and predictions from a CLS token that got 4/5 and 3/4 of it, block and head written out."""
    base = model.backbone
    level = batch.pixel_values[:, 0, 0, 0]
    cls, patch = torch.zeros(2, len(batch), 8, dtype=FLOAT64)
    cls[:, 6], cls[:, 7] = 3.0, -3.0
    patch.copy_(cls)
    patch[:, 0] = level
    value = base.encoder.layer[1].norm1(patch)[:, 0]
    predictions = []
    for share in (4 / 5, 3 / 4):
        token = cls.clone()
        token[:, 1] = share * value
        predictions.append(model.head(base.layernorm(token)))
    return value, predictions


class FusedBlock(nn.Module):
    """timm's layout, `qkv` and `proj`, giving attention weights beside its output."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, states, extra=None):
        query, key, value = self.qkv(states).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) / 6**0.5
        weights = (logits if extra is None else logits + extra).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(-2)), weights


class FusedBackbone(nn.Module):
    """Two such blocks over 4 x 4 patches and a CLS token of zeros."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 12, 4, 4)
        self.blocks = nn.ModuleList([FusedBlock(), FusedBlock()])
        self.extra = {}

    def forward(self, pixel_values):
        tokens = nn.functional.pad(self.patch_embed(pixel_values).flatten(2).transpose(1, 2), (0, 0, 1, 0))
        for number, block in enumerate(self.blocks):
            tokens = tokens + block(tokens, self.extra.get(number))[0]
        return tokens


def test_fused_projections():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTRegressor(FusedBackbone(), CONFIG, hidden_size=12).double().eval().requires_grad_(False)
    batch, mask = tiny_batch(model, 3), regions_of(3)["one"]
    found = attention_knockout(model, batch, {"one": mask})
    intact = model(batch.pixel_values)
    for layer, head in ((layer, head) for layer in range(2) for head in range(2)):
        extra = torch.zeros(2, 17, 17, dtype=FLOAT64)
        extra[head, 0, 1 + 6] = -math.inf
        model.backbone.extra[layer] = extra
        blinded = model(batch.pixel_values)
        model.backbone.extra.clear()
        expected = loss_per_image(blinded, batch.labels) - loss_per_image(intact, batch.labels)
        torch.testing.assert_close(found.delta_loss[:, 0, layer, head], expected, atol=1e-12, rtol=1e-8)


def test_an_attention_rounded_to_all_of_the_region_is_nan():
    model = tiny_model()
    batch = tiny_batch(model, 2)
    attention = attention_modules(model)[1]
    attention.k_proj.weight[:6] *= 1e5  # head 0: all the attention on one token, the rest underflows
    _, layers = attentions(model, batch.pixel_values, lambda weights: weights[:, :, 0])
    top = layers[1][:, 0].argmax(-1)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    for image, key in enumerate(top.tolist()):
        if key:
            mask[image, key - 1] = True
    assert bool(mask.any())
    rows = mask.any(1).nonzero()[:, 0].tolist()
    found = attention_knockout(model, batch.select(rows), {"top": mask[rows].unflatten(1, (4, 4))})
    assert bool(found.delta_loss[:, 0, 1, 0].isnan().all()) and bool(found.delta_target_sq[:, 0, 1, 0].isnan().all())
    assert bool(torch.isfinite(found.delta_loss[:, 0, 0]).all()) and bool((found.mass[:, 0, 1, 0] == 1).all())


def test_single_precision():
    batch_64, regions = tiny_batch(tiny_model(), 3), regions_of(3)
    fine = attention_knockout(tiny_model(), batch_64, regions)
    model = tiny_model(dtype=torch.float32)
    coarse = attention_knockout(model, tiny_batch(model, 3), regions)
    assert coarse.delta_loss.dtype == coarse.mass.dtype == FLOAT64
    loss = loss_per_image(tiny_model()(batch_64.pixel_values), batch_64.labels)
    bound = 1e-5 * float(loss.max())
    torch.testing.assert_close(coarse.delta_loss, fine.delta_loss, atol=bound, rtol=0, equal_nan=True)


def test_the_model_is_left_as_found_also_when_it_raises():
    model = tiny_model("dinov2_lora")
    batch, regions = tiny_batch(model, 2), regions_of(2)
    before = model_state(model)
    attention_knockout(model, batch, regions)
    assert before.differences(model_state(model)) == []
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="gives no weights"):
        attention_knockout(model, batch, regions)
    assert before.differences(model_state(model)) == []


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({}, "at least one mask"),
        ({"a": torch.ones(2, 4, 4)}, r"region a: expected a bool mask .* \[2, 4, 4\] .* got torch.float32"),
        ({"a": torch.ones(2, 4, 3, dtype=torch.bool)}, r"got torch.bool \[2, 4, 3\]"),
        ({"a": torch.ones(1, 4, 4, dtype=torch.bool)}, r"\[2, 4, 4\] of patches, got torch.bool \[1, 4, 4\]"),
    ],
)
def test_other_masks_are_refused(regions, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        attention_knockout(model, tiny_batch(model, 2), regions)


def test_train_mode_and_other_attention_are_refused():
    model = tiny_model()
    batch, regions = tiny_batch(model, 2), regions_of(2)
    with pytest.raises(ValueError, match="eval mode"):
        attention_knockout(tiny_model().train(), batch, regions)
    handle = attention_modules(model)[0].o_proj.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    with pytest.raises(ValueError, match="not attention times values"):
        attention_knockout(model, batch, regions)
    handle.remove()
