"""Closed forms of deep linear networks against plain computations, and what they refuse."""

import math
from itertools import pairwise
from itertools import product as combinations

import pytest
import torch
from scipy.optimize import brentq

from lowdim.algebra.seeds import gaussian
from lowdim.dynamics import dln
from lowdim.errors import DataError, ShapeError

F64 = torch.float64
CASES = [(1, [3.0, 1.0]), (2, [5.0, 3.0, 0.0]), (3, [5.0, 3.0, 1.0]), (4, [2.0, 1.0, 0.0])]


def chain(layers):
    P = layers[0]
    for W in layers[1:]:
        P = W @ P
    return P


def hessian(layers, M):
    """Of 1/2 ||W_L ... W_1 - M||^2 in all weights."""
    sizes = [W.numel() for W in layers]

    def loss(flat):
        return (
            chain([p.view_as(W) for p, W in zip(flat.split(sizes), layers, strict=True)]) - M
        ).square().sum() / 2

    return torch.func.hessian(loss)(torch.cat([W.flatten() for W in layers]))


def random_layers(*widths, seed=0, batch=()):
    source = torch.Generator().manual_seed(seed)
    return [
        gaussian((*batch, after, before), seed=source, dtype=F64) / math.sqrt(before)
        for before, after in pairwise(widths)
    ]


# ----- spectra -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "s"), CASES)
def test_the_spectrum_at_the_balanced_minimum(depth, s):
    found = dln.hessian_eigenvalues(s, depth=depth)
    values = torch.linalg.eigvalsh(
        hessian(dln.balanced_layers(s, depth=depth), torch.tensor(s, dtype=F64).diag())
    )
    padded = torch.zeros_like(values)
    padded[: len(found)] = found
    torch.testing.assert_close(values.flip(0), padded, atol=1e-12, rtol=0)
    assert float(found[0]) == pytest.approx(float(dln.balanced_sharpness(s, depth=depth)[0]))


@pytest.mark.parametrize("shape", [(2, 4), (4, 2)])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_spectrum_of_wide_and_tall_targets(shape, depth):
    M = random_layers(shape[1], shape[0])[0]
    layers = dln.balanced_layers(M, depth=depth)
    torch.testing.assert_close(chain(layers), M)
    assert float(dln.balancing_gap(layers)) < 1e-12
    found = dln.hessian_eigenvalues(M, depth=depth)
    values = torch.linalg.eigvalsh(hessian(layers, M)).flip(0)
    torch.testing.assert_close(values[: len(found)], found, atol=1e-12, rtol=0)
    assert float(values[len(found) :].abs().max()) < 1e-12
    s = torch.linalg.svdvals(M)
    torch.testing.assert_close(dln.hessian_eigenvalues(s, depth=depth, shape=shape), found)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_spectrum_at_aligned_weights_that_are_no_minimum(depth):
    d = gaussian((2, depth, 3), seed=depth, dtype=F64)
    s = [3.0, 2.0, 0.0]
    found = dln.aligned_hessian_eigenvalues(d, target=s)
    for one, factors in zip(found, d, strict=True):
        dense = hessian([f.diag() for f in factors], torch.tensor(s, dtype=F64).diag())
        torch.testing.assert_close(one, torch.linalg.eigvalsh(dense).flip(0), atol=1e-12, rtol=0)


# ----- any minimum ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(3, 3), (3, 5, 2), (4, 3, 3, 2), (2, 3, 3, 3, 2)])
def test_sharpness_and_trace_of_any_minimum(widths):
    layers = random_layers(*widths)
    values = torch.linalg.eigvalsh(hessian(layers, chain(layers)))
    assert float(dln.sharpness(layers)) == pytest.approx(float(values[-1]), rel=1e-12)
    assert float(dln.trace(layers)) == pytest.approx(float(values.sum()), rel=1e-12)
    assert float(dln.sharpness(layers, target=chain(layers))) == float(dln.sharpness(layers))


def test_a_large_minimum_is_measured_by_products_alone():
    layers = [2 * W for W in random_layers(45, 45, 45)]  # 2,025 observed numbers
    A, B = (torch.linalg.svdvals(W)[0] ** 2 for W in layers)
    # Two layers: the map is X -> X W_1^T W_1 + W_2 W_2^T X, whose eigenvalues add.
    assert float(dln.sharpness(layers)) == pytest.approx(float(A + B), rel=1e-9)
    # Measurements that see all entries, turned and doubled: four times the curvature.
    three = [1.5 * W for W in random_layers(9, 9, 9, 9)]
    turned = 2 * torch.linalg.qr(gaussian((81, 81), seed=0, dtype=F64)).Q.view(81, 9, 9)
    expected = 4 * float(dln.sharpness(three))
    assert float(dln.sharpness(three, measurements=turned)) == pytest.approx(expected, rel=1e-10)


