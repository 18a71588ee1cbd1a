"""Snapshots of what a method must leave as it found it, and their restoration.

Takes a model; gives its flags, hooks, gradients and weight versions together with the random states of torch, numpy and
random. Does not know what a method is.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, eq=False)
class ModelState:
    """Everything a method must leave as it found it, but for the values of the weights."""

    training: dict[str, bool]
    requires_grad: dict[str, bool]
    grads: dict[str, Tensor | None]
    hooks: dict[tuple[str, str], dict[int, Any]]
    versions: dict[str, int]
    torch_rng: Tensor
    numpy_rng: Any
    python_rng: Any

    def differences(self, other: "ModelState") -> list[str]:
        """What differs between two snapshots of one model, in words."""
        found = [
            word
            for word, field in (
                ("train flags", "training"),
                ("requires_grad", "requires_grad"),
                ("hooks", "hooks"),
                ("weights", "versions"),
                ("the state of random", "python_rng"),
            )
            if getattr(self, field) != getattr(other, field)
        ]
        if any(self.grads[name] is not other.grads[name] for name in self.grads):
            found.append("gradients of the weights")
        if not torch.equal(self.torch_rng, other.torch_rng):
            found.append("the random state of torch")
        if str(self.numpy_rng) != str(other.numpy_rng) or not np.array_equal(self.numpy_rng[1], other.numpy_rng[1]):
            found.append("the random state of numpy")
        return found


def model_state(model: nn.Module) -> ModelState:
    """A snapshot of flags, hooks, gradients, versions of the weights, and the random states."""
    parameters = dict(model.named_parameters())
    return ModelState(
        training={name: module.training for name, module in model.named_modules()},
        requires_grad={name: parameter.requires_grad for name, parameter in parameters.items()},
        grads={name: parameter.grad for name, parameter in parameters.items()},
        hooks={(name, kind): dict(getattr(module, kind)) for name, module in model.named_modules() for kind in _HOOKS},
        versions={name: tensor._version for name, tensor in (*parameters.items(), *model.named_buffers())},
        torch_rng=torch.get_rng_state(),
        numpy_rng=np.random.get_state(legacy=True),  # noqa: NPY002
        python_rng=random.getstate(),
    )


@contextmanager
def restored_state(model: nn.Module) -> Iterator[None]:
    """Put flags, hooks, gradients and random states back on leaving, also after an error (weights cannot be)."""
    before = model_state(model)
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = before.training[name]
            for kind in _HOOKS:
                hooks = getattr(module, kind)
                hooks.clear()
                hooks.update(before.hooks[name, kind])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before.requires_grad[name])
            parameter.grad = before.grads[name]
        torch.set_rng_state(before.torch_rng)
        np.random.set_state(before.numpy_rng)  # noqa: NPY002
        random.setstate(before.python_rng)
