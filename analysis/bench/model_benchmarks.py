"""Speed of what passes pictures through the model: the sweep, the layer methods, a plain forward.

Takes a model in eval mode and a batch; gives rows of the table of :mod:`analysis.bench.paired_timing`, each with the
largest difference from what it must equal. Knows neither tables on disk nor the synthesizer.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from analysis.bench.captum_contenders import captum_ablation, captum_conductance, captum_influence, captum_layer_ig
from analysis.bench.machine import MatrixProduct
from analysis.bench.operations import (
    SWEEPS,
    backward_macs,
    captum_sweep_macs,
    forward_macs,
    shared_sweep_macs,
    sizes_of,
)
from analysis.bench.paired_timing import difference, in_turns, row
from analysis.devices import bfloat16_is_native
from attribution.ablation import zero_ablation
from attribution.batch import Batch, MethodSettings
from attribution.gates import gate_ixg_out
from attribution.layers import internal_influence, layer_conductance, layer_ig
from attribution.vit import ViTRegressor

Rows = list[dict[str, Any]]
FULL, CAPTUM = "one forward per head", "Captum LayerFeatureAblation"
SWEEP_NAMES = {"shared": "sweep, blocks taken apart", "prefix": "sweep, whole blocks", "full": FULL}
SWEEP_BOUND = 1e-5  # of the largest loss that occurs, intact or ablated, float32
SWEEP_BOUND_FLOAT64 = 1e-10
LAYER_BOUND = 1e-4  # of the largest score, float32
LAYER_BOUND_FLOAT64 = 1e-5
LAYER_METHODS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], float | None]] = {
    "LayerConductance": (layer_conductance, captum_conductance, 6.0),
    "InternalInfluence": (internal_influence, captum_influence, 6.0),
    "LayerIntegratedGradients": (layer_ig, captum_layer_ig, None),
}  # Captum's name -> (all blocks together, block by block, how many times faster it should be)
# (contender, baseline, how many times faster it should be)
SWEEP_PAIRS: tuple[tuple[str, str, float | None], ...] = (
    ("shared", "full", 2.0),
    ("shared", "captum", 2.5),
    ("prefix", "full", 1.5),
    ("captum", "full", None),
    ("full", "", None),
)
PRODUCTS_PER_TURN = 3


def sweep_rows(model: ViTRegressor, batch: Batch, repeats: int, matrix_size: int, batch_size: int) -> Rows:
    """The sweep by each route and by Captum, in turns with large matrix products.

    `batch_size` rows (a picture lacking a head) go through in one pass, whoever passes them. The share of the matrix
    rate is that of the counted operations per second to the best product of the same repeat.
    """
    sizes = sizes_of(model)
    product = MatrixProduct(matrix_size, model.device)
    for route in SWEEP_NAMES:  # what a first call sets up is nobody's time
        zero_ablation(model, batch.select([0]), heads=[(sizes.num_layers - 1, 0)], route=route)
    contenders: dict[str, Callable[[], Any]] = {
        "products": lambda: [product() for _ in range(PRODUCTS_PER_TURN)],
        "shared": lambda: zero_ablation(model, batch, batch_size=batch_size, route="shared").delta_loss,
        "full": lambda: zero_ablation(model, batch, batch_size=batch_size, route="full"),
        "prefix": lambda: zero_ablation(model, batch, batch_size=batch_size, route="prefix").delta_loss,
        "captum": lambda: captum_ablation(model, batch, perturbations_per_eval=max(1, batch_size // len(batch))),
    }
    timed = in_turns(contenders, repeats, model.device)
    rates = [product.gflop / min(seconds) for seconds in timed.results["products"]]  # GFLOP/s
    truth = timed.results["full"][-1]
    largest_loss = float((truth.intact_loss[:, None, None] + truth.delta_loss.clamp_min(0)).max())
    counted = {name: macs(sizes) for name, macs in (SWEEPS | {"captum": captum_sweep_macs}).items()}
    names = SWEEP_NAMES | {"captum": CAPTUM}
    heads = sizes.num_layers * sizes.num_heads
    rows = []
    for name, baseline, goal in SWEEP_PAIRS:
        seconds, gflop = timed.seconds[name], 2 * counted[name] * len(batch) / 1e9
        shares = [gflop / each / rate for each, rate in zip(seconds, rates, strict=True)]
        others: dict[str, Any] = {"counted_gflop": gflop, "share_of_matmul_rate": statistics.median(shares)}
        if baseline:
            others |= {"baseline": names[baseline], "baseline_seconds": timed.seconds[baseline], "goal": goal}
            others |= {"counted_ratio": counted[baseline] / counted[name]}
            others |= difference(timed.results[name][-1], truth.delta_loss, largest_loss, SWEEP_BOUND, FULL)
        unit: dict[str, Any] = {"unit": "head x picture", "units": heads * len(batch), "pictures": len(batch)}
        others |= {"note": f"{batch_size} rows a pass"}
        rows.append(row("sweep", names[name], seconds, **unit, **others))
    return [*rows, sweep_in_float64(model, batch)]


def sweep_in_float64(model: ViTRegressor, batch: Batch) -> dict[str, Any]:
    """One head of every block, one picture, float64: blocks taken apart against full forwards. Untimed."""
    model, batch = in_float64(model, batch.select([0]))
    sizes = sizes_of(model)
    heads = [(layer, layer % sizes.num_heads) for layer in range(sizes.num_layers)]
    apart, full = (zero_ablation(model, batch, heads=heads, route=route) for route in ("shared", "full"))
    layers, numbers = zip(*heads, strict=True)
    found, expected = (each.delta_loss[0, list(layers), list(numbers)] for each in (apart, full))
    largest_loss = float(full.intact_loss[0] + expected.clamp_min(0).max())
    others = difference(found, expected, largest_loss, SWEEP_BOUND_FLOAT64, FULL)
    name = f"{SWEEP_NAMES['shared']}, float64"
    return row("sweep", name, [], unit="head x picture", units=len(heads), pictures=1, note="not timed", **others)


def layer_rows(model: ViTRegressor, batch: Batch, repeats: int, steps: int) -> Rows:
    """The layer methods that share passes between blocks, each against Captum called block by block.

    Beside the differences in the model's own precision stand those in float64, of one picture and two steps. Untimed.
    """
    settings, doubled = MethodSettings(steps=steps), in_float64(model, batch.select([0]))
    rows = []
    for name, (ours, captums, goal) in LAYER_METHODS.items():
        baseline = f"Captum {name}, block by block"
        contenders = {
            "ours": partial(ours, model, batch, settings),
            "captum": partial(captums, model, batch, steps),
        }
        timed = in_turns(contenders, repeats, model.device)
        unit: dict[str, Any] = {"unit": "picture", "units": len(batch), "pictures": len(batch)}
        unit["note"] = f"{steps} steps"
        found, expected = (timed.results[side][-1] for side in ("ours", "captum"))
        others = difference(found, expected, float(expected.abs().max()), LAYER_BOUND, baseline) | {"goal": goal}
        others |= {"baseline": baseline, "baseline_seconds": timed.seconds["captum"]}
        rows.append(row("layers", f"{name}, all blocks", timed.seconds["ours"], **unit, **others))
        rows.append(row("layers", baseline, timed.seconds["captum"], **unit))
        found, expected = ours(*doubled, MethodSettings(steps=2)), captums(*doubled, 2)
        others = difference(found, expected, float(expected.abs().max()), LAYER_BOUND_FLOAT64, baseline)
        unit |= {"units": 1, "pictures": 1, "note": "2 steps, not timed"}
        rows.append(row("layers", f"{name}, all blocks, float64", [], **unit, **others))
    return rows


def in_float64(model: ViTRegressor, batch: Batch) -> tuple[ViTRegressor, Batch]:
    """A copy of the model and the batch in float64."""
    tensors = (batch.pixel_values, batch.labels, batch.baseline_pixel_values)
    pixel_values, labels, baseline = (tensor.double() for tensor in tensors)
    return copy.deepcopy(model).double(), Batch(pixel_values, labels, batch.indices, baseline)


def estimate_rows(model: ViTRegressor, batch: Batch, repeats: int, batch_size: int) -> Rows:
    """What the predictor of the estimated effects costs beside the exact sweep of the same pictures.

    The ratio is what one picture of the sweep costs in pictures of the predictor.
    """
    sizes = sizes_of(model)
    num_targets = len(model.config.target_names)
    contenders: dict[str, Callable[[], Any]] = {
        "gate_ixg_out": lambda: gate_ixg_out(model, batch, MethodSettings(internal_batch_size=batch_size)),
        "sweep": lambda: zero_ablation(model, batch, batch_size=batch_size),
    }
    contenders["gate_ixg_out"]()
    timed = in_turns(contenders, repeats, model.device)
    predictor = forward_macs(sizes) + num_targets * backward_macs(sizes)
    counted = {"gate_ixg_out": predictor, "sweep": shared_sweep_macs(sizes)}
    unit: dict[str, Any] = {"unit": "picture", "units": len(batch), "pictures": len(batch)}
    gflop = {name: 2 * macs * len(batch) / 1e9 for name, macs in counted.items()}
    seconds, route = timed.seconds, timed.results["sweep"][-1].route
    others: dict[str, Any] = {"baseline": "exact sweep", "baseline_seconds": seconds["sweep"]}
    others |= {"counted_gflop": gflop["gate_ixg_out"], "counted_ratio": gflop["sweep"] / gflop["gate_ixg_out"]}
    return [
        row("estimate", "predictor gate_ixg_out", seconds["gate_ixg_out"], **unit, **others),
        row("estimate", "exact sweep", seconds["sweep"], **unit, counted_gflop=gflop["sweep"], note=f"route {route}"),
    ]


def machine_rows(model: ViTRegressor, batch: Batch, repeats: int, matrix_size: int) -> Rows:
    """Large matrix products, and plain forward passes with the attention that gives maps and with the fused one.

    bfloat16 is measured where the machine multiplies it itself. The rate of a forward is its share of the matrix rate.
    """
    dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if bfloat16_is_native(model.device) else {})
    products = {name: MatrixProduct(matrix_size, model.device, dtype) for name, dtype in dtypes.items()}

    def forward(implementation: str) -> None:
        model.set_attn_implementation(implementation)
        try:
            with torch.no_grad():
                model(batch.pixel_values)
        finally:
            model.set_attn_implementation("eager")

    contenders: dict[str, Callable[[], Any]] = dict(products)
    contenders |= {name: partial(forward, name) for name in ("eager", "sdpa")}
    contenders["eager"]()
    timed = in_turns(contenders, max(3, repeats), model.device)
    rows = []
    for name, product in products.items():
        others: dict[str, Any] = {"note": f"{matrix_size} x {matrix_size}", "counted_gflop": product.gflop}
        if name != "float32":
            others |= {"baseline": "matrix product, float32", "baseline_seconds": timed.seconds["float32"]}
        unit: dict[str, Any] = {"unit": "GFLOP", "units": product.gflop}
        rows.append(row("machine", f"matrix product, {name}", timed.seconds[name], **unit, **others))
    gflop = 2 * forward_macs(sizes_of(model)) * len(batch) / 1e9
    for name, baseline in (("eager", ""), ("sdpa", "eager")):
        shares = [
            gflop / own / (products["float32"].gflop / one)
            for own, one in zip(timed.seconds[name], timed.seconds["float32"], strict=True)
        ]
        others = {"counted_gflop": gflop, "share_of_matmul_rate": statistics.median(shares), "pictures": len(batch)}
        if baseline:
            others |= {"baseline": f"forward, {baseline} attention", "baseline_seconds": timed.seconds[baseline]}
        unit = {"unit": "picture", "units": len(batch)}
        rows.append(row("machine", f"forward, {name} attention", timed.seconds[name], **unit, **others))
    return rows
