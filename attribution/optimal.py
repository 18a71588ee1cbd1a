"""The constant that does least harm in a head's place: optimal ablation (Li & Janson 2024, 2409.09951, section 2).

Takes a model in eval mode and reference pictures; gives contexts that stand in for a head's own: one vector for all
tokens and pictures (`constant`), or the mean context of every token moved by one vector (`shifted_mean`). What a head
then costs is what it tells of a picture beyond a constant; where zero or the mean are far from what later layers
expect, those cost more.

To first order an output without the head's context z and with b in its place is ŷ_k − Σ_t (z_t − b_t)·J_kt, J = ∂ŷ/∂z:
linear in b, so that the b of least expected loss solves a ridge regression of one head's channels, from one forward and
one backward pass per output for all heads. The exact sweep judges: of several strengths of the ridge, of the mean and
of zero each head takes what costs it least on the pictures of `judged`. No head is then worse off, on these, than at
zero or at its mean.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.ablation import zero_ablation
from attribution.batch import Batch, MethodSettings
from attribution.gradient_readings import read_gradients
from attribution.vit import ViTRegressor, head_layout

RIDGES = (1e-3, 1e-1, 10.0)  # of the mean eigenvalue of a head's system


@dataclass(frozen=True, eq=False)
class OptimalContext:
    """`context` [layer token head head_dim] float64, to stand in for each head's own; `candidate` [layer head], the
    name of what each head took; `loss_change` name -> [layer head], the mean change of the loss on the judged
    pictures by every candidate."""

    context: Tensor
    candidate: list[list[str]]
    loss_change: dict[str, Tensor]


@torch.no_grad()
def optimal_context(
    model: ViTRegressor,
    reference: Iterable[Batch],
    judged: Sequence[Batch],
    mean_context: Tensor,
    *,
    ridges: Sequence[float] = RIDGES,
    batch_size: int = 32,
    passed: Callable[[int], None] | None = None,
) -> OptimalContext:
    """The best candidate of every head. `reference` and `judged`: pictures some at a time; `mean_context` `[layer token
    head head_dim]`, of all reference pictures.

    Costs one pass with gradients over `reference`, and a sweep over `judged` for each candidate, two for each ridge and
    two more; `passed` is told of the pictures of either. Raises `ValueError` for a model in train mode, no pictures, no
    ridge or one that is not positive, and a mean context of another form.
    """
    if not judged:
        raise ValueError("optimal ablation: expected reference pictures and pictures to judge by")
    if not ridges or min(ridges) <= 0:
        raise ValueError(f"ridges: expected positive numbers, got {list(ridges)}")
    layout = head_layout(model)
    expected = [layout.num_layers, layout.num_heads, layout.head_dim]
    if mean_context.dim() != 4 or [mean_context.shape[0], *mean_context.shape[2:]] != expected:
        raise ValueError(f"mean_context: expected [layer token head head_dim], got {list(mean_context.shape)}")
    mean = mean_context.double()
    bases = {"constant": torch.zeros_like(mean), "shifted_mean": mean}
    candidates = {"zero": torch.zeros_like(mean), "mean": mean}
    matrices, vectors = _systems(model, reference, tuple(bases.values()), batch_size, passed)
    for (family, base), vector in zip(bases.items(), vectors, strict=True):
        for ridge in ridges:
            moved = solved(matrices, vector, ridge)  # [layer head head_dim]
            candidates[f"{family} ({ridge:g})"] = base + moved[:, None]
    changes = {name: _judged(model, judged, context, batch_size, passed) for name, context in candidates.items()}
    return _best(candidates, changes)


def solved(matrices: Tensor, vectors: Tensor, ridge: float) -> Tensor:
    """b of the ridge regression Σ (y + x·b)² + λ|b|², by head: from Σ x xᵀ `[... d d]` and Σ x y `[... d]`; λ is so
    many times the mean eigenvalue."""
    size = matrices.shape[-1]
    strength = ridge * matrices.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(size, dtype=matrices.dtype)
    whole = matrices + (strength + torch.finfo(matrices.dtype).tiny)[..., None, None] * eye
    return torch.linalg.lstsq(whole, -vectors[..., None]).solution[..., 0]


def _systems(
    model: ViTRegressor,
    batches: Iterable[Batch],
    bases: Sequence[Tensor],
    batch_size: int,
    passed: Callable[[int], None] | None,
) -> tuple[Tensor, Tensor]:
    """Σ x xᵀ `[layer head d d]` and Σ x y `[base layer head d]` over pictures and outputs, x = Σ_t J_t and y = r − Σ_t
    (z_t − b_t)·J_t, with b each of the bases `[layer token head head_dim]` and r the residual."""
    num_layers, _, num_heads, head_dim = bases[0].shape
    matrices = torch.zeros(num_layers, num_heads, head_dim, head_dim, dtype=torch.float64)
    vectors = torch.zeros(len(bases), num_layers, num_heads, head_dim, dtype=torch.float64)
    settings = MethodSettings(internal_batch_size=batch_size)
    count = 0
    for batch in batches:
        count += len(batch)
        for found in read_gradients(model, batch, settings):
            residuals = (found.predictions - found.labels).T.to("cpu", torch.float64)  # [target image]
            for layer, (context, gradient) in enumerate(zip(found.contexts, found.gradients, strict=True)):
                split = gradient.unflatten(-1, (num_heads, -1))  # [target image token head head_dim]
                slopes = split.sum(2).to("cpu", torch.float64)
                matrices[layer] += torch.einsum("kihd,kihe->hde", slopes, slopes)
                for place, base in enumerate(bases):
                    instead = base[layer, : context.shape[1]].flatten(-2).to(context)  # the last block: one row
                    left = (context - instead).unflatten(-1, (num_heads, -1))
                    leaves = torch.einsum("ithd,kithd->kih", left, split).to("cpu", torch.float64)
                    rest = residuals[:, :, None] - leaves  # [target image head]
                    vectors[place, layer] += torch.einsum("kihd,kih->hd", slopes, rest)
        if passed is not None:
            passed(len(batch))
    if not count:
        raise ValueError("optimal ablation: expected reference pictures and pictures to judge by")
    return matrices, vectors


def _judged(
    model: ViTRegressor,
    batches: Sequence[Batch],
    context: Tensor,
    batch_size: int,
    passed: Callable[[int], None] | None,
) -> Tensor:
    """Mean change of the loss `[layer head]` by exact sweeps."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        found = zero_ablation(model, batch, replacement=context, batch_size=batch_size)
        total = total + found.delta_loss.sum(0)
        if passed is not None:
            passed(len(batch))
    return total / sum(map(len, batches))


def _best(candidates: Mapping[str, Tensor], changes: dict[str, Tensor]) -> OptimalContext:
    names = list(candidates)
    best = torch.stack([changes[name] for name in names]).argmin(0)  # [layer head]
    context = torch.stack([candidates[name] for name in names])  # [candidate layer token head head_dim]
    layers, heads = torch.meshgrid(*(torch.arange(size) for size in best.shape), indexing="ij")
    chosen = context[best, layers, :, heads].transpose(1, 2)  # [layer token head head_dim]
    return OptimalContext(chosen, [[names[int(at)] for at in row] for row in best], changes)
