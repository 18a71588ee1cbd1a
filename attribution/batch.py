"""What every attribution method is given: pictures with their labels, and settings.

Takes tensors already on the model's device and in its dtype; gives them back whole or in slices along the image axis.
Knows no model, no method and no data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

OPTIONAL_FIELDS = ("donor_pixel_values", "counterfactual_pixel_values", "mean_context")


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures to be explained, checked on construction (`ValueError` on a wrong shape or a value that is not finite).

    `pixel_values` [image 3 row col], preprocessed; `labels` [image target], standardised; `indices` [image], the
    pictures' numbers in their data set: whatever is random about a picture is seeded by them, never by its place in
    the batch; `baseline_pixel_values` [3 row col], or one per picture [image 3 row col], where the path methods that
    start from a picture start. What only some methods and truths need: `donor_pixel_values` [image donor 3 row col],
    other pictures drawn for each; `counterfactual_pixel_values` [image 3 row col], the picture without the thing to be
    read; `mean_context` [layer token head head_dim], the mean over reference pictures of what each head brings to its
    output projection, one for all pictures.
    """

    pixel_values: Tensor
    labels: Tensor
    indices: Tensor
    baseline_pixel_values: Tensor
    donor_pixel_values: Tensor | None = None
    counterfactual_pixel_values: Tensor | None = None
    mean_context: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", torch.as_tensor(self.indices, dtype=torch.int64, device="cpu"))
        shape = list(self.pixel_values.shape)
        if len(shape) != 4 or shape[0] == 0 or shape[1] != 3:
            raise ValueError(f"pixel_values: expected [image 3 row col] with at least one image, got {shape}")
        if self.labels.dim() != 2 or self.labels.shape[0] != shape[0]:
            raise ValueError(f"labels: expected [{shape[0]} target], got {list(self.labels.shape)}")
        if list(self.indices.shape) != shape[:1]:
            raise ValueError(f"indices: expected [{shape[0]}], got {list(self.indices.shape)}")
        if list(self.baseline_pixel_values.shape) not in (shape[1:], shape):
            raise ValueError(
                f"baseline_pixel_values: expected {shape[1:]} or {shape}, got {list(self.baseline_pixel_values.shape)}"
            )
        donors, twins = self.donor_pixel_values, self.counterfactual_pixel_values
        if donors is not None and (donors.dim() != 5 or [donors.shape[0], *donors.shape[2:]] != shape):
            raise ValueError(f"donor_pixel_values: expected [{shape[0]} donor {shape[1:]}], got {list(donors.shape)}")
        if twins is not None and list(twins.shape) != shape:
            raise ValueError(f"counterfactual_pixel_values: expected {shape}, got {list(twins.shape)}")
        if self.mean_context is not None and self.mean_context.dim() != 4:
            raise ValueError(f"mean_context: expected [layer token head head_dim], got {list(self.mean_context.shape)}")
        for name in ("pixel_values", "labels", "baseline_pixel_values", *OPTIONAL_FIELDS):
            values = getattr(self, name)
            if values is not None and not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")

    def __len__(self) -> int:
        return self.pixel_values.shape[0]

    def select(self, rows: slice | list[int]) -> "Batch":
        """The batch of the pictures at these places."""
        baseline, donors, twins = self.baseline_pixel_values, self.donor_pixel_values, self.counterfactual_pixel_values
        return Batch(
            self.pixel_values[rows],
            self.labels[rows],
            self.indices[rows],
            baseline if baseline.dim() == 3 else baseline[rows],
            None if donors is None else donors[rows],
            None if twins is None else twins[rows],
            self.mean_context,
        )

    def required(self, name: str) -> Tensor:
        """An optional field that a method or truth cannot do without (`ValueError` where it is missing)."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{name}: needed here, but this batch has none")
        return value

    def chunks(self, size: int) -> Iterator["Batch"]:
        """The pictures in their order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.select(slice(start, start + size))


@dataclass(frozen=True)
class MethodSettings:
    """Dials of the methods.

    `steps` of the path integrals of head methods and `pixel_steps` of those of pixel methods (Gauss–Legendre nodes);
    `seed` of everything random; `internal_batch_size`, the most pictures (times steps) in one pass; `noise_samples`
    noisy copies of a picture (SmoothGrad); `permutations` of the gates (Shapley values).
    """

    steps: int = 16
    seed: int = 0
    internal_batch_size: int = 32
    pixel_steps: int = 8
    noise_samples: int = 8
    permutations: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "internal_batch_size", "pixel_steps", "noise_samples", "permutations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