def test_products_alone_and_matrices_give_the_same_sharpness(monkeypatch):
    layers, A = random_layers(4, 5, 5, 3), gaussian((7, 3, 4), seed=1, dtype=F64)
    dense = [dln.sharpness(layers, measurements=measurements) for measurements in (None, A)]
    monkeypatch.setattr("lowdim.dynamics.dln.minimum.DENSE", 0)
    for measurements, wanted in zip((None, A), dense, strict=True):
        found = dln.sharpness(layers, measurements=measurements)
        assert float(found) == pytest.approx(float(wanted), rel=1e-10)
        both = dln.sharpness([torch.stack([W, 2 * W]) for W in layers], measurements=measurements)
        assert both.tolist() == pytest.approx([float(wanted), 16 * float(wanted)], rel=1e-10)


def test_a_batch_of_minima_is_its_items():
    layers = random_layers(3, 4, 2, batch=(2, 3))
    for function in (dln.sharpness, dln.trace, dln.balancing_gap):
        whole = function(layers)
        assert whole.shape == (2, 3)
        for index in combinations(range(2), range(3)):
            torch.testing.assert_close(whole[index], function([W[index] for W in layers]))


def test_what_is_no_minimum_is_refused():
    layers = random_layers(3, 3, 3)
    M = chain(layers)
    with pytest.raises(DataError, match=r"not a minimum.*gn=True"):
        dln.sharpness(layers, target=M + 1e-3)
    with pytest.raises(DataError, match="not a minimum"):
        dln.trace(layers, target=M + 1e-3)
    assert float(dln.sharpness(layers, target=M + 1e-3, gn=True)) == float(dln.sharpness(layers))
    with pytest.raises(DataError, match="multiply to"):
        dln.sharpness(layers, target=torch.ones(2, 3))


# ----- orbits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("c", [1.001, 1.1, 1.24, 1.5])
def test_the_orbit_comes_back_after_two_steps(depth, c):
    s = 7.0
    lr = c * 2 / float(dln.balanced_sharpness([s], depth=depth)[0])

    def step(rho):
        return rho - lr * (rho**depth - s) * rho ** (depth - 1)

    orbit = dln.period2_orbit(s, depth=depth, lr=lr)
    low, high = float(orbit.low), float(orbit.high)
    assert low < s ** (1 / depth) < high <= (4 * s / 3) ** (1 / depth) + 1e-12
    assert step(low) == pytest.approx(high, rel=1e-13)
    assert step(high) == pytest.approx(low, rel=1e-12)
    h = 1e-6
    slope = (step(step(low + h)) - step(step(low - h))) / (2 * h)
    assert float(orbit.multiplier) == pytest.approx(slope, rel=1e-5)
    # An independent root finder sees the same orbit.
    root = brentq(lambda rho: step(step(rho)) - rho, 0.2 * low, (low + s ** (1 / depth)) / 2, xtol=1e-14)
    assert low == pytest.approx(root, rel=1e-10)


def test_two_layers_have_an_elementary_orbit():
    s, lr = 3.0, torch.tensor([0.34, 0.36, 0.4], dtype=F64)
    z = dln.period2_orbit(s, depth=2, lr=lr).ratio
    torch.testing.assert_close(z + 1 / z - 1, lr * s)


def test_below_the_edge_the_orbit_is_the_minimum():
    orbit = dln.period2_orbit([8.0, 1.0, 0.0], depth=3, lr=0.01)
    torch.testing.assert_close(orbit.low, torch.tensor([2.0, 1.0, 0.0], dtype=F64))
    assert torch.equal(orbit.low, orbit.high)
    assert orbit.stable.tolist() == [True, True, False]  # at 0 nothing moves
    assert float(orbit.multiplier[0]) == pytest.approx((1 - 0.01 * 12 * 4) ** 2)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_period_two_ends_where_the_multiplier_is_minus_one(depth):
    c = dln.stability_limit(depth)
    S = dln.balanced_sharpness([4.0], depth=depth)
    orbit = dln.period2_orbit(4.0, depth=depth, lr=c * 2 / S)
    assert float(orbit.multiplier) == pytest.approx(-1, abs=1e-9)
    assert dln.period2_orbit(4.0, depth=depth, lr=0.999 * c * 2 / S).stable.all()
    assert not dln.period2_orbit(4.0, depth=depth, lr=1.001 * c * 2 / S).stable.any()


def test_the_limit_of_two_layers_is_known():
    assert dln.stability_limit(2) == pytest.approx(math.sqrt(5) - 1, abs=1e-14)


# ----- critical learning rates ---------------------------------------------------------------------------


