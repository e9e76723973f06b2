"""Sketches of parameters: linear, unbiased, equal everywhere, and true to small changes."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lowdim.dynamics.oscillation import alternation
from lowdim.dynamics.sketch import ParameterSketch
from lowdim.errors import DataError


def parameters(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


SHAPES = ((300, 200), (7,), (64, 3, 5, 5), (1000, 128), (1,))


def fill(params, values):
    for parameter, value in zip(params, values, strict=True):
        parameter.data.copy_(value)


def inner(x, y):
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(x, y, strict=True))


def test_small_models_are_sketched_exactly():
    params = parameters((20, 10), (10,), (3, 5), dtype=torch.float64)
    sketch = ParameterSketch(params, width=256)()
    flat = nn.utils.parameters_to_vector(params)
    assert torch.equal(sketch[: len(flat)].abs().sort().values, flat.abs().sort().values.detach())
    assert not sketch[len(flat) :].any()


def test_linear():
    params = parameters(*SHAPES, dtype=torch.float64)
    x = [p.detach().clone() for p in params]
    y = [torch.randn_like(p) for p in x]
    sketch = ParameterSketch(params)
    at_x = sketch()
    fill(params, y)
    at_y = sketch()
    fill(params, [2 * a - 3 * b for a, b in zip(x, y, strict=True)])
    assert torch.allclose(sketch(), 2 * at_x - 3 * at_y, atol=1e-10)


def test_inner_products_are_kept_on_average():
    params = parameters(*SHAPES)
    # Steps of rank one, aligned with the rows: the worst case for signs that rows share.
    x = [
        torch.ones_like(p) * (torch.arange(p.shape[0]) + 1.0).reshape(-1, *[1] * (p.ndim - 1)) for p in params
    ]
    y = [a + torch.randn(a.shape, generator=torch.Generator().manual_seed(1)) * 300 for a in x]
    errors = []
    for seed in range(40):
        sketch = ParameterSketch(params, seed=seed)
        fill(params, x)
        at_x = sketch()
        fill(params, y)
        at_y = sketch()
        scale = (inner(x, x) * inner(y, y)) ** 0.5
        errors.append((float(at_x @ at_y) - inner(x, y)) / scale)
    errors = torch.tensor(errors)
    assert abs(float(errors.mean())) < 0.03
    assert float(errors.square().mean().sqrt()) < 0.12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_steps_are_seen(dtype):
    params = parameters((400, 500), (300, 1000), dtype=dtype)
    start = [p.detach().clone() for p in params]
    sketch = ParameterSketch(params)
    # The smallest step that is not taken for rest in float32; one that bfloat16 can represent.
    size = 4e-6 if dtype == torch.float32 else 0.02
    states = []
    for step in range(5):
        fill(params, [p + (size * p.roll(1, 0) if step % 2 else 0) for p in start])
        states.append(sketch())
    scores = alternation(torch.stack(states), still=sketch.still)
    assert float((scores - 1).abs().max()) < 0.02


def test_a_real_training_looks_the_same_in_sketches():
    """Digits, a small network, full batches at lr 0.2: the alternation flips its sign at the edge."""
    digits = load_digits()
    x = torch.tensor(digits.data[:300] / 16 - 0.3, dtype=torch.float32)
    y = nn.functional.one_hot(torch.tensor(digits.target[:300]), 10).float()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    sketch = ParameterSketch(net.parameters())
    states, sketches = [], []
    for _ in range(450):
        optimizer.zero_grad()
        (0.5 * (net(x) - y).square().sum(1).mean()).backward()
        optimizer.step()
        states.append(nn.utils.parameters_to_vector(net.parameters()).detach())
        sketches.append(sketch())
    exact = alternation(torch.stack(states)).unfold(0, 16, 1).mean(1)
    found = alternation(torch.stack(sketches), still=sketch.still).unfold(0, 16, 1).mean(1)
    assert float((found - exact).abs().max()) < 0.05
    assert float(found[:230].max()) < -0.9
    assert float(found[400:].min()) > 0.8


def test_lower_precision_of_products_is_not_used():
    params = parameters((200, 300), (999,))
    sketch = ParameterSketch(params)
    expected = sketch()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = sketch()
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.allclose(found, expected, atol=1e-3)
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_same_signs_in_every_process_and_layout():
    params = parameters((80, 70, 3, 3), (500,))
    again = [nn.Parameter(p.detach().clone()) for p in params]
    first = ParameterSketch(params)
    assert torch.equal(first(), ParameterSketch(again)())
    assert not torch.equal(first(), ParameterSketch(again, seed=1)())
    # Transposed in memory: the numbers are read in the order of the indices.
    again[0].data = again[0].data.to(memory_format=torch.channels_last)
    assert torch.equal(first(), ParameterSketch(again)())


def test_follows_parameters_that_are_replaced():
    params = parameters((90, 800))
    sketch = ParameterSketch(params)
    before = sketch()
    params[0].data = params[0].data * 2
    assert torch.equal(sketch(), 2 * before)
    params[0].data = params[0].data.double()
    assert torch.allclose(sketch(), 2 * before, rtol=1e-4, atol=1e-3)


def test_refusals():
    with pytest.raises(DataError, match="no floating-point"):
        ParameterSketch([torch.zeros(3, dtype=torch.int64)])
    with pytest.raises(DataError, match="width"):
        ParameterSketch(parameters((3, 3)), width=0)
