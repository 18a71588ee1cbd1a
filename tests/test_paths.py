"""Where an effect goes, against plain hooks in float64, and on models where the way is known."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from contexts_moved import contexts_by_hooks, of_head
from tiny_models import planted_batch, planted_model, tiny_batch, tiny_model

from attribution.ablation import counterfactual_ablation, zero_ablation
from attribution.batch import MethodSettings
from attribution.direct_effect import direct_effect
from attribution.paths import by_part, by_route, by_token, parts_of_model, whole_contexts, whole_effects
from attribution.prefix import block_list
from attribution.vit import attention_modules, loss_per_image, output_projections

KINDS = ("dinov2", "dinov2_lora", "registers")


def effect(model, batch, hooks):
    """Change of the loss with some (module, kind of hook, hook) in place."""
    with ExitStack() as stack, torch.no_grad():
        intact = loss_per_image(model(batch.pixel_values), batch.labels)
        for module, kind, hook in hooks:
            register = module.register_forward_pre_hook if kind == "before" else module.register_forward_hook
            stack.callback(register(hook).remove)
        return loss_per_image(model(batch.pixel_values), batch.labels) - intact


def without_head(model, layer, head, tokens=None):
    """A hook that sets a head's context to zero, at some tokens `[image token]` or at all."""

    def zeroed(_, args):
        own = of_head(args[0], head)
        return (args[0] - (own if tokens is None else own * tokens[:, :, None]),)

    return (output_projections(model)[layer], "before", zeroed)


def outputs_of(modules, model, pixel_values):
    seen = []
    handles = [module.register_forward_hook(lambda _, __, output: seen.append(output)) for module in modules]
    with torch.no_grad():
        model(pixel_values)
    for handle in handles:
        handle.remove()
    return seen


def held(module, output):
    """A hook that gives what the module gave before."""
    return (module, "after", lambda *_: output)


def by_hooks(function):
    return torch.stack([torch.stack([function(layer, head) for head in range(2)], dim=-1) for layer in range(3)], dim=1)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_by_token_only_these_rows_are_set_to_zero(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    num_tokens = contexts_by_hooks(model, batch.pixel_values)[0].shape[1]
    generator = torch.Generator().manual_seed(0)
    first = torch.zeros(4, num_tokens, dtype=torch.bool)
    first[:, 0] = True
    some = torch.rand(4, num_tokens, generator=generator) < 0.4
    tokens = {"read_out": first, "answer": some & ~first, "other": ~some & ~first, "all": torch.ones_like(first)}
    found = by_token(model, batch, tokens, batch_size=3)
    for name, chosen in tokens.items():
        close(
            found[name],
            by_hooks(lambda *head, chosen=chosen: effect(model, batch, [without_head(model, *head, chosen)])),
        )
    close(found["all"], zero_ablation(model, batch).delta_loss)
    with pytest.raises(ValueError, match=r"tokens read_out: expected (17|21) tokens, got 3"):
        by_token(model, batch, {"read_out": first[:, :3]})
    with pytest.raises(ValueError, match=r"tokens all: expected bool \[4 token\], got torch.float32"):
        by_token(model, batch, {"all": first.float()})


@pytest.mark.parametrize("kind", KINDS)
def test_by_route_only_some_of_what_follows_responds(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    attentions, mlps = attention_modules(model), [block.mlp for block in block_list(model)]
    of_attentions, of_mlps = (outputs_of(modules, model, batch.pixel_values) for modules in (attentions, mlps))

    def attention_held(layer):
        return [held(attentions[later], of_attentions[later]) for later in range(layer + 1, 3)]

    def mlps_held(layer):
        return [held(mlps[later], of_mlps[later]) for later in range(layer, 3)]

    ways = {
        "direct": lambda layer: attention_held(layer) + mlps_held(layer),
        "mlps": attention_held,
        "heads": mlps_held,
    }
    for size in (32, 3, 1):
        found = by_route(model, batch, batch_size=size)
        for name, way in ways.items():
            close(
                found[name],
                by_hooks(
                    lambda layer, head, way=way: effect(model, batch, [without_head(model, layer, head), *way(layer)])
                ),
            )
    close(found["direct"], direct_effect(model, batch, MethodSettings()))


@pytest.mark.parametrize("kind", KINDS)
def test_by_part_pattern_or_values_are_the_counterfactuals(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    patterns, values = [], []
    for pixel_values in (batch.pixel_values, batch.counterfactual_pixel_values):
        patterns.append([output[1] for output in outputs_of(attention_modules(model), model, pixel_values)])
        found = outputs_of([module.v_proj for module in attention_modules(model)], model, pixel_values)
        values.append([value.unflatten(-1, (2, 6)).transpose(1, 2) for value in found])

    def with_contexts(layer, head, looks, brings):
        context = patterns[looks][layer][:, head] @ values[brings][layer][:, head]

        def changed(_, args):
            moved = args[0].clone()
            moved[..., 6 * head : 6 * head + 6] = context
            return (moved,)

        return effect(model, batch, [(output_projections(model)[layer], "before", changed)])

    found = by_part(model, batch, batch_size=3)
    close(found["pattern"], by_hooks(lambda layer, head: with_contexts(layer, head, 1, 0)))
    close(found["values"], by_hooks(lambda layer, head: with_contexts(layer, head, 0, 1)))
    both = by_hooks(lambda layer, head: with_contexts(layer, head, 1, 1))
    close(counterfactual_ablation(model, batch).delta_loss, both)


def test_of_the_last_blocks_one_head_everything_is_direct_and_at_the_first_token():
    model = planted_model()
    batch = planted_batch(model)
    zero, counterfactual = whole_effects(model, batch).values()
    routes = by_route(model, batch)
    for effects in routes.values():
        torch.testing.assert_close(effects, zero, rtol=0, atol=1e-10)
    tokens = torch.zeros(len(batch), whole_contexts(parts_of_model(model, batch), batch.pixel_values).shape[2]).bool()
    first = tokens.clone()
    first[:, 0] = True
    found = by_token(model, batch, {"read_out": first, "other": ~first})
    torch.testing.assert_close(found["read_out"], zero, rtol=0, atol=1e-10)
    assert float(found["other"].abs().max()) <= 1e-10
    # Uniform attention: where it looks says nothing, what it brings everything.
    parts = by_part(model, batch)
    assert float(parts["pattern"].abs().max()) <= 1e-10
    torch.testing.assert_close(parts["values"], counterfactual, rtol=0, atol=1e-10)


def test_where_mlps_or_later_heads_do_nothing_no_effect_goes_through_them():
    model = tiny_model()
    batch = tiny_batch(model)
    for block in block_list(model):
        block.mlp.fc2.weight.data.zero_()
    routes = by_route(model, batch)
    close(routes["mlps"], routes["direct"])
    close(routes["heads"], zero_ablation(model, batch).delta_loss)
    model = tiny_model()
    for projection in output_projections(model)[1:]:
        projection.weight.data.zero_()
    routes = by_route(model, batch)
    close(routes["heads"][:, 0], routes["direct"][:, 0])
    close(routes["mlps"][:, 0], zero_ablation(model, batch).delta_loss[:, 0])


def test_models_that_are_not_known_are_refused():
    model = tiny_model()
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match="counterfactual_pixel_values: needed here"):
        by_part(model, replace(batch, counterfactual_pixel_values=None))
    block_list(model)[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="paths: the blocks of Dinov2Model are not known"):
        by_route(model, batch)
