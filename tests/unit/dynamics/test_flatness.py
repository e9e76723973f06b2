"""Flatness of linear layers: against dense Hessians; sweeps; what is refused."""

import math

import numpy as np
import pytest
import torch

from lowdim.algebra.seeds import gaussian
from lowdim.dynamics import dln, flatness
from lowdim.errors import BudgetError, DataError, ShapeError

F64 = torch.float64


def random_layers(*widths, seed=0, batch=()):
    source = torch.Generator().manual_seed(seed)
    return [
        gaussian((*batch, widths[k + 1], widths[k]), seed=source, dtype=F64) / math.sqrt(widths[k])
        for k in range(len(widths) - 1)
    ]


def hessian(layers, see):
    """Of half the squared norm of see(product - its value), in all weights."""
    M, sizes = dln.product(layers), [W.numel() for W in layers]

    def loss(flat):
        P = torch.eye(layers[0].shape[1], dtype=F64)
        for part, W in zip(flat.split(sizes), layers, strict=True):
            P = part.view_as(W) @ P
        return see(P - M).square().sum() / 2

    return torch.func.hessian(loss)(torch.cat([W.flatten() for W in layers]))


def observations(kind, m, n):
    if kind == "all":
        return None, lambda R: R
    if kind == "mask":
        mask = gaussian((m, n), seed=5, dtype=F64) > 0
        return mask, lambda R: R[mask]
    A = gaussian((6, m, n), seed=5, dtype=F64)
    return A, lambda R: (A * R).sum((-2, -1))


@pytest.mark.parametrize("kind", ["all", "mask", "matrices"])
@pytest.mark.parametrize("widths", [(3, 2), (3, 4, 2), (2, 3, 3, 4)])
def test_all_measures_are_those_of_the_hessian(kind, widths):
    layers = random_layers(*widths)
    measurements, see = observations(kind, widths[-1], widths[0])
    found = flatness.at_minimum(layers, measurements=measurements, relative=True)
    H = hessian(layers, see)
    values = torch.linalg.eigvalsh(H)
    assert float(found.sharpness) == pytest.approx(float(values[-1]), rel=1e-12)
    assert float(found.trace) == pytest.approx(float(values.sum()), rel=1e-12)
    D = torch.cat([W.flatten() for W in layers]).abs()
    relative = torch.linalg.eigvalsh(D[:, None] * H * D)[-1]
    assert float(found.relative) == pytest.approx(float(relative), rel=1e-12)
    assert float(found.balance_gap) == float(dln.balancing_gap(layers))
    if kind == "all":
        S_1 = dln.balanced_sharpness(dln.product(layers), depth=len(layers))[0]
        assert float(found.flattest) == pytest.approx(float(S_1))
        assert float(found.excess) == pytest.approx(float(values[-1] / S_1 - 1), abs=1e-12)
        smallest = flatness.smallest_trace(dln.product(layers), depth=len(layers))
        assert float(found.smallest_trace) == pytest.approx(float(smallest))
        assert float(found.trace) >= float(smallest) * (1 - 1e-12)
    else:
        assert math.isnan(float(found.flattest))
        assert math.isnan(float(found.smallest_trace))


def test_one_layer_has_the_identity_as_hessian():
    found = flatness.at_minimum([torch.tensor([[3.0, 0.0], [0.0, 0.0]])])
    assert (float(found.sharpness), float(found.trace), float(found.excess)) == (1, 4, 0)
    assert float(found.smallest_trace) == 4


def test_a_batch_of_minima_is_its_items():
    layers = random_layers(3, 4, 2, batch=(5,))
    A = gaussian((6, 2, 3), seed=1, dtype=F64)
    for measurements in (None, A):
        whole = flatness.at_minimum(layers, measurements=measurements, relative=True)
        for k in range(5):
            one = flatness.at_minimum([W[k] for W in layers], measurements=measurements, relative=True)
            for name in ("sharpness", "trace", "flattest", "smallest_trace", "balance_gap", "relative"):
                torch.testing.assert_close(getattr(whole, name)[k], getattr(one, name), equal_nan=True)


