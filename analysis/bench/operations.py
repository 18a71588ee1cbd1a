"""Multiply-adds of the matrix products of a forward pass and of a sweep, counted from sizes alone.

Takes sizes; gives multiply-adds per picture (a floating-point operation count is twice that). Softmax, normalisations
and activation functions are not counted: they move memory and multiply little. Knows no clock.

Notation: T tokens, D channels, H heads of d channels, L blocks, m weights of a block outside its attention. A block
takes T·(4·D·Hd + m) for its linear maps and 2·T²·Hd for scores and weighted values.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from attribution.prefix import block_list
from attribution.vit import ViTRegressor, attention_modules, head_layout, output_projections


@dataclass(frozen=True)
class Sizes:
    """What the counts depend on.

    ``mlp_weights``: of one block's linear maps outside its attention; ``embedding``: multiply-adds of the patch
    embedding; ``readout``: those of the regression head.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    width: int
    num_tokens: int
    mlp_weights: int
    embedding: int
    readout: int

    @property
    def context_width(self) -> int:
        """Channels of all heads side by side."""
        return self.num_heads * self.head_dim


def sizes_of(model: ViTRegressor) -> Sizes:
    """Sizes of a model whose blocks are alike. Raises ValueError for a model whose blocks cannot be told apart."""
    layout, blocks = head_layout(model), block_list(model)
    if blocks is None:
        raise ValueError(f"{type(model.backbone).__name__}: no list of blocks, each with one attention module")
    attention = attention_modules(model)[0]
    inside = set(attention.modules())
    outside = [module for module in blocks[0].modules() if isinstance(module, nn.Linear) and module not in inside]
    patches = layout.num_rows * layout.num_cols
    convolution = next(module for module in model.backbone.modules() if isinstance(module, nn.Conv2d))
    return Sizes(
        num_layers=layout.num_layers,
        num_heads=layout.num_heads,
        head_dim=layout.head_dim,
        width=output_projections(model)[0].out_features,
        num_tokens=layout.num_special_tokens + patches,
        mlp_weights=sum(linear.in_features * linear.out_features for linear in outside),
        embedding=patches * convolution.weight.numel(),
        readout=sum(linear.in_features * linear.out_features for linear in model.head if isinstance(linear, nn.Linear)),
    )


def block_macs(sizes: Sizes) -> int:
    """One block over all tokens."""
    tokens, context = sizes.num_tokens, sizes.context_width
    return tokens * (4 * sizes.width * context + sizes.mlp_weights) + 2 * tokens**2 * context


def last_block_macs(sizes: Sizes) -> int:
    """One block of which the CLS row alone is wanted.

    One row through the four projections and the rest, D·Hd each and m; and, as neither keys nor values of other tokens
    need be formed (q·(W_k x) = (W_kᵀ q)·x), scores and weighted means of D channels per head, 2·H·T·D.
    """
    rows = 4 * sizes.width * sizes.context_width + sizes.mlp_weights
    return rows + 2 * sizes.num_heads * sizes.num_tokens * sizes.width


def forward_macs(sizes: Sizes) -> int:
    """One full forward pass."""
    return sizes.embedding + sizes.num_layers * block_macs(sizes) + sizes.readout


def backward_macs(sizes: Sizes) -> int:
    """The backward pass that follows a forward pass, for activations alone (no weight wants a gradient)."""
    tokens, context = sizes.num_tokens, sizes.context_width
    block = tokens * (4 * sizes.width * context + sizes.mlp_weights) + 4 * tokens**2 * context
    return sizes.num_layers * block + sizes.readout


def full_sweep_macs(sizes: Sizes) -> int:
    """The intact picture and one full forward pass per head."""
    return (1 + sizes.num_layers * sizes.num_heads) * forward_macs(sizes)


def prefix_sweep_macs(sizes: Sizes) -> int:
    """A pass that keeps what enters every block, the intact pass, and for every head the blocks from its own on.

    Pictures are embedded in every pass, though only the first needs it.
    """
    heads = sizes.num_layers * sizes.num_heads
    blocks = sizes.num_layers + sizes.num_heads * sizes.num_layers * (sizes.num_layers + 1) // 2
    return forward_macs(sizes) + blocks * block_macs(sizes) + (1 + heads) * (sizes.embedding + sizes.readout)


def shared_sweep_macs(sizes: Sizes) -> int:
    """The sweep with blocks taken apart.

    The intact pass gives every block's attention. A head of block l < L − 1 costs its own term of the output
    projection (T·d·D) and the block's linear maps after the attention (T·m), then the blocks l + 1 to L − 2 as a
    whole and the last one for its CLS row; a head of the last block costs those terms for the CLS row alone.
    """
    own = sizes.head_dim * sizes.width + sizes.mlp_weights
    total = forward_macs(sizes) - block_macs(sizes) + last_block_macs(sizes)
    for layer in range(sizes.num_layers - 1):
        later = (sizes.num_layers - 2 - layer) * block_macs(sizes) + last_block_macs(sizes)
        total += sizes.num_heads * (sizes.num_tokens * own + later)
    return total + sizes.num_heads * own + sizes.num_layers * sizes.num_heads * sizes.readout


SWEEPS = {"shared": shared_sweep_macs, "prefix": prefix_sweep_macs, "full": full_sweep_macs}


def captum_sweep_macs(sizes: Sizes) -> int:
    """Captum's LayerFeatureAblation block by block: two forwards to see the block and the loss, then one per head."""
    return sizes.num_layers * (2 + sizes.num_heads) * forward_macs(sizes)
