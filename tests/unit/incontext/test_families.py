"""Families: labels of unit variance, kernels and linear shares that are what sampling finds."""

import math

import pytest
import torch

from lowdim.errors import DataError
from lowdim.incontext import Linear, RandomFeatures, ReluNetwork, SingleIndex, SubspaceTasks
from lowdim.incontext.families import LINKS, make_family

FAMILIES = [
    Linear(),
    Linear("sphere"),
    ReluNetwork(width=8),
    *(SingleIndex(link) for link in LINKS),
    RandomFeatures(count=8),
    RandomFeatures(count=8, scale=2.0),
]
COUNT = 40000


def drawn(family, r, x, *, seed=0):
    """Labels (COUNT, m) of fixed inputs x (m, r), one function per row, in a subspace of all r dimensions."""
    bases = torch.eye(r, dtype=torch.float64).expand(COUNT, -1, -1)
    return family.draw(bases, seed=seed)(x.expand(COUNT, -1, -1))


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_the_kernel_is_the_second_moment_of_labels(family, r):
    x = torch.randn(4, r, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = drawn(family, r, x)
    products = y.unsqueeze(-1) * y.unsqueeze(-2)
    measured, error = products.mean(0), products.std(0) / COUNT**0.5
    kernel = family.kernel(x[None], x[None])[0]
    # The kernel of single-index functions is itself a mean over 1024 directions.
    slack = 4 * error + (0.15 * kernel.abs().max() if isinstance(family, SingleIndex) and r > 1 else 1e-9)
    assert bool(((measured - kernel).abs() <= slack).all())


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_variance_and_linear_share(family):
    r = 2
    tasks = SubspaceTasks(5, r=r, family=family, seed=0)
    prompt = tasks.sample(COUNT, n=1, seed=0)
    squares = prompt.yq.square()
    error = float(squares.std()) / COUNT**0.5
    assert float(squares.mean()) == pytest.approx(tasks.variance, abs=4 * error)
    # |E_x f(x) x|^2 over the variance: products over two inputs of one function need no bias correction.
    products = prompt.yq * prompt.clean[:, 0] * (prompt.xq * prompt.X[:, 0]).sum(-1) / tasks.variance
    error = float(products.std()) / COUNT**0.5
    assert float(products.mean()) == pytest.approx(family.linear_share(r), abs=4 * error)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_labels_depend_on_the_subspace_only(family):
    tasks = SubspaceTasks(6, r=2, seed=0)
    label = family.draw(tasks.bases, seed=0)
    x = torch.randn(1, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = x @ tasks.bases[0] @ tasks.bases[0].mT
    torch.testing.assert_close(label(x), label(inside))
    assert float(label(x).std()) > 0


@pytest.mark.parametrize("link", LINKS)
def test_links_are_centered_and_scaled(link):
    s = torch.randn(10**6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = SingleIndex(link).g(s)
    assert float(values.mean()) == pytest.approx(0, abs=0.005)
    assert float(values.var()) == pytest.approx(1, abs=0.03)


def test_known_shares():
    assert SingleIndex("quadratic").linear_share(3) == pytest.approx(0, abs=1e-12)
    assert SingleIndex("cubic").linear_share(3) == pytest.approx(0, abs=1e-12)
    # relu has the linear part s / 2 and variance 1/2 - 1/(2 pi).
    assert SingleIndex("relu").linear_share(3) == pytest.approx(0.25 / (0.5 - 0.5 / math.pi), rel=0.01)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Linear("cube"), "vectors='cube'"),
        (lambda: ReluNetwork(width=0), "width=0"),
        (lambda: SingleIndex("square"), "link='square' is unknown. Use one of tanh"),
        (lambda: RandomFeatures(count=-1), "count=-1"),
        (lambda: RandomFeatures(scale=0), "scale=0"),
        (lambda: make_family("deep"), "family='deep' is unknown. Use one of linear"),
    ],
)
def test_bad_families_are_refused(make, text):
    with pytest.raises(DataError, match=text):
        make()
