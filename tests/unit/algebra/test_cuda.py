"""The same numbers on a CUDA device; and the branch for accelerators, forced on the CPU."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from lowdim.algebra import Blast, BlockDiagonal, LowRank, Monarch, StructuredLinear, factorize
from lowdim.algebra import gram as gram_

# The tests are no package, so that the table of the laws is read from its file.
_spec = importlib.util.spec_from_file_location(
    "operators_table", Path(__file__).parents[2] / "laws" / "operators_table.py"
)
assert _spec is not None
assert _spec.loader is not None
_table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_table)

DEVICE = "cuda"
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none here"
)
FEW = ["dense", "lowrank", "block diagonal", "monarch", "blast", "blast padded", "adjoint", "sum", "chain"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _exact():
    """Without TensorFloat-32, whose products have three digits."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = allowed


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """An operator of the table on the CPU, and its copy on the device."""
    operator = _table.OPERATORS[name]()
    return operator, copy.deepcopy(operator).to(DEVICE)


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> bool:
    a, b = a.cpu().double(), b.cpu().double()
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * (1 + b.abs().max()))


# Token counts on both sides of every threshold of the Blast product.
@needs_cuda
@pytest.mark.parametrize("tokens", [1, 2, 16, 40, 130])
@pytest.mark.parametrize("name", FEW)
def test_products_are_those_of_the_cpu_and_of_the_dense_matrix(name, tokens):
    operator, there = pair(name)
    x = draw(tokens, operator.in_features)
    y = there(x.to(DEVICE))
    assert y.device.type == DEVICE
    assert there.dense().device.type == DEVICE
    assert close(y, operator(x))
    assert close(y, x @ there.dense().cpu().mT)


@needs_cuda
@pytest.mark.parametrize("name", FEW)
def test_linear_with_an_adjoint_on_the_device(name):
    _, there = pair(name)
    x, z = draw(3, there.in_features).to(DEVICE), draw(3, there.in_features, seed=2).to(DEVICE)
    y = draw(3, there.out_features, seed=3).to(DEVICE)
    assert close(there(2.0 * x - 0.3 * z), 2.0 * there(x) - 0.3 * there(z))
    assert close((there(x) * y).sum(), (x * there.adjoint()(y)).sum())


@needs_cuda
@pytest.mark.parametrize("name", FEW)
def test_gradients_are_those_of_the_cpu(name):
    operator, there = pair(name)
    x, weights = draw(40, operator.in_features), draw(40, operator.out_features, seed=3)
    here = [x.clone().requires_grad_(), *(p for p in operator.parameters() if p.requires_grad)]
    other = [x.to(DEVICE).requires_grad_(), *(p for p in there.parameters() if p.requires_grad)]
    first = torch.autograd.grad((operator(here[0]) * weights).sum(), here)
    second = torch.autograd.grad((there(other[0]) * weights.to(DEVICE)).sum(), other)
    assert all(close(b, a) for a, b in zip(first, second, strict=True))


@needs_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_layer_keeps_the_dtype_on_the_device(dtype, tolerance, tokens):
    layer = StructuredLinear(Blast(64, 32, rank=8, blocks=(4, 2)), nn.Parameter(torch.randn(32))).double()
    x = draw(tokens, 64)
    y = copy.deepcopy(layer).to(DEVICE, dtype)(x.to(DEVICE, dtype))
    assert (y.dtype, y.device.type) == (dtype, DEVICE)
    assert close(y, layer(x), 8 * tolerance)


STRUCTURES = [
    (LowRank, {"rank": 6}),
    (BlockDiagonal, {"keep": 1.0, "blocks": 4}),
    (Monarch, {"rank": 2, "blocks": (4, 2), "sweeps": 4}),
    (Blast, {"rank": 6, "blocks": (4, 2), "sweeps": 6}),
]


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x = draw(400, 32, seed=5) @ torch.diag(torch.linspace(0.2, 2, 32, dtype=torch.float64))
    return draw(24, 32).to(dtype), (x.mT @ x / len(x)).to(dtype)


@needs_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize(("structure", "options"), STRUCTURES)
def test_factorize_agrees_with_the_cpu(structure, options, aware, dtype, tolerance):
    A, H = problem(dtype)
    here = factorize(A, structure, second_moment=H if aware else None, seed=0, **options)
    there = factorize(
        A.to(DEVICE), structure, second_moment=H.to(DEVICE) if aware else None, seed=0, **options
    )
    assert {p.device.type for p in there.operator.parameters()} == {DEVICE}
    # Singular vectors come with either sign, so the products are compared and not the factors.
    assert close(there.operator.dense(), here.operator.dense(), tolerance)
    assert there.history.residual[-1] == pytest.approx(here.history.residual[-1], rel=10 * tolerance)


