"""The seam against hooks and zeroed columns, layouts of several families, units and preprocessing by hand."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from attribution.vit import (
    HeadLayout,
    RegressorConfig,
    ViTRegressor,
    attention_modules,
    gated,
    head_layout,
    loss_per_image,
    loss_per_target,
    output_projections,
    require_eval,
)

MODELS = ["tiny_vit", "tiny_dinov2"]


class FusedAttention(nn.Module):
    """Attention laid out as timm does: one `qkv`, then `proj`."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / self.head_dim**0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(-2))


class FusedBackbone(nn.Module):
    """A stand-in for a timm model: gives tokens `[image token channel]`, not an output object."""

    def __init__(self, width=12, num_heads=3, num_layers=2):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList([FusedAttention(width, num_heads) for _ in range(num_layers)])

    def forward(self, pixel_values):
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens


@pytest.fixture
def fused_model():
    config = RegressorConfig(("a",), ("m",), (0.0,), (1.0,), image_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ViTRegressor(FusedBackbone(), config, hidden_size=12).double().eval().requires_grad_(False)


@pytest.fixture(params=[*MODELS, "fused_model"])
def model(request):
    return request.getfixturevalue(request.param)


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def state_of(model):
    flags = [module.training for module in model.modules()]
    return flags, {name: value.clone() for name, value in model.state_dict().items()}, hooks_of(model)


def assert_same_state(before, after):
    assert before[0] == after[0] and before[2] == after[2]
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items())


def test_gate_is_hook_is_zeroed_columns_for_every_head(model, tiny_batch):
    pixel_values = tiny_batch(model).pixel_values
    layout = head_layout(model)
    intact = model(pixel_values)
    effects = []
    for layer, projection in enumerate(output_projections(model)):
        for head in range(layout.num_heads):
            columns = slice(head * layout.head_dim, (head + 1) * layout.head_dim)
            gates = torch.ones(layout.num_layers, layout.num_heads)
            gates[layer, head] = 0
            with gated(model, gates):
                by_gate = model(pixel_values)

            def hook(_, args, columns=columns):
                context = args[0].clone()
                context[..., columns] = 0
                return (context,)

            handle = projection.register_forward_pre_hook(hook)
            by_hook = model(pixel_values)
            handle.remove()
            kept = projection.weight.clone()
            projection.weight[:, columns] = 0
            by_weight = model(pixel_values)
            projection.weight.copy_(kept)
            assert (by_gate - by_hook).abs().max() <= 1e-10
            assert (by_gate - by_weight).abs().max() <= 1e-10
            effects.append(float((by_gate - intact).abs().max()))
    assert min(effects) > 1e-6  # every head does something, so the comparison is not empty
    assert torch.equal(model(pixel_values), intact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_gates_one_change_nothing(model, tiny_batch, dtype):
    model = model.to(dtype)
    pixel_values = tiny_batch(model).pixel_values
    layout = head_layout(model)
    shape = (layout.num_layers, layout.num_heads)
    intact = model(pixel_values)
    for gates in (torch.ones(shape), torch.ones((len(pixel_values), *shape))):
        for replacement in (None, torch.full((1, 1, 1, 1, layout.head_dim), 3.0)):
            with gated(model, gates, replacement):
                assert torch.equal(model(pixel_values), intact)


def test_gates_per_image_are_gates_one_image_at_a_time(model, tiny_batch):
    pixel_values = tiny_batch(model, num_images=4).pixel_values
    layout = head_layout(model)
    gates = torch.rand((4, layout.num_layers, layout.num_heads), dtype=torch.float64)
    with gated(model, gates):
        together = model(pixel_values)
    for image in range(4):
        with gated(model, gates[image]):
            alone = model(pixel_values[image : image + 1])
        assert torch.allclose(together[image], alone[0], rtol=0, atol=1e-6)


def test_gate_and_replacement_follow_the_formula(tiny_dinov2, tiny_batch):
    model, pixel_values = tiny_dinov2, tiny_batch(tiny_dinov2).pixel_values
    projection = output_projections(model)[1]
    seen = []
    handle = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    model(pixel_values)
    gates = torch.ones(3, 4, dtype=torch.float64)
    gates[1] = torch.tensor([1.0, 0.25, 0.0, 0.5])
    replacement = torch.randn(3, 3, 17, 4, 8, dtype=torch.float64)
    handle.remove()
    with gated(model, gates, replacement):
        handle = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        model(pixel_values)
        handle.remove()
    z, gated_z = (value.reshape(3, 17, 4, 8) for value in seen)
    for head, gate in enumerate(gates[1].tolist()):
        expected = gate * z[:, :, head] + (1 - gate) * replacement[:, 1, :, head]
        assert torch.allclose(gated_z[:, :, head], expected, rtol=0, atol=1e-12)


def test_replacement_by_its_own_context_changes_nothing_and_shapes_broadcast(tiny_dinov2, tiny_batch):
    model, pixel_values = tiny_dinov2, tiny_batch(tiny_dinov2).pixel_values
    contexts = []
    handles = [
        projection.register_forward_pre_hook(lambda _, args: contexts.append(args[0].unflatten(-1, (4, 8)).clone()))
        for projection in output_projections(model)
    ]
    intact = model(pixel_values)
    for handle in handles:
        handle.remove()
    with gated(model, torch.zeros(3, 4), torch.stack(contexts, dim=1)):
        assert torch.allclose(model(pixel_values), intact, rtol=0, atol=1e-10)
    with gated(model, torch.zeros(3, 4), torch.stack(contexts, dim=1)[0]):  # [layer token head head_dim], of image 0
        assert torch.allclose(model(pixel_values), intact[:1].expand(3, -1), rtol=0, atol=1e-10)


def test_gradients_flow_to_gates_and_equal_finite_differences(tiny_dinov2, tiny_batch):
    batch = tiny_batch(tiny_dinov2)
    gates = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)

    def loss(values):
        with gated(tiny_dinov2, values):
            return loss_per_image(tiny_dinov2(batch.pixel_values), batch.labels).sum()

    (gradient,) = torch.autograd.grad(loss(gates), gates)
    step = 1e-5
    for layer, head in [(0, 0), (1, 3), (2, 2)]:
        change = torch.zeros(3, 4, dtype=torch.float64)
        change[layer, head] = step
        slope = (loss(gates.detach() + change) - loss(gates.detach() - change)) / (2 * step)
        assert float(gradient[layer, head]) == pytest.approx(float(slope), abs=1e-7)