def test_two_layers_have_a_trace_of_norms():
    layers = random_layers(4, 4, 4)
    expected = 4 * sum(float(W.square().sum()) for W in layers)
    assert float(flatness.at_minimum(layers).trace) == pytest.approx(expected)
    s = torch.tensor([3.0, 1.0, 0.0])
    assert float(flatness.at_minimum(dln.balanced_layers(s, depth=2)).trace) == pytest.approx(2 * 3 * 4)


def test_rescaling_changes_the_sharpness_and_not_the_relative_one():
    first, last = random_layers(3, 4, 2)
    before = flatness.at_minimum([first, last], relative=True)
    after = flatness.at_minimum([5 * first, last / 5], relative=True)
    assert float(after.sharpness) > 2 * float(before.sharpness)
    assert float(after.relative) == pytest.approx(float(before.relative), rel=1e-12)


def test_what_is_no_minimum_is_refused():
    layers = random_layers(3, 3, 3)
    M = dln.product(layers)
    flatness.at_minimum(layers, target=M * (1 + 1e-9))
    with pytest.raises(DataError, match=r"not a minimum.*gn=True"):
        flatness.at_minimum(layers, target=M * 1.01)
    found = flatness.at_minimum(layers, target=M * 1.01, gn=True)
    assert float(found.sharpness) == float(dln.sharpness(layers))
    # Only what is observed must agree.
    mask = torch.eye(3, dtype=torch.bool)
    flatness.at_minimum(layers, target=M + 1 - torch.eye(3), measurements=mask)


def test_what_does_not_fit_is_refused():
    good = torch.ones(2, 2)
    with pytest.raises(ShapeError, match="chain"):
        flatness.at_minimum([good, torch.ones(3, 3)])
    with pytest.raises(DataError, match="NaN"):
        flatness.at_minimum([good * math.inf, good])
    with pytest.raises(ShapeError, match="measurements"):
        flatness.at_minimum([good, good], measurements=torch.ones(4, 3, 3))
    wide = torch.ones(110, 110)
    with pytest.raises(BudgetError, match="Jacobian"):
        flatness.at_minimum([wide, wide], relative=True, measurements=None)


# ----- weights of one product ----------------------------------------------------------------------------


def test_weights_move_along_the_fiber():
    layers = random_layers(3, 4, 2, 3)
    turns = [gaussian((5, 4, 4), seed=1, dtype=F64), gaussian((2, 2), seed=2, dtype=F64)]
    moved = flatness.reparameterize(layers, turns)
    P = dln.product([moved[0], moved[1], moved[2].expand(5, -1, -1)])
    torch.testing.assert_close(P, dln.product(layers).expand(5, -1, -1))
    assert float((moved[0] - layers[0]).norm()) > 0.1
    with pytest.raises(ShapeError, match="generators"):
        flatness.reparameterize(layers, turns[:1])
    with pytest.raises(ShapeError, match="generators"):
        flatness.reparameterize(layers, [turns[0], torch.ones(3, 3)])


@pytest.mark.parametrize(("depth", "ratio"), [(1, 1.0), (2, 1.0), (3, 0.980), (4, 0.966)])
def test_the_smallest_trace(depth, ratio):
    balanced = dln.balanced_layers([2.0, 1.0, 0.5], depth=depth)
    found = flatness.minimize_trace(balanced)
    torch.testing.assert_close(dln.product(found), dln.product(balanced), atol=1e-10, rtol=0)
    assert float(dln.trace(found) / dln.trace(balanced)) == pytest.approx(ratio, abs=1e-3)
    closed = float(flatness.smallest_trace([2.0, 1.0, 0.5], depth=depth))
    assert float(dln.trace(found)) == pytest.approx(closed, rel=1e-9)
    # From elsewhere on the fiber it is the same.
    start = flatness.reparameterize(
        balanced, [0.2 * gaussian((3, 3), seed=k, dtype=F64) for k in range(depth - 1)]
    )
    assert float(dln.trace(flatness.minimize_trace(start))) == pytest.approx(
        float(dln.trace(found)), rel=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 4), (4, 2)])
def test_the_smallest_trace_of_wide_and_tall_targets(shape):
    M = gaussian(shape, seed=0, dtype=F64)
    found = dln.trace(flatness.minimize_trace(dln.balanced_layers(M, depth=3)))
    assert float(found) == pytest.approx(float(flatness.smallest_trace(M, depth=3)), rel=1e-9)