@needs_cuda
@pytest.mark.parametrize("extra", [{}, {"sequential": True}, {"recover_steps": 3}])
def test_compress_on_the_device_agrees_with_the_cpu(extra, tmp_path):
    from lowdim.compress import CompressResult, compress

    net = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48))
    inputs = [draw(200, 48, seed=seed).float() for seed in (1, 2)]
    options = {"keep": 0.5, "blocks": 4, "sweeps": 4, "calibration": inputs, **extra}
    here = compress(net, device="cpu", **options)
    there = compress(copy.deepcopy(net), device=DEVICE, output=tmp_path / "out", **options)
    assert {p.device.type for p in there.model.parameters()} == {DEVICE}
    assert there.report["device"].startswith(DEVICE)
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    error = [result.report["quality"]["relative_error"] for result in (here, there)]
    assert error[1] == pytest.approx(error[0], rel=0.02)
    for a, b in zip(here.report["layers"], there.report["layers"], strict=True):
        assert b["output_error"] == pytest.approx(a["output_error"], rel=0.02)
    again = CompressResult.load(tmp_path / "out", model=copy.deepcopy(net).cpu())
    x = inputs[0]
    with torch.no_grad():
        assert close(again.model(x), there.model(x.to(DEVICE)), 1e-4)


class Elsewhere(torch.Tensor):
    """A matrix on the CPU that says it lies elsewhere; whatever is computed from it is an ordinary tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self):
        return torch.device("meta")


@pytest.fixture(params=["float32", "float64"])
def systems(request):
    """Five Gram matrices with right-hand sides: the second is indefinite, the fourth zero."""
    dtype = getattr(torch, request.param)
    factors = draw(5, 12, 8)
    gram = factors.mT @ factors + 0.1 * torch.eye(8)
    gram[1] -= 8 * torch.eye(8)
    gram[3] = 0
    return gram.to(dtype), draw(5, 8, 3, seed=2).to(dtype)


@pytest.fixture
def _no_lapack(monkeypatch):
    """The calls of the CPU branch fail, so that a test of the other branch cannot pass by it."""

    def forbidden(*args, **kwargs):
        raise AssertionError("the CPU branch ran")

    monkeypatch.setattr(gram_, "dposv", forbidden)
    monkeypatch.setattr(gram_, "sposv", forbidden)


def elsewhere(gram: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return gram_._cholesky_solve(gram.as_subclass(Elsewhere), right)


@pytest.mark.usefixtures("_no_lapack")
def test_the_branch_for_accelerators_solves(systems):
    gram, right = systems
    found = elsewhere(gram, right)
    assert type(found) is torch.Tensor
    tolerance = 1e-10 if gram.dtype == torch.float64 else 1e-4
    for index in (0, 2, 4):
        assert close(gram[index] @ found[index], right[index], tolerance)
    # What Cholesky cannot do goes to the careful solver, and only that.
    for index in (1, 3):
        assert torch.equal(found[index], gram_._careful_solve(gram[index], right[index]))
    assert bool(torch.isfinite(found).all())


def test_both_branches_agree(systems):
    gram, right = systems
    tolerance = 1e-10 if gram.dtype == torch.float64 else 1e-4
    assert close(elsewhere(gram.clone(), right), gram_._cholesky_solve(gram.clone(), right), tolerance)


@pytest.mark.usefixtures("_no_lapack")
def test_the_branch_for_accelerators_passes_on_what_is_not_finite(systems):
    gram, right = systems
    gram[0, 2, 2] = float("nan")
    right[2, 1, 1] = float("inf")
    found = elsewhere(gram, right)
    assert bool(found[0].isnan().all())
    assert not bool(found[2].isfinite().all())
    assert bool(torch.isfinite(found[4]).all())


@pytest.mark.parametrize("aware", [False, True])
def test_factorize_by_the_branch_for_accelerators_agrees(aware, monkeypatch):
    A, H = problem(torch.float64)
    options = {"rank": 6, "blocks": (4, 2), "sweeps": 6, "second_moment": H if aware else None, "seed": 0}
    here = factorize(A, Blast, **options)
    calls = []
    original = gram_._cholesky_solve

    def other(gram: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        calls.append(len(gram))
        return original(gram.as_subclass(Elsewhere), right)

    monkeypatch.setattr(gram_, "_cholesky_solve", other)
    there = factorize(A, Blast, **options)
    assert calls
    assert close(there.operator.dense(), here.operator.dense(), 1e-6)
