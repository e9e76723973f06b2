"""StructuredLinear in the place of nn.Linear."""

import pytest
import torch
from torch import nn

from lowdim.algebra import Blast, Dense, Identity, LowRank, StructuredLinear, is_linear, weight_matrix
from lowdim.errors import ShapeError


def conv1d(nf: int, nx: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    return Conv1D(nf, nx)


def test_looks_like_linear():
    layer = StructuredLinear(Blast(8, 4, rank=2, blocks=2), torch.arange(4.0))
    plain = layer.densify()
    assert type(plain) is nn.Linear
    assert (layer.in_features, layer.out_features) == (plain.in_features, plain.out_features) == (8, 4)
    assert set(layer.state_dict()) == {"operator.U", "operator.S", "operator.V", "bias"}
    x = torch.randn(5, 3, 8)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.weight, plain.weight)
    assert "in_features=8, out_features=4, bias=True" in repr(layer)


def test_without_bias():
    layer = StructuredLinear(LowRank(8, 4, rank=2))
    assert layer.bias is None
    assert layer.densify().bias is None
    assert layer(torch.zeros(8)).abs().max() == 0


def test_a_structure_that_holds_the_weight_gives_the_same_layer():
    torch.manual_seed(0)
    linear = nn.Linear(12, 8)
    layer = StructuredLinear.from_linear(linear, structure=LowRank, rank=8)
    x = torch.randn(4, 12)
    torch.testing.assert_close(layer(x), linear(x), rtol=0, atol=1e-5)
    assert layer.bias is not linear.bias


def test_conv1d_stores_the_transposed_matrix():
    conv = conv1d(8, 12)
    assert is_linear(conv)
    assert weight_matrix(conv).shape == (8, 12)
    layer = StructuredLinear.from_linear(conv, structure="lowrank", rank=8)
    x = torch.randn(4, 12)
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_from_linear_keeps_the_dtype(dtype):
    torch.manual_seed(0)
    linear = nn.Linear(16, 16, dtype=dtype)
    layer = StructuredLinear.from_linear(linear, keep=0.9, blocks=2, sweeps=2)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(torch.ones(2, 16, dtype=dtype)).dtype == dtype


def test_refuses_what_is_no_plain_linear_layer():
    class Quantized(nn.Linear):
        pass

    assert not is_linear(Quantized(2, 2))
    with pytest.raises(ShapeError, match="already quantized or adapted must be made plain first"):
        weight_matrix(Quantized(2, 2))
    with pytest.raises(ShapeError, match=r"bias must have shape \(4,\), got \(3,\)"):
        StructuredLinear(Dense(2, 4), torch.zeros(3))


def test_weight_of_a_structured_layer_is_differentiable():
    layer = StructuredLinear(Blast(8, 4, rank=2, blocks=2))
    weight_matrix(layer).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("tokens", [2, 200])
@pytest.mark.parametrize(
    "operator",
    [
        lambda: Blast(12, 8, rank=3, blocks=(4, 2), dtype=torch.float64),
        lambda: Blast(11, 7, rank=3, blocks=(4, 2), pad=True, dtype=torch.float64),
        lambda: LowRank(12, 8, rank=3, dtype=torch.float64),
        lambda: Dense(12, 8, dtype=torch.float64),
        lambda: 2 * Dense(12, 8, dtype=torch.float64),
    ],
)
def test_the_bias_is_a_sum_with_and_without_gradients(operator, tokens):
    A = operator()
    layer = StructuredLinear(A, torch.arange(A.out_features, dtype=torch.float64))
    x = torch.randn(tokens, A.in_features, dtype=torch.float64)
    expected = x @ A.dense().mT + torch.arange(A.out_features)
    torch.testing.assert_close(layer(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full_like(layer.bias, tokens))


def test_the_bias_is_never_added_to_the_input_or_a_weight():
    x, bias = torch.randn(3, 4), torch.ones(4)
    layer = StructuredLinear(Identity(4), bias)
    before = x.clone()
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(x, before)
    assert torch.equal(y, before + 1)
    dense = StructuredLinear(LowRank(4, 4, rank=2), bias)
    with torch.no_grad():
        assert torch.allclose(dense(x), dense(x.clone().requires_grad_()), atol=1e-6)
        assert torch.equal(dense(x), dense(x))