def test_state_is_restored_also_after_errors(model, tiny_batch):
    pixel_values = tiny_batch(model).pixel_values
    layout = head_layout(model)
    gates = torch.zeros(layout.num_layers, layout.num_heads)
    before = state_of(model)
    random_state = torch.get_rng_state()
    with gated(model, gates):
        assert hooks_of(model) == before[2] + layout.num_layers
        model(pixel_values)
    assert_same_state(before, state_of(model))
    with pytest.raises(RuntimeError, match="stop"), gated(model, gates):
        raise RuntimeError("stop")
    assert_same_state(before, state_of(model))
    with pytest.raises(ValueError, match="gates for 2 pictures in a pass of 3"), gated(model, gates.expand(2, -1, -1)):
        model(pixel_values)
    with pytest.raises((RuntimeError, ValueError)), gated(model, gates):
        model(pixel_values[:, :2])
    head_layout(model)
    assert_same_state(before, state_of(model))
    assert torch.equal(random_state, torch.get_rng_state())


def test_train_flag_is_left_alone_and_layout_draws_no_random_numbers(tiny_dinov2):
    tiny_dinov2.train()
    state = torch.get_rng_state()
    with gated(tiny_dinov2, torch.ones(3, 4)):
        assert tiny_dinov2.training
    head_layout(tiny_dinov2)
    assert all(module.training for module in tiny_dinov2.modules())
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="must be in eval mode"):
        require_eval(tiny_dinov2)
    tiny_dinov2.eval()
    require_eval(tiny_dinov2)
    attention_modules(tiny_dinov2)[2].train()
    with pytest.raises(ValueError, match=r"first: .*layer\.2\.attention"):
        require_eval(tiny_dinov2)


@pytest.mark.parametrize(
    ("gates", "replacement", "message"),
    [
        (torch.ones(4, 3), None, "gates: expected [3 4] or [image 3 4] (layer, head), got [4, 3]"),
        (torch.ones(12), None, "got [12]"),
        (torch.ones(3, 4), torch.zeros(1, 1, 1, 1, 1, 1), "replacement: expected [image layer token head head_dim]"),
        (torch.ones(3, 4), torch.zeros(1, 2, 1, 1, 1), "replacement: expected 1 or 3 layers, got 2"),
    ],
)
def test_refuses_gates_of_other_shapes(tiny_dinov2, gates, replacement, message):
    with pytest.raises(ValueError, match=re.escape(message)), gated(tiny_dinov2, gates, replacement):
        raise AssertionError("not reached")


