from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lowdim.compress.allocate import Curve, allocate, curves, sensitivities
from lowdim.compress.calibrate import second_moments
from lowdim.compress.factorize import LayerOptions, factorize_layers
from lowdim.compress.plan import LayerPlan, Plan, plan
from lowdim.errors import DataError


def setting(decays: list[float], rank: int = 16) -> tuple[Plan, dict[str, Curve]]:
    layers, found = [], {}
    for number, decay in enumerate(decays):
        energy = decay ** torch.arange(64.0, dtype=torch.float64)
        found[str(number)] = Curve(energy / energy.sum(), price=128, lowest=8, highest=31)
        layers.append(LayerPlan(str(number), (str(number),), (64, 64), "lowrank", rank, None, 128 * rank))
    return Plan(tuple(layers), (), "lowrank", 0.5, 10**6), found


@pytest.mark.parametrize("decays", [[0.8, 0.95], [0.9, 0.9, 0.97], [0.5, 0.99, 0.9]])
def test_it_is_the_best_choice_of_all(decays):
    shared, found = setting(decays)
    losses = {name: curve.tail(16) * (1 + 0.1 * int(name)) for name, curve in found.items()}
    result, weights = allocate(shared, found, losses)

    def value(ranks):
        return sum(weights[name] * found[name].tail(r) for name, r in zip(found, ranks, strict=True))

    budget = 16 * len(decays)
    choices = itertools.product(range(8, 32), repeat=len(decays))
    best = min(value(ranks) for ranks in choices if sum(ranks) <= budget)
    ranks = [layer.rank for layer in result.layers]
    assert result.compressible_after <= shared.compressible_after
    assert value(ranks) <= 1.03 * best  # alignment may cost a little
    assert all(8 <= rank < 32 for rank in ranks)


def test_equal_layers_share_equally():
    shared, found = setting([0.9, 0.9, 0.9])
    result, _ = allocate(shared, found, dict.fromkeys(found, 0.1))
    assert [layer.rank for layer in result.layers] == [16, 16, 16]


def test_a_sensitive_layer_gets_more():
    shared, found = setting([0.95, 0.95])
    result, weights = allocate(shared, found, {"0": 0.9, "1": 0.1})
    first, second = (layer.rank for layer in result.layers)
    assert first > 16 > second
    assert weights["0"] == pytest.approx(9 * weights["1"])


def test_curves_are_the_whitened_spectrum():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    inputs = [torch.randn(500, 64) * torch.linspace(0.1, 3, 64)]
    found = plan(model, method="lowrank")
    moments = second_moments(model, inputs, ["0"])
    curve = curves(model, found, moments)["0"]
    layer = factorize_layers(model, found, moments, options=LayerOptions())[0]
    assert curve.tail(layer.plan.rank) ** 0.5 == pytest.approx(layer.output_error, rel=0.02)
    assert float(curve.energy.sum()) == pytest.approx(1)
    plain = curves(model, found, None)["0"]
    assert plain.tail(16) > curve.tail(16)
    assert curve.lowest < found.layers[0].rank < curve.highest


def test_sensitivity_is_the_change_of_the_output_by_one_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    inputs = [torch.randn(100, 32)]
    layers = factorize_layers(model, plan(model, method="lowrank"), None, options=LayerOptions())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = sensitivities(model, layers, inputs)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    y = model(inputs[0])
    for index, layer in enumerate(layers):
        parts = [model[0].weight, model[1].weight]
        parts[index] = layer.operator.dense()
        change = inputs[0] @ parts[0].T @ parts[1].T - y
        expected = (change.square().sum() / y.square().sum()).item()
        assert losses[layer.plan.name] == pytest.approx(expected, rel=1e-4)


def test_methods_without_a_rank_are_refused():
    model = nn.Sequential(nn.Linear(32, 32))
    with pytest.raises(DataError, match="method='blockdiag' has none to share"):
        curves(model, plan(model, method="blockdiag"), None)
