"""Transformer blocks taken apart, so that many variants of one pass share what they have in common.

Takes a model whose blocks it knows (ViT, DeiT, DINOv2 with or without registers, by transformers; LoRA or not); gives
their parts as plain functions of tensors: the contexts of a block's heads, what follows from contexts, and the way
from a block's output to the predictions, of which the last block computes the first token's row alone. No hooks, no
gradients of weights. `take_apart` gives None for any other model, and where a hook sits on a part it would pass by.

Equal to the model within rounding: attention goes through torch's fused kernel, LayerScale and LoRA are folded into
the weights, and the last block's keys and values are never formed. `parts_of` looks whether that holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.prefix import block_list, embedded
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, unwrapped

# transformers' block class -> names of its two norms; both hold `attention` and `mlp`.
_NORMS = {
    "ViTLayer": ("layernorm_before", "layernorm_after"),
    "DeiTLayer": ("layernorm_before", "layernorm_after"),
    "Dinov2Layer": ("norm1", "norm2"),
    "Dinov2WithRegistersLayer": ("norm1", "norm2"),
}
_MODELS = ("ViTModel", "DeiTModel", "Dinov2Model", "Dinov2WithRegistersModel")


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of one block, ready for use: LayerScale folded in, query, key and value side by side."""

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    qkv_weight: Tensor  # [3*head*head_dim channel]
    qkv_bias: Tensor | None
    scaling: float
    output_weight: Tensor  # [channel head*head_dim]
    output_bias: Tensor
    mlp: Callable[[Tensor], Tensor]  # [row channel] -> what the second linear layer takes
    mlp_weight: Tensor
    mlp_bias: Tensor
    num_heads: int

    def contexts(self, states: Tensor) -> Tensor:
        """The heads' contexts `[image token head*head_dim]` of hidden states `[image token channel]`."""
        num_images, num_tokens, _ = states.shape
        projected = F.linear(self._norm(self.norm1, states), self.qkv_weight, self.qkv_bias)
        query, key, value = projected.view(num_images, num_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return context.transpose(1, 2).flatten(2)

    def first_contexts(self, states: Tensor) -> Tensor:
        """`contexts` of the first token alone, `[image 1 head*head_dim]`, without keys and values of the others.

        q·(W_k x) = (W_kᵀ q)·x, and Σ a (W_v x + b_v) = W_v (Σ a x) + b_v, as the attention a sums to 1; what the key's
        bias adds is the same for every token and leaves the softmax as it is.
        """
        normed = self._norm(self.norm1, states)
        query_weight, key_weight, value_weight = self.qkv_weight.view(3, self.num_heads, -1, states.shape[-1])
        query = torch.einsum("bc,hdc->bhd", normed[:, 0], query_weight)
        if self.qkv_bias is not None:
            query = query + self.qkv_bias.view(3, self.num_heads, -1)[0]
        key = torch.einsum("bhd,hdc->bhc", query * self.scaling, key_weight)
        attention = torch.softmax(key @ normed.transpose(1, 2), dim=-1)  # [image head token]
        context = torch.einsum("bhc,hdc->bhd", attention @ normed, value_weight)
        if self.qkv_bias is not None:
            context = context + self.qkv_bias.view(3, self.num_heads, -1)[2]
        return context.flatten(1)[:, None]

    def attended(self, residual: Tensor, contexts: Tensor) -> Tensor:
        """Residual plus the output projection of the contexts, both `[image token ...]`."""
        flat = torch.addmm(self.output_bias, contexts.flatten(0, 1), self.output_weight.T)
        return flat.view_as(residual).add_(residual)

    def share_of_head(self, head: int, contexts: Tensor) -> Tensor:
        """What contexts `[image token head_dim]` of one head bring to the residual stream: no bias, rank head_dim."""
        size = self.output_weight.shape[1] // self.num_heads
        return F.linear(contexts, self.output_weight[:, head * size : (head + 1) * size])

    def fed_forward(self, attended: Tensor) -> Tensor:
        """The block's output from the residual stream after attention, which it overwrites."""
        flat = attended.flatten(0, 1)
        hidden = self.mlp(self._norm(self.norm2, flat))
        return flat.add_(self.mlp_bias).addmm_(hidden, self.mlp_weight.T).view_as(attended)

    def __call__(self, states: Tensor) -> Tensor:
        """The block's output `[image token channel]`."""
        return self.fed_forward(self.attended(states, self.contexts(states)))

    @staticmethod
    def _norm(norm: nn.LayerNorm, states: Tensor) -> Tensor:
        return F.layer_norm(states, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


@dataclass(frozen=True, eq=False)
class TakenApart:
    """A model in parts: `embed` gives what enters the first block, `read` predictions of the first token's state."""

    blocks: list[Block]
    embed: Callable[[Tensor], Tensor]  # pixel values -> [image token channel]
    read: Callable[[Tensor], Tensor]  # [image 1 channel] -> [image target]


def take_apart(model: ViTRegressor) -> TakenApart | None:
    """The model in parts, for use under `torch.no_grad`; None where the model is not known to be made of such parts."""
    base: Any = unwrapped(model.backbone)
    layers = block_list(model)
    if type(base).__name__ not in _MODELS or not _of_transformers(base) or layers is None:
        return None
    if any(type(layer).__name__ not in _NORMS or not _of_transformers(layer) for layer in layers):
        return None
    parts = [module for layer in layers for module in layer.modules()] + [base.layernorm, model.head]
    if any(part._forward_hooks or part._forward_pre_hooks for part in (*parts, *model.head.modules())):
        return None
    blocks = []
    for layer, attention in zip(layers, attention_modules(model), strict=True):
        block = _block(layer, attention)
        if block is None:
            return None
        blocks.append(block)
    return TakenApart(
        blocks, lambda pixel_values: embedded(model, pixel_values), lambda state: _read(model, base, state)
    )


@torch.no_grad()
def parts_of(model: ViTRegressor, picture: Tensor) -> TakenApart | None:
    """`take_apart`, provided that the parts give what the model gives on a picture `[1 3 row col]`; else None."""
    parts = take_apart(model)
    if parts is None:
        return None
    state = parts.embed(picture)
    for block in parts.blocks:
        state = block(state)
    expected = model(picture)
    # transformers' ViT takes its softmax in float32 also where the model is float64; half types are coarse in one step.
    eps = torch.finfo(expected.dtype).eps
    bound = (max(1e3 * eps, 1e-5) if eps < 1e-4 else 8 * eps) * (1 + float(expected.abs().max()))
    return parts if float((parts.read(state[:, :1]) - expected).abs().max()) <= bound else None


def _read(model: ViTRegressor, base: Any, state: Tensor) -> Tensor:
    return model.head(base.layernorm(state)[:, 0].to(model.dtype))


def _of_transformers(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.models.")


def _block(layer: Any, attention: Any) -> Block | None:
    projections = [_linear(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    mlp = _mlp(layer.mlp)
    if mlp is None or any(projection is None for projection in projections):
        return None
    (query, query_bias), (key, key_bias), (value, value_bias), (output, output_bias) = (p for p in projections if p)
    biases = [bias for bias in (query_bias, key_bias, value_bias) if bias is not None]
    if len(biases) not in (0, 3) or output_bias is None:
        return None
    hidden, (mlp_weight, mlp_bias) = mlp
    scales = [getattr(getattr(layer, f"layer_scale{number}", None), "lambda1", None) for number in (1, 2)]
    first, second = (torch.ones_like(output_bias) if scale is None else scale for scale in scales)
    norm1, norm2 = (getattr(layer, name) for name in _NORMS[type(layer).__name__])
    return Block(
        norm1=norm1,
        norm2=norm2,
        qkv_weight=torch.cat((query, key, value)),
        qkv_bias=torch.cat(biases) if biases else None,
        scaling=attention.scaling,
        output_weight=first[:, None] * output,
        output_bias=first * output_bias,
        mlp=hidden,
        mlp_weight=second[:, None] * mlp_weight,
        mlp_bias=second * mlp_bias,
        num_heads=num_heads_of(attention),
    )


def _linear(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a linear layer, a LoRA on it added; None for anything else."""
    if type(module) is nn.Linear:
        return module.weight, module.bias
    adapted: Any = module
    if not all(hasattr(module, name) for name in ("get_base_layer", "get_delta_weight", "active_adapters")):
        return None
    if any(adapted.use_dora.get(name, False) for name in adapted.active_adapters) or adapted.disable_adapters:
        return None
    base = adapted.get_base_layer()
    if type(base) is not nn.Linear or (adapted.lora_bias and any(adapted.lora_bias.values())):
        return None
    if adapted.merged:
        return base.weight, base.bias
    names = [name for name in adapted.active_adapters if name in adapted.lora_A]
    return base.weight + sum(adapted.get_delta_weight(name) for name in names), base.bias


def _mlp(mlp: Any) -> tuple[Callable[[Tensor], Tensor], tuple[Tensor, Tensor]] | None:
    """What an MLP does before its last linear layer, and that layer; None where it is of another make."""
    if all(hasattr(mlp, name) for name in ("fc1", "fc2", "activation_fn")):
        first, last, activation = _linear(mlp.fc1), _linear(mlp.fc2), mlp.activation_fn
        if first is None or last is None or last[1] is None:
            return None
        weight, bias = first
        return (lambda states: activation(F.linear(states, weight, bias))), (last[0], last[1])
    if all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        last = _linear(mlp.down_proj)
        if last is None or last[1] is None:
            return None
        return (lambda states: mlp.act_fn(mlp.gate_proj(states)) * mlp.up_proj(states)), (last[0], last[1])
    return None