def test_modules_are_in_forward_order(model, tiny_batch):
    order = []
    handles = [
        projection.register_forward_pre_hook(lambda module, _: order.append(module))
        for projection in reversed(output_projections(model))
    ]
    model(tiny_batch(model).pixel_values)
    for handle in handles:
        handle.remove()
    assert order == output_projections(model)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    ("make", "special"),
    [
        (lambda: DeiTModel(DeiTConfig(intermediate_size=64, **SMALL), add_pooling_layer=False), 2),
        (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=4, **SMALL)), 5),
        (lambda: DINOv3ViTModel(DINOv3ViTConfig(intermediate_size=64, num_register_tokens=3, **SMALL)), 4),
    ],
)
def test_layouts_of_other_families(make, special):
    model = ViTRegressor(make(), RegressorConfig(("a",), ("m",), (0.0,), (1.0,), image_size=32)).eval()
    assert head_layout(model) == HeadLayout(2, 4, 8, special, 4, 4)
    pixel_values = torch.randn(2, 3, 32, 32)
    gates = torch.ones(2, 4)
    with torch.no_grad():
        intact = model(pixel_values)
        with gated(model, gates):
            assert torch.equal(model(pixel_values), intact)


def test_layouts_of_the_tiny_models(tiny_vit, tiny_dinov2, fused_model):
    assert head_layout(tiny_vit) == head_layout(tiny_dinov2) == HeadLayout(3, 4, 8, 1, 4, 4)
    assert head_layout(fused_model) == HeadLayout(2, 3, 4, 1, 4, 4)


def test_pictures_larger_than_the_backbone_was_made_for(regressor_factory):
    for kind in ("vit", "dinov2"):
        model = regressor_factory(kind, lora=False)
        model.config = RegressorConfig(("a",), ("m",), (0.0,), (1.0,), image_size=48)
        assert head_layout(model) == HeadLayout(3, 4, 8, 1, 6, 6)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_eager_is_sdpa_and_one_at_a_time_is_a_batch(regressor_factory, tiny_batch, kind, lora):
    model = regressor_factory(kind, lora)
    pixel_values = tiny_batch(model, num_images=32).pixel_values
    eager = model(pixel_values)
    alone = torch.cat([model(picture[None]) for picture in pixel_values])
    assert (alone - eager).abs().max() <= 1e-5
    model.set_attn_implementation("sdpa")
    assert (model(pixel_values) - eager).abs().max() <= 1e-5
    model.set_attn_implementation("eager")
    assert torch.equal(model(pixel_values), eager)


def test_lora_on_the_output_projection_is_refused(regressor_factory):
    from peft import LoraConfig, get_peft_model

    model = regressor_factory("vit", lora=False)
    model.backbone = get_peft_model(model.backbone, LoraConfig(r=2, target_modules=["o_proj"]))
    with pytest.raises(ValueError, match="layer 0: the output projection is a Linear, expected a plain"):
        output_projections(model)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="Linear holds no attention module"):
        attention_modules(nn.Linear(2, 2))


def test_preprocess_by_hand_and_refusals(tiny_vit):
    images = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    images[0, 5, 7] = (255, 51, 0)
    values = tiny_vit.preprocess(images)
    assert values.dtype == torch.float32 and values.shape == (1, 3, 32, 32)
    expected = [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225]
    assert values[0, :, 5, 7].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(values, tiny_vit.preprocess(torch.from_numpy(images)))
    for wrong in (images.astype(np.float32), images[0], images[:, :16], images.transpose(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"pictures: expected uint8 \[image 32 32 3\]"):
            tiny_vit.preprocess(wrong)


def test_units_there_and_back_and_refusals(tiny_vit):
    labels = np.array([[30.0, 50.0, 35.0], [20.0, 80.0, 60.0]])
    standardised = tiny_vit.standardise(labels)
    assert standardised.tolist() == [[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]
    assert tiny_vit.to_units(standardised.float()).tolist() == labels.tolist()
    labels[1, 2] = np.nan
    with pytest.raises(ValueError, match="labels: row 1, high: expected a finite number"):
        tiny_vit.standardise(labels)
    with pytest.raises(ValueError, match=r"expected \[image 3\] \(start, low, high\), got \[2, 2\]"):
        tiny_vit.standardise(labels[:, :2])


def test_losses_by_hand():
    predictions, labels = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    assert loss_per_target(predictions, labels).tolist() == [[1.0, 0.0, 4.0]]
    assert loss_per_image(predictions, labels).tolist() == [pytest.approx(5 / 3)]
    with pytest.raises(ValueError, match="differ in shape"):
        loss_per_image(predictions, labels[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"label_std": (1.0,)},
        {"label_std": (1.0, 0.0)},
        {"label_mean": (0.0, float("nan"))},
        {"image_std": (1.0, 1.0, -1.0)},
        {"image_mean": (0.5,)},
        {"target_names": ()},
    ],
)
def test_config_refuses_nonsense(wrong):
    good = {"target_names": ("a", "b"), "target_units": ("", ""), "label_mean": (0.0, 0.0), "label_std": (1.0, 1.0)}
    RegressorConfig(**good)
    with pytest.raises(ValueError):
        RegressorConfig(**(good | wrong))