def test_critical_learning_rates():
    s = [10.0, 9.5, 9.0, 0.0]
    found = dln.critical_lrs(s, depth=3)
    assert found.onset.tolist() == pytest.approx([0.0309439, 0.0331343, 0.0356111], abs=1e-7)
    assert found.period4.tolist() == pytest.approx((1.2446073928 * found.onset).tolist())
    assert found.mixing / float(found.onset[0]) == pytest.approx(1.034, abs=5e-4)
    Q = torch.linalg.qr(gaussian((4, 4), seed=0, dtype=F64)).Q
    turned = dln.critical_lrs(Q @ torch.tensor(s, dtype=F64).diag(), depth=3)
    torch.testing.assert_close(turned.onset, found.onset)
    assert list(found.table().index) == [1, 2, 3]
    assert found.table()["onset"].tolist() == found.onset.tolist()


def test_the_number_of_oscillating_directions():
    rates = (0.03, 0.0312, 0.034, 0.036)
    assert [dln.oscillation_rank([10.0, 9.5, 9.0], depth=3, lr=lr) for lr in rates] == [0, 1, 2, 3]
    assert dln.oscillation_rank([10.0], depth=3, lr=0.0312, momentum=0.5) == 0
    assert dln.oscillation_rank([10.0], depth=3, lr=0.0312 * 1.5, momentum=0.5) == 1


def test_one_layer_has_an_edge_and_nothing_beyond():
    found = dln.critical_lrs([3.0, 2.0], depth=1)
    assert found.onset.tolist() == [2.0, 2.0]
    assert math.isinf(float(found.period4[0]))
    assert found.mixing == 2.0
    assert float(dln.period2_orbit(3.0, depth=1, lr=1.5).amplitude) == 0
    with pytest.raises(DataError, match="diverges"):
        dln.period2_orbit(3.0, depth=1, lr=2.0)


# ----- stability in the full network ---------------------------------------------------------------------


def two_steps(layers, M, lr):
    """Jacobian of two steps of gradient descent of the whole network."""
    sizes = [W.numel() for W in layers]
    loss = lambda x: (  # noqa: E731
        (chain([p.view_as(W) for p, W in zip(x.split(sizes), layers, strict=True)]) - M).square().sum() / 2
    )
    step = lambda x: x - lr * torch.func.grad(loss)(x)  # noqa: E731
    return torch.func.jacrev(lambda x: step(step(x)))(torch.cat([W.flatten() for W in layers]))


@pytest.mark.parametrize(
    ("depth", "s", "c", "phases"),
    [
        (3, [10.0, 9.5, 9.0], 1.06, None),
        (2, [10.0, 9.5, 0.0], 1.03, None),
        (3, [10.0, 9.5], 1.12, (0, 1)),
        (3, [10.0, 9.5], 1.12, (1, 1)),
        (4, [2.0, 1.9], 1.2, None),
    ],
)
def test_multipliers_are_those_of_two_steps_of_the_whole_network(depth, s, c, phases):
    lr = c * float(dln.critical_lrs(s, depth=depth).onset[0])
    orbit = dln.period2_orbit(s, depth=depth, lr=lr)
    rho = orbit.low.clone()
    for i, phase in enumerate(phases or ()):
        rho[i] = orbit.high[i] if phase else orbit.low[i]
    J = two_steps([rho.diag() for _ in range(depth)], torch.tensor(s, dtype=F64).diag(), lr)
    found = dln.floquet(s, depth=depth, lr=lr, phases=phases)
    largest = max(float(found.aligned.max()), float(found.transverse))
    # Multipliers of 1 are defective: as roots they carry the square root of the rounding error.
    assert largest == pytest.approx(float(torch.linalg.eigvals(J).abs().max()), abs=1e-6)
    assert found.rank == dln.oscillation_rank(s, depth=depth, lr=lr)
    assert found.stable == (largest <= 1 + 1e-6)


def test_below_the_edge_the_minimum_is_stable():
    found = dln.floquet([10.0, 9.5], depth=3, lr=0.02)
    assert (found.rank, found.stable) == (0, True)


def test_phases_that_do_not_fit_are_refused():
    for phases in ((0,), (0, 2), (0, 1, 1)):
        with pytest.raises(DataError, match="phases"):
            dln.floquet([10.0, 9.5], depth=3, lr=0.034, phases=phases)


# ----- balance -------------------------------------------------------------------------------------------


def test_one_step_changes_the_balance_as_the_identity_says():
    layers = random_layers(4, 3, 3, 2, seed=1)
    M, lr = gaussian((2, 4), seed=2, dtype=F64), 0.3
    parts = [W.clone().requires_grad_() for W in layers]
    ((chain(parts) - M).square().sum() / 2).backward()
    stepped = [W - lr * p.grad for W, p in zip(layers, parts, strict=True)]
    expected = dln.balancing_matrices(stepped)
    for found, wanted in zip(dln.balancing_step(layers, target=M, lr=lr), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-13, rtol=0)


