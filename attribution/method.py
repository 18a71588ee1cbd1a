"""What a method on trial is: its function, where it comes from, its sign, and what it costs.

Gives :class:`Method` and its cost in passes. Knows no method in particular (`attribution.methods` does) and runs none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attribution.batch import MethodSettings
from attribution.vit import HeadLayout

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
    `with_extras`: the same scores, and more that comes with them, by name `[image ...]`; it says itself, by
    `extras_of`, whose scores they are, and `ValueError` is raised where these are not those of `function`.
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
    with_extras: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = None

    def __post_init__(self) -> None:
        if self.with_extras is not None and getattr(self.with_extras, "scores_of", None) is not self.function:
            raise ValueError(f"method {self.name}: with_extras gives the scores of another function; leave it out")


def cost(method: Method, settings: MethodSettings, *, num_layers: int, num_targets: int) -> tuple[int, int]:
    """Forward and backward passes per picture."""
    forwards, backwards = (
        passes if isinstance(passes, int) else passes(settings, num_layers, num_targets)
        for passes in (method.forwards, method.backwards)
    )
    return forwards, backwards


def extras_of(function: Callable[..., Tensor]) -> Callable[[Any], Any]:
    """Marks a function that gives the scores of another, and more that comes with them (`Method.with_extras`)."""

    def mark(with_extras: Any) -> Any:
        with_extras.scores_of = function
        return with_extras

    return mark


def by_name(*methods: Method) -> dict[str, Method]:
    """A table of methods."""
    return {method.name: method for method in methods}
