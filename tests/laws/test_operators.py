"""What every Operator must obey: the laws of a linear map and of a module that is saved."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from lowdim.algebra import Operator, StructuredLinear

# The tests are no package, so that the table is read from the file beside this one.
_spec = importlib.util.spec_from_file_location(
    "operators_table", Path(__file__).with_name("operators_table.py")
)
assert _spec is not None
assert _spec.loader is not None
_table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_table)
OPERATORS = _table.OPERATORS


@pytest.fixture(params=list(OPERATORS), name="operator")
def build(request: pytest.FixtureRequest) -> Operator:
    torch.manual_seed(0)
    return OPERATORS[request.param]()


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * (1 + b.abs().max()))


def test_is_linear(operator):
    x, y = draw(3, operator.in_features), draw(3, operator.in_features, seed=2)
    assert close(operator(2.0 * x - 0.3 * y), 2.0 * operator(x) - 0.3 * operator(y))


def test_adjoint_moves_across_the_inner_product(operator):
    x, y = draw(operator.in_features), draw(operator.out_features, seed=2)
    assert close(operator(x) @ y, x @ operator.adjoint()(y))
    assert (operator.adjoint().in_features, operator.adjoint().out_features) == (
        operator.out_features,
        operator.in_features,
    )
    assert close(operator.adjoint().adjoint().dense().double(), operator.dense().double())


def test_adjoint_shares_parameters(operator):
    before = {id(p) for p in operator.parameters()}
    assert {id(p) for p in operator.adjoint().parameters()} == before


def test_default_adjoint_agrees(operator):
    y = draw(4, operator.out_features)
    assert close(Operator.adjoint_forward(operator, y), operator.adjoint_forward(y))


# Token counts on both sides of every threshold of the Blast product.
@pytest.mark.parametrize("tokens", [0, 1, 2, 15, 16, 40, 130])
def test_agrees_with_its_dense_matrix(operator, tokens):
    x = draw(tokens, operator.in_features)
    matrix = operator.dense().double()
    assert matrix.shape == (operator.out_features, operator.in_features)
    y = operator(x)
    assert y.shape == (tokens, operator.out_features)
    if tokens:
        assert close(y, x @ matrix.mT)
        assert close(operator.adjoint()(y), y @ matrix)


def test_dense_is_the_image_of_the_unit_vectors(operator):
    assert close(operator.dense().double(), operator(torch.eye(operator.in_features, dtype=torch.float64)).mT)


def test_a_batch_equals_a_loop(operator):
    x = draw(2, 3, operator.in_features)
    y = operator(x)
    assert y.shape == (2, 3, operator.out_features)
    assert close(y, torch.stack([torch.stack([operator(v) for v in row]) for row in x]))
    strided = draw(operator.in_features, 20).mT
    assert close(operator(strided), operator(strided.contiguous()))


def test_output_is_contiguous_like_that_of_linear(operator):
    assert operator(draw(2, 40, operator.in_features)).is_contiguous()


def test_cost_counts_the_parameters(operator):
    cost = operator.cost()
    assert cost.parameters == sum(p.numel() for p in operator.parameters())
    assert cost.bytes == 8 * cost.parameters
    # One multiply-add per stored number; sums and multiples add at most one operation per output and term.
    assert 2 * cost.parameters <= cost.flops <= 2 * cost.parameters + 4 * operator.out_features


def test_state_dict_and_config_rebuild_it(operator):
    config = json.loads(json.dumps(operator.config()))
    twin = Operator.from_config(config, dtype=torch.float64)
    assert type(twin) is type(operator)
    twin.load_state_dict(operator.state_dict())
    x = draw(3, operator.in_features)
    assert torch.equal(twin(x), operator(x))
    assert twin.config() == operator.config()
    assert {k: p.requires_grad for k, p in twin.named_parameters()} == {
        k: p.requires_grad for k, p in operator.named_parameters()
    }


def test_config_builds_on_the_meta_device(operator):
    expected = {name: value.shape for name, value in operator.state_dict().items()}
    for twin in (Operator.from_config(operator.config(), device="meta"), _under_meta(operator.config())):
        assert {name: value.shape for name, value in twin.state_dict().items()} == expected
        assert all(value.is_meta for value in twin.state_dict().values())


def _under_meta(config):
    with torch.device("meta"):
        return Operator.from_config(config)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)]
)
@pytest.mark.parametrize("tokens", [2, 40])
def test_keeps_the_dtype(operator, dtype, tolerance, tokens):
    x = draw(tokens, operator.in_features).to(dtype)
    low = copy.deepcopy(operator).to(dtype)
    y = low(x)
    assert y.dtype == dtype
    assert close(y.double(), operator(x.double()), tolerance * operator.in_features**0.5)


def test_a_layer_under_autocast_is_in_half_precision_like_linear(operator):
    operator = operator.float()
    layer = StructuredLinear(operator, torch.arange(operator.out_features, dtype=torch.float32))
    x = draw(40, operator.in_features).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, like = layer(x), layer.densify()(x)
    mixed = any(p.ndim > 1 for p in operator.parameters())  # the identity has no product to take part in
    assert y.dtype == (like.dtype if mixed else torch.float32)
    assert close(y.double(), like.double(), 0.1 * operator.in_features**0.5)


@pytest.mark.parametrize("tokens", [2, 40])
def test_gradients_are_right(operator, tokens):
    # 40 tokens of a tiny slice: enough for the other order of the product, few enough for finite differences.
    names = [name for name, p in operator.named_parameters() if p.requires_grad]
    x = draw(tokens, operator.in_features).requires_grad_()
    weights = draw(tokens, operator.out_features, seed=3)

    def loss(x, *values):
        y = torch.func.functional_call(operator, dict(zip(names, values, strict=True)), (x,))
        return (y * weights).sum()

    values = [dict(operator.named_parameters())[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, (x, *values), fast_mode=True)


def test_bad_input_is_named(operator):
    with pytest.raises(ValueError, match=rf"_features={operator.in_features}, got a tensor of shape"):
        operator(draw(2, operator.in_features + 1))