def test_of_single_numbers_the_identity_is_a_factor():
    d, s, lr = torch.tensor([1.3, 0.7, 2.1], dtype=F64), 3.0, 0.2
    factor = dln.balance_contraction(d, s=s, lr=lr)
    g = (d.prod() - s) * d.prod() / d
    new = d - lr * g
    for a, c in combinations(range(3), repeat=2):
        before, after = d[a] ** 2 - d[c] ** 2, new[a] ** 2 - new[c] ** 2
        torch.testing.assert_close(factor[a, c] * before, after)
    # A factor of 0 is no division by 0.
    assert torch.isfinite(dln.balance_contraction([0.0, 1.0], s=1.0, lr=0.1)).all()


def test_the_gap():
    layers = [torch.eye(2, dtype=F64), 2 * torch.eye(2, dtype=F64)]
    assert float(dln.balancing_gap(layers)) == pytest.approx(3 * math.sqrt(2))
    assert float(dln.balancing_gap(layers, relative=True)) == pytest.approx(3 * math.sqrt(2) / 8)
    assert float(dln.balancing_gap(layers[:1])) == 0
    assert float(dln.balancing_gap([torch.zeros(2, 2)] * 2, relative=True)) == 0


# ----- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, -1, 2.0, True, None])
def test_a_depth_is_a_positive_integer(depth):
    with pytest.raises(DataError, match="depth"):
        dln.critical_lrs([1.0], depth=depth)
    with pytest.raises(DataError, match="depth"):
        dln.DeepLinear([1.0], depth=depth)


@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan, math.inf, "fast", []])
def test_a_learning_rate_is_positive(lr):
    for call in (
        lambda: dln.period2_orbit(1.0, depth=2, lr=lr),
        lambda: dln.oscillation_rank([1.0], depth=2, lr=lr),
        lambda: dln.floquet([1.0], depth=2, lr=lr),
        lambda: dln.DeepLinear([1.0], depth=2).fit(lr, steps=1),
    ):
        with pytest.raises(DataError, match="lr"):
            call()


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ([1.0, math.nan], DataError),
        ([[1.0, math.inf]], DataError),
        ([1.0, -1.0], DataError),
        ([0.0, 0.0], DataError),
        (torch.ones(2, 2, dtype=torch.complex128), DataError),
        ("target", DataError),
        (torch.ones(2, 2, 2), ShapeError),
        (3.0, ShapeError),
        ([], ShapeError),
    ],
)
def test_a_target_is_a_finite_matrix(target, error):
    for call in (
        lambda: dln.hessian_eigenvalues(target, depth=2),
        lambda: dln.critical_lrs(target, depth=2),
        lambda: dln.DeepLinear(target, depth=2),
    ):
        with pytest.raises(error, match="target"):
            call()


def test_what_asks_for_one_learning_rate_refuses_several():
    for call in (
        lambda lr: dln.oscillation_rank([1.0], depth=2, lr=lr),
        lambda lr: dln.floquet([1.0], depth=2, lr=lr),
        lambda lr: dln.balancing_step([torch.ones(1, 1)], target=[1.0], lr=lr),
    ):
        with pytest.raises(DataError, match="one learning rate"):
            call([0.1, 0.2])


def test_layers_must_chain():
    good = torch.ones(2, 2)
    for layers in ([good, torch.ones(3, 3)], [good, torch.ones(2)], [good, torch.ones(4, 2, 2)]):
        for function in (dln.sharpness, dln.trace, dln.balancing_gap, dln.product):
            with pytest.raises(ShapeError, match="chain"):
                function(layers)
    with pytest.raises(DataError, match="no layers"):
        dln.sharpness([])
    with pytest.raises(DataError, match="NaN"):
        dln.sharpness([good, good * math.nan])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: dln.hessian_eigenvalues([1.0, 1.0, 1.0], depth=2, shape=(2, 5)), ShapeError, "too many"),
        (lambda: dln.aligned_hessian_eigenvalues(torch.ones(2, 3), target=[1.0]), ShapeError, "do not fit"),
        (lambda: dln.aligned_hessian_eigenvalues([[math.nan]], target=[1.0]), DataError, "NaN"),
        (lambda: dln.oscillation_rank([1.0], depth=2, lr=1.0, momentum=1.0), DataError, "momentum"),
        (lambda: dln.stability_limit(1), DataError, "depth"),
        (lambda: dln.floquet([1.0], depth=1, lr=1.0), DataError, "depth"),
        (
            lambda: dln.balancing_step([torch.ones(2, 2)], target=torch.ones(3, 2), lr=0.1),
            ShapeError,
            "multiply",
        ),
        (lambda: dln.balance_contraction([math.inf, 1.0], s=1.0, lr=0.1), DataError, "NaN"),
    ],
)
def test_other_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()
