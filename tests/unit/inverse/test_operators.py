import pytest
import torch

from lowdim.algebra import Dense
from lowdim.errors import DataError, ShapeError
from lowdim.inverse import (
    BlurDecimation,
    CallablePrior,
    CircularBlur,
    Inpainting,
    Pooling,
    Problem,
    as_operator,
    gaussian_kernel,
    linear_alphas_cumprod,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_blur_is_the_sum_over_its_kernel():
    kernel = torch.tensor([[0.0, 0.1, 0.0], [0.2, 0.3, 0.25], [0.0, 0.15, 0.0]])
    x = noise(1, 1, 5, 6)
    expected = 0.3 * x + 0.1 * x.roll(-1, -2) + 0.15 * x.roll(1, -2)
    expected += 0.2 * x.roll(-1, -1) + 0.25 * x.roll(1, -1)
    # Convolution: the kernel's upper neighbor moves an image up.
    torch.testing.assert_close(CircularBlur(kernel).A(x), expected)
    torch.testing.assert_close(BlurDecimation(kernel, 1).A(x), expected)
    thinned = BlurDecimation(kernel, 2).A(noise(1, 1, 6, 6))
    torch.testing.assert_close(thinned, CircularBlur(kernel).A(noise(1, 1, 6, 6))[..., ::2, ::2])


def test_a_kernel_sums_to_one():
    assert float(gaussian_kernel(2.0).sum()) == pytest.approx(1)
    with pytest.raises(DataError, match="odd"):
        gaussian_kernel(2.0, size=4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Inpainting(torch.full((4, 4), 0.5)), DataError, "zeros and some ones"),
        (lambda: Inpainting(torch.zeros(4, 4)), DataError, "some ones"),
        (lambda: Inpainting.random((4, 4), missing=1.0), DataError, r"\[0, 1\)"),
        (lambda: Inpainting(torch.ones(4, 4)).A(torch.ones(1, 1, 5, 5)), ShapeError, "does not fit"),
        (lambda: CircularBlur(torch.zeros(3, 3)), DataError, "not all 0"),
        (lambda: CircularBlur(torch.ones(9, 9)).A(torch.ones(1, 1, 5, 5)), ShapeError, "larger than"),
        (lambda: Pooling(0), DataError, "factor=0"),
        (lambda: Pooling(3).A(torch.ones(1, 1, 4, 4)), ShapeError, "multiples of 3"),
        (lambda: Pooling(2, value_range=(1, 0)), DataError, "value_range"),
        (lambda: as_operator(3), DataError, "cannot measure with a int"),
        (lambda: as_operator(Dense(9, 4), image_shape=(1, 2, 2)), ShapeError, "takes 9 numbers"),
    ],
)
def test_impossible_operators_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_operator_of_lowdim_acts_on_flat_images():
    A = Dense.from_matrix(noise(5, 9))
    operator = as_operator(A, image_shape=(1, 3, 3))
    x = noise(2, 1, 3, 3)
    torch.testing.assert_close(operator.A(x), x.flatten(1) @ A.weight.mT)
    torch.testing.assert_close(operator.A_adjoint(operator.A(x)).flatten(1), operator.A(x) @ A.weight)


def test_noise_is_added_where_something_is_measured():
    mask = Inpainting.random((64, 64), missing=0.5, seed=0)
    y = mask.measure(torch.zeros(2, 1, 64, 64), sigma=0.1, seed=0)
    seen = mask.mask.expand_as(y)
    assert float(y[~seen].abs().max()) == 0
    assert float(y[seen].std()) == pytest.approx(0.1, rel=0.05)
    assert mask.count(y).tolist() == [float(mask.mask.sum())] * 2


def test_a_problem_moves_to_the_range_of_the_prior():
    prior = CallablePrior(lambda x, t: x, linear_alphas_cumprod())
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    linear = Pooling(2, value_range=(0, 1))
    problem = Problem.of(linear.A(x), linear, sigma=0.05, prior=prior)
    assert problem.sigma == pytest.approx(0.1)
    torch.testing.assert_close(problem.misfit(2 * x - 1), torch.zeros(2), rtol=0, atol=1e-9)
    torch.testing.assert_close(problem.to_operator(problem.from_operator(x)), x)
    curved = as_operator(lambda x: x**3, image_shape=(1, 4, 4), value_range=(0, 1))
    problem = Problem.of(curved.A(x), curved, sigma=0.05, prior=prior)
    assert problem.sigma == 0.05
    torch.testing.assert_close(problem.misfit(2 * x - 1), torch.zeros(2), rtol=0, atol=1e-9)


def test_the_residual_is_in_units_of_the_noise():
    mask = Inpainting.random((64, 64), missing=0.7, seed=0)
    x = torch.zeros(1, 1, 64, 64)
    problem = Problem.of(mask.measure(x, sigma=0.2, seed=0), mask, sigma=0.2)
    assert float(problem.residual(x)) == pytest.approx(1, abs=0.15)


class _Half:
    """A linear operator whose adjoint is wrong by a factor."""

    def A(self, x):
        return x / 2

    def A_adjoint(self, y):
        return y


@pytest.mark.parametrize(
    ("y", "operator", "options", "error", "message"),
    [
        (torch.full((1, 1, 4, 4), torch.nan), Inpainting(torch.ones(4, 4)), {}, DataError, "NaN"),
        (torch.ones(4), Inpainting(torch.ones(4, 4)), {}, ShapeError, r"y\[None\]"),
        (torch.ones(1, 1, 4, 4), Inpainting(torch.ones(4, 4)), {"sigma": -1}, DataError, "sigma=-1"),
        (torch.ones(1, 1, 4, 4), _Half(), {"sigma": 0.1}, DataError, "not the adjoint"),
        (torch.ones(1, 1, 4, 4), torch.tanh, {}, ShapeError, "size of the images is unknown"),
        (torch.ones(1, 1, 3, 3), Pooling(2), {"x_init": torch.ones(1, 1, 4, 4)}, ShapeError, "A gives"),
        (torch.ones(1, 1, 2, 2), Pooling(2), {"x_init": torch.ones(4, 4)}, ShapeError, "x_init has shape"),
        (
            torch.ones(1, 1, 2, 2),
            as_operator(lambda x: x @ torch.ones(7, 2), linear=True, image_shape=(1, 2, 2)),
            {},
            ShapeError,
            "does not take images",
        ),
    ],
)
def test_problems_that_cannot_be_are_refused(y, operator, options, error, message):
    with pytest.raises(error, match=message):
        Problem.of(y, operator, **options)


def test_an_unknown_noise_is_asked_for():
    problem = Problem.of(torch.ones(1, 1, 2, 2), Pooling(2))
    with pytest.raises(DataError, match="Give sigma="):
        problem.needed_sigma()
    assert Problem.of(torch.ones(1, 1, 2, 2), Pooling(2, noise_sigma=0.3)).sigma == 0.3


def test_an_operator_may_meet_images_of_several_sizes():
    operator = as_operator(lambda x: x[..., ::2], linear=True)
    for side in (4, 8):
        x = noise(1, 1, side, side)
        problem = Problem.of(operator.A(x), operator, sigma=0.1, x_init=x)
        assert problem.operator.A_adjoint(problem.y).shape == x.shape
    assert operator.image_shape is None
