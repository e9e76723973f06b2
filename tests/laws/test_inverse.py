"""Laws of inverse problems: adjoints, proximal maps, and what an image may not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.algebra.seeds import gaussian
from lowdim.inverse import (
    DCDP,
    DPS,
    BlurDecimation,
    CircularBlur,
    GMMPrior,
    Inpainting,
    Pooling,
    Problem,
    as_operator,
    gaussian_kernel,
    prox,
)

SEEDS = st.integers(0, 2**16)
SHAPE = (1, 8, 8)

OPERATORS = {
    "inpainting": lambda: Inpainting.random((8, 8), missing=0.5, seed=0),
    "inpainting by image": lambda: Inpainting.random((3, 1, 8, 8), missing=0.5, seed=0),
    "blur": lambda: CircularBlur(gaussian_kernel(1.0)),
    "odd blur": lambda: CircularBlur(gaussian((3, 4), seed=0)),
    "pooling": lambda: Pooling(2),
    "decimation": lambda: BlurDecimation(gaussian_kernel(0.8), 2),
    "odd decimation": lambda: BlurDecimation(gaussian((4, 3), seed=0), 4),
    "function": lambda: as_operator(lambda x: x[..., 1:] - x[..., :-1], linear=True, image_shape=SHAPE),
    "complex function": lambda: as_operator(
        lambda x: torch.fft.fft2(x)[..., :3], linear=True, image_shape=SHAPE
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_adjoint_is_the_adjoint(name, seed):
    operator = OPERATORS[name]()
    x = gaussian((3, *SHAPE), seed=seed, dtype=torch.float64)
    Ax = operator.A(x)
    v = gaussian(Ax.shape, seed=seed + 1, dtype=Ax.dtype)
    torch.testing.assert_close((Ax.conj() * v).real.sum(), (x * operator.A_adjoint(v)).sum())


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, rho=st.sampled_from([1e-3, 0.1, 10.0]))
def test_the_gradient_vanishes_at_the_proximal_map(name, seed, rho):
    operator = OPERATORS[name]()
    x, z = (gaussian((3, *SHAPE), seed=seed + k, dtype=torch.float64) for k in range(2))
    problem = Problem.of(operator.A(x), operator, sigma=0.1)
    v = prox(problem, z, rho=rho, tol=1e-12, max_iter=500).x
    gradient = operator.A_adjoint(operator.A(v) - problem.y) + rho * (v - z)
    assert float(gradient.abs().max()) < 1e-7


def prior():
    x = torch.cumsum(gaussian((800, *SHAPE), seed=0), -1)
    return GMMPrior.fit(0.5 * x / x.std(), components=3, max_iter=5)


PRIOR = prior()

SOLVERS = {
    "dcdp": lambda: DCDP(PRIOR, steps=8),
    "dcdp without noise": lambda: DCDP.without_noise(PRIOR, steps=8),
    "dcdp by ddim": lambda: DCDP(PRIOR, steps=4, purify="ddim", ddim_steps=3),
    "dcdp by sgd": lambda: DCDP(PRIOR, steps=4, solver="sgd"),
    "dcdp by adam": lambda: DCDP(PRIOR, steps=4, solver="adam", max_iter=30),
    "dcdp by gn": lambda: DCDP(PRIOR, steps=4, solver="gn"),
    "mean of two": lambda: DCDP(PRIOR, steps=4, average=2),
    "dps": lambda: DPS(PRIOR, steps=20),
}


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS, kind=st.sampled_from(["inpainting", "blur", "decimation", "function"]))
def test_an_image_does_not_depend_on_its_batch(name, seed, kind):
    operator, solver = OPERATORS[kind](), SOLVERS[name]()
    x = PRIOR.sample(8, seed=seed)
    y = operator.measure(x, sigma=0.1, seed=seed)
    together = solver(y, operator, sigma=0.1, seed=seed)
    alone = [solver(y[b : b + 1], operator, sigma=0.1, seed=[seed + b]) for b in (0, 3, 7)]
    for b, one in zip((0, 3, 7), alone, strict=True):
        assert float((together.image[b] - one.image[0]).abs().max()) < 1e-4
        assert float((together.residual[b] - one.residual[0]).abs()) < 1e-2
        # The last of many inner steps may be one of rounding.
        slack = 8 if name == "dcdp by gn" else 0
        assert abs(int(together.iterations[b]) - int(one.iterations[0])) <= slack


@pytest.mark.parametrize("name", ["dcdp", "dcdp without noise", "dps"])
def test_double_precision_finds_nearly_the_same(name):
    operator, solver = OPERATORS["decimation"](), SOLVERS[name]()
    y = operator.measure(PRIOR.sample(4, seed=0), sigma=0.1, seed=0)
    one = DCDP.without_noise(PRIOR)(y, operator, sigma=0.1).image
    assert one.dtype == torch.float32
    if name == "dcdp without noise":  # other numbers are drawn in double precision
        two = solver(y.double(), operator, sigma=0.1).image
        assert two.dtype == torch.float64
        torch.testing.assert_close(solver(y, operator, sigma=0.1).image.double(), two, rtol=0, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["dcdp", "dcdp without noise", "dps"])
def test_a_gpu_finds_the_same(name):
    operator, solver = OPERATORS["blur"](), SOLVERS[name]()
    y = operator.measure(PRIOR.sample(4, seed=0), sigma=0.1, seed=0)
    here = solver(y, operator, sigma=0.1, seed=0).image
    try:
        PRIOR.to("cuda")
        there = SOLVERS[name]()(y, operator, sigma=0.1, seed=0).image.cpu()
    finally:
        PRIOR.to("cpu")
    assert float((here - there).abs().max()) < 1e-3