def test_the_smallest_trace_of_a_batch_is_refused():
    with pytest.raises(ShapeError, match="batch"):
        flatness.minimize_trace(random_layers(2, 2, 2, batch=(3,)))


# ----- sweeps --------------------------------------------------------------------------------------------


def test_a_sweep_is_its_trainings():
    M = gaussian((3, 3), seed=0, dtype=F64)
    sweep = flatness.sweep_init(M, depth=2, scales=[0.4, 0.8], seeds=[3, 5], tol=1e-10)
    assert sweep.lr == pytest.approx(0.1 / float(dln.balanced_sharpness(M, depth=2)[0]))
    assert sweep.table[["scale", "seed"]].to_numpy().tolist() == [[0.4, 3], [0.4, 5], [0.8, 3], [0.8, 5]]
    for row in sweep.table.itertuples():
        net = dln.DeepLinear(M, depth=2, init="gaussian", scale=row.scale, seed=row.seed)
        run = net.fit(sweep.lr, steps=60_000, tol=1e-10, last=1)
        found = flatness.at_minimum(run.layers, gn=True)
        assert row.steps == int(run.steps)
        assert row.loss == pytest.approx(float(run.loss[-1]), rel=1e-6)
        for name in ("sharpness", "excess", "trace"):
            assert getattr(row, name) == pytest.approx(float(getattr(found, name)), rel=1e-9)
        assert row.gap == pytest.approx(float(found.balance_gap), rel=1e-9)
        assert row.trace_ratio == pytest.approx(
            float(found.trace / dln.trace(dln.balanced_layers(M, depth=2))), rel=1e-9
        )
        assert row.error == pytest.approx(float((dln.product(run.layers) - M).norm() / M.norm()), rel=1e-6)
        assert row.converged
    medians = sweep.medians()
    assert medians.index.tolist() == [0.4, 0.8]
    rise = np.log(medians.loc[0.8, "gap"] / medians.loc[0.4, "gap"]) / np.log(2)
    assert sweep.slope("gap", 0.4, 0.8) == pytest.approx(rise)


def test_a_sweep_of_measurements():
    M = torch.eye(4, dtype=F64)
    M[2:] = 0
    A = gaussian((10, 4, 4), seed=2, dtype=F64) / math.sqrt(10)
    sweep = flatness.sweep_init(M, depth=2, scales=[1.0, 0.1], seeds=2, measurements=A, tol=1e-6)
    assert sweep.table["converged"].all()
    assert sweep.table["excess"].isna().all()
    medians = sweep.medians()
    assert float(medians["trace"].iloc[0]) < float(medians["trace"].iloc[1])
    net = dln.DeepLinear(M, depth=2, init="gaussian", scale=1.0, seed=0, measurements=A)
    start = float(dln.sharpness(net.start(), measurements=A, gn=True))
    assert sweep.lr <= 0.1 / start


def test_a_sweep_that_diverges_says_so():
    sweep = flatness.sweep_init([2.0, 1.0], depth=3, scales=[0.1, 4.0], seeds=1, lr=0.1)
    assert sweep.table["diverged"].tolist() == [False, True]
    assert sweep.table["sharpness"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"scales": [0.0]}, DataError, "saddle"),
        ({"scales": []}, DataError, "scale"),
        ({"scales": [math.nan]}, DataError, "scale"),
        ({"seeds": 0}, DataError, "seed"),
        ({"depth": 0}, DataError, "depth"),
        ({"target": [math.nan]}, DataError, "target"),
        ({"measurements": torch.ones(3, 3, 3)}, ShapeError, "measurements"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(options, error, match):
    given = {"target": [2.0, 1.0], "depth": 2, "scales": [0.1], "seeds": 1, **options}
    with pytest.raises(error, match=match):
        flatness.sweep_init(given.pop("target"), **given)


def test_a_slope_needs_scales_of_the_sweep():
    sweep = flatness.sweep_init([2.0, 1.0], depth=2, scales=[0.4, 0.8], seeds=1)
    for arguments in (("speed", 0.4, 0.8), ("gap", 0.4, 0.5)):
        with pytest.raises(DataError, match="slope"):
            sweep.slope(*arguments)
