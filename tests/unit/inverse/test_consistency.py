import pytest
import torch

from lowdim.errors import DataError, Diverged, LowdimWarning
from lowdim.inverse import CircularBlur, Inpainting, Pooling, Problem, as_operator, gaussian_kernel
from lowdim.inverse.consistency import (
    adam,
    gauss_newton,
    norm_squared,
    prox,
    pseudo_inverse,
    sgd,
    solver_for,
    warn_unmet,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blurred(sigma=0.05, batch=3):
    operator, x = CircularBlur(gaussian_kernel(0.8)), noise(batch, 1, 12, 12)
    return Problem.of(operator.measure(x, sigma=sigma, seed=0), operator, sigma=sigma), x


def hidden_closed_form(problem):
    """The same problem for an operator that has no closed form."""
    A = problem.operator
    operator = as_operator(A.A, adjoint=A.A_adjoint, image_shape=problem.shape[1:])
    return Problem.of(problem.y, operator, sigma=problem.sigma)


@pytest.mark.parametrize("rho", [1e-2, 1.0])
def test_conjugate_gradients_find_the_closed_form(rho):
    problem, _ = blurred()
    z = noise(3, 1, 12, 12, seed=5)
    found = prox(hidden_closed_form(problem), z, rho=rho, tol=1e-6, max_iter=400)
    torch.testing.assert_close(found.x, prox(problem, z, rho=rho).x, rtol=0, atol=1e-4)
    assert int(found.iterations.min()) > 0
    assert int(prox(problem, z, rho=rho).iterations.max()) == 0


def test_the_norm_is_found_by_power_iteration():
    problem = Problem.of(noise(2, 1, 3, 3), Pooling(2), sigma=0.1)
    assert norm_squared(problem) == pytest.approx(0.25, rel=1e-4)


def test_the_pseudo_inverse_of_pooling_repeats_pixels():
    y = noise(2, 1, 3, 3)
    found = pseudo_inverse(Problem.of(y, Pooling(2)))
    torch.testing.assert_close(found, y.repeat_interleave(2, -1).repeat_interleave(2, -2), rtol=0, atol=1e-4)


def test_gradient_steps_end_at_least_squares():
    problem, x = blurred(sigma=0.0)
    found = sgd(problem, torch.zeros_like(x), max_iter=300, tau=None)
    assert float(problem.misfit(found.x).max()) < 1e-3 * float(problem.misfit(0 * x).min())


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_an_image_stops_at_its_own_noise_and_stands_still(method):
    problem, x = blurred(sigma=0.2)
    start = torch.stack([x[0], 0 * x[1], 0 * x[2]])  # the first explains its data already
    run = {"sgd": sgd, "adam": adam}[method]
    found = run(problem, start, tau=1.1)
    assert float(problem.residual(found.x).max()) <= 1.1**2
    assert int(found.iterations[0]) == 0
    assert torch.equal(found.x[0], start[0])
    assert int(found.iterations[1:].min()) > 0


def test_a_step_that_is_too_long_is_told_with_the_norm():
    problem, x = blurred()
    with pytest.raises(Diverged, match=r"with \|\|A\|\|\^2 = 0\.99"):
        sgd(problem, torch.zeros_like(x), step=5.0, max_iter=50)


def test_gauss_newton_is_the_proximal_map_of_a_linear_operator():
    problem, _ = blurred()
    z = noise(3, 1, 12, 12, seed=5)
    found = gauss_newton(problem, z, rho=0.1, inner=40, tau=None, max_iter=3)
    torch.testing.assert_close(found.x, prox(problem, z, rho=0.1).x, rtol=0, atol=2e-3)


def test_gauss_newton_meets_data_of_a_nonlinear_operator():
    inner = CircularBlur(gaussian_kernel(0.6))
    operator = as_operator(lambda x: (1.5 * inner.A(x)).tanh(), image_shape=(1, 12, 12))
    x = 0.3 * noise(3, 1, 12, 12)
    problem = Problem.of(operator.measure(x, sigma=0.01, seed=0), operator, sigma=0.01)
    newton, slow = gauss_newton(problem, 0 * x, rho=1e-4), adam(problem, 0 * x, max_iter=300)
    assert float(problem.residual(newton.x).max()) <= 1.5
    assert float(problem.residual(slow.x).max()) <= 1.5


def test_an_operator_without_gradient_is_told():
    operator = as_operator(lambda x: x.round(), image_shape=(1, 4, 4))
    problem = Problem.of(torch.ones(1, 1, 4, 4), operator, sigma=0.1)
    with pytest.raises(DataError, match="rounds or thresholds"):
        adam(problem, torch.zeros(1, 1, 4, 4))
    detached = as_operator(lambda x: x.detach() * 2, image_shape=(1, 4, 4))
    problem = Problem.of(torch.ones(1, 1, 4, 4), detached, sigma=0.1)
    with pytest.raises(DataError, match=r"without \.detach"):
        adam(problem, torch.zeros(1, 1, 4, 4))


def test_solvers_that_do_not_fit_are_refused():
    curved = Problem.of(torch.ones(1, 1, 4, 4), as_operator(torch.tanh, image_shape=(1, 4, 4)), sigma=0.1)
    for method in (lambda: prox(curved, curved.y, rho=1.0), lambda: sgd(curved, curved.y)):
        with pytest.raises(DataError, match="for linear operators"):
            method()
    with pytest.raises(DataError, match="no pseudo-inverse"):
        pseudo_inverse(curved)
    assert solver_for(curved, "auto") == "adam"
    flat = Problem.of(torch.ones(1, 1, 4, 4), Inpainting(torch.ones(4, 4)))
    with pytest.raises(DataError, match="Give sigma="):
        solver_for(flat, "auto")
    with pytest.raises(DataError, match="'lbfgs' is unknown"):
        solver_for(flat, "lbfgs")
    with pytest.raises(DataError, match="rho=0"):
        prox(flat, flat.y, rho=0)


def test_unmet_data_are_warned_of():
    problem = Problem.of(torch.ones(2, 1, 4, 4), Inpainting(torch.ones(4, 4)), sigma=0.1)
    with pytest.warns(LowdimWarning, match="1 of 2 images do not meet their data"):
        warn_unmet(problem, torch.tensor([1.0, 50.0]))


def test_adam_does_not_follow_rounding_where_there_is_no_gradient():
    """A pixel that fits but for rounding, beside others that do not: its step is as small as its gradient."""
    x = torch.zeros(2, 1, 2, 2)
    y = torch.ones(2, 1, 2, 2)
    y[:, 0, 0, 0] = torch.tensor([1e-7, -1e-7])
    problem = Problem.of(y, Inpainting(torch.ones(2, 2)), sigma=0.1)
    found = adam(problem, x, max_iter=1, lr=0.02).x
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 0, 1, 1], torch.full((2,), 0.02), atol=1e-4, rtol=0)
