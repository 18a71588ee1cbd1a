"""What a method on trial is: its function, where it comes from, its sign, and what it costs.

Gives :class:`Method` and its cost in passes. Knows no method in particular (`attribution.methods` does) and runs none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attribution.batch import MethodSettings
from attribution.vit import HeadLayout

Extras = tuple[Tensor, dict[str, Tensor]]  # scores, and by name what else comes with them [image ...]
Cost = int | Callable[[MethodSettings, int, int], int]  # passes per picture, or a function (settings, layers, targets)


@dataclass(frozen=True)
class Method:
    """A method and what to know about it.

    `signed`: the score predicts the sign of the effect too; an unsigned one has a `direction`, "+" where a larger
    value is fixed beforehand to mean a head that matters more, "-" where a smaller one is. `forwards` and `backwards`
    per picture. `approximate`: has no rule for some operation of the model. `default`: run unless methods are named.
    `is_path`: many passes per picture, so that runs take fewer pictures for it; `needs` names the optional fields of
    the batch it cannot do without. `of_attention`: the method as a function (attention weights `[image head query key]`
    of every layer, layout) -> scores or maps, for one that needs nothing else; such methods share one forward pass.
    `of_gradients`: the method as a function of `attribution.gradient_readings.GradientReadings` -> (scores, extras by
    name), for one that needs nothing but contexts, the outputs' gradients at them, and the contexts that the fields
    named by `needs` lend. Such methods share one forward pass, and one backward pass per output. `expands`: the kind of
    ablation whose effect the method approximates (zero, mean, resample, counterfactual), if it has one in mind.
    `with_extras`: the same scores, and more that comes with them, by name `[image ...]`. This and `of_gradients` say
    themselves, by `scores_of`, whose scores they give; `ValueError` where these are not those of `function`.
    """

    name: str
    function: Callable[..., Tensor]
    family: str = "other"
    paper: str = ""
    signed: bool = True
    direction: str = ""
    forwards: Cost = 1
    backwards: Cost = 0
    approximate: bool = False
    default: bool = True
    note: str = ""
    is_path: bool = False
    needs: tuple[str, ...] = ()
    of_attention: Callable[[list[Tensor], HeadLayout], Tensor] | None = None
    with_extras: Callable[..., Extras] | None = None
    of_gradients: Callable[[Any], Extras] | None = None
    expands: str = ""

    def __post_init__(self) -> None:
        for field in ("with_extras", "of_gradients"):
            other = getattr(self, field)
            if other is not None and getattr(other, "scores_of", None) is not self.function:
                raise ValueError(f"method {self.name}: {field} gives the scores of another function; leave it out")


def cost(method: Method, settings: MethodSettings, *, num_layers: int, num_targets: int) -> tuple[int, int]:
    """Forward and backward passes per picture."""
    forwards, backwards = (
        passes if isinstance(passes, int) else passes(settings, num_layers, num_targets)
        for passes in (method.forwards, method.backwards)
    )
    return forwards, backwards


def scores_of(function: Callable[..., Tensor]) -> Callable[[Any], Any]:
    """Marks a function that gives the scores of another by another way, or more with them (`Method.with_extras`,
    `Method.of_gradients`)."""

    def mark(other: Any) -> Any:
        other.scores_of = function
        return other

    return mark


def by_name(*methods: Method) -> dict[str, Method]:
    """A table of methods."""
    return {method.name: method for method in methods}
