"""What an estimate costs, and what the exact sweep would have cost for intervals as narrow.

Takes how well each head is predicted and costs in forward passes per picture; gives forward passes. Pure arithmetic:
does not know how long a pass takes, or how the estimate was made (`analysis.estimate`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

INTACT_FORWARD = 1.0
# Share of a block that follows its attention: output projection, norm, MLP.
_REST_OF_BLOCK = 0.7


@dataclass(frozen=True, eq=False)
class CostComparison:
    """Costs in forward passes, all pictures together, and the pictures that an exact sweep needs for each head.

    `effective_pictures` [layer head]: an exact sweep of that many gives intervals as wide as the estimate; `estimate`:
    predictor on all pictures, sweep of the sample, sweep of the exact heads on the rest; `exact`: the sweep with
    `effective_pictures` for each head, its intact forwards in proportion.
    """

    effective_pictures: Floats
    estimate: float
    exact: float

    @property
    def ratio(self) -> float:
        """How many times cheaper the estimate is."""
        return self.exact / self.estimate


def sweep_costs(num_layers: int, num_heads: int) -> Floats:
    """Forward passes per picture to ablate each head when the blocks before it are shared, `[layer head]`.

    A head of block l costs the rest of its block (0.7 of one) and the blocks after it; the last block, of which the CLS
    row alone is read, next to nothing. Add one intact forward per picture.
    """
    layer = np.arange(num_layers)
    cost = (_REST_OF_BLOCK + np.maximum(0, num_layers - 2 - layer)) / num_layers
    cost[-1] = 0.0
    return np.repeat(cost[:, None], num_heads, axis=1)


def compare_costs(
    r2: NDArray[np.floating],
    *,
    num_pictures: int,
    num_swept: int,
    head_costs: NDArray[np.floating],
    predictor_cost: float,
    is_exact: NDArray[np.bool_] | None = None,
) -> CostComparison:
    """Compare the estimate with an exact sweep at intervals of equal width, head by head.

    `r2` [layer head]: share of the variance that the predictor explains in pictures it was not fitted to; a head's
    estimate then has the variance σ²/N·R² + σ²/n·(1 − R²), an exact sweep of m pictures σ²/m. `head_costs` [layer head]
    and `predictor_cost` in forward passes per picture; `is_exact` [layer head]: swept on all pictures. Sweeping any
    head on a picture costs the intact forward as well. ValueError for shapes or numbers that do not fit.
    """
    shape, costs = np.shape(r2), np.asarray(head_costs, dtype=np.float64)
    exact = np.zeros(shape, dtype=bool) if is_exact is None else np.asarray(is_exact, dtype=bool)
    if costs.shape != shape or exact.shape != shape:
        raise ValueError(f"cost: expected head_costs and is_exact {list(shape)} as r2, got {list(costs.shape)}")
    if not 0 < num_swept <= num_pictures or predictor_cost < 0:
        raise ValueError(
            f"cost: expected 0 < num_swept ≤ num_pictures and no negative predictor_cost, got {num_swept}, "
            f"{num_pictures} and {predictor_cost}"
        )
    unswept = num_pictures - num_swept
    effective = num_swept / (1 - np.asarray(r2, dtype=np.float64) * (unswept / num_pictures))
    effective = np.where(exact, num_pictures, effective)
    sweep = INTACT_FORWARD + costs.sum()
    rest = (INTACT_FORWARD + costs[exact].sum()) if exact.any() else 0.0
    estimate = num_swept * sweep + num_pictures * predictor_cost + unswept * rest
    return CostComparison(effective, float(estimate), float((effective * costs).sum() / costs.sum() * sweep))
