"""Trainings of deep linear networks: starts, batches, records, divergence."""

import math

import pytest
import torch

from lowdim.algebra.seeds import gaussian
from lowdim.dynamics import dln
from lowdim.errors import DataError, ShapeError

F64 = torch.float64
S = [10.0, 9.5, 9.0, 0.0]


def matrix(m, n, seed=0):
    return gaussian((m, n), seed=seed, dtype=F64)


def by_autograd(layers, loss, lr, steps, momentum=0.0):
    """Plain gradient descent with torch.optim."""
    parts = [W.clone().requires_grad_() for W in layers]
    optimizer = torch.optim.SGD(parts, lr=lr, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        P = parts[0]
        for W in parts[1:]:
            P = W @ P
        loss(P).backward()
        optimizer.step()
    return [W.detach() for W in parts]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("init", ["aligned", "gaussian", "orthogonal", "identity"])
@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_training_is_gradient_descent(init, shape, momentum):
    M = matrix(*shape)
    net = dln.DeepLinear(M, depth=3, init=init, scale=0.5, seed=1)
    run = net.fit(0.03, steps=40, momentum=momentum)
    expected = by_autograd(net.start(), lambda P: (P - M).square().sum() / 2, 0.03, 40, momentum)
    for found, wanted in zip(run.layers, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-11, rtol=0)


@pytest.mark.parametrize("kind", ["matrices", "mask"])
def test_training_on_measurements_is_gradient_descent(kind):
    M = matrix(3, 4)
    seen = gaussian((7, 3, 4), seed=1, dtype=F64) if kind == "matrices" else matrix(3, 4, seed=2) > 0

    def loss(P):
        R = P - M
        return (
            (seen * R).sum((-2, -1)).square().sum() / 2 if kind == "matrices" else R[seen].square().sum() / 2
        )

    net = dln.DeepLinear(M, depth=2, init="gaussian", scale=0.5, measurements=seen)
    run = net.fit(0.02, steps=30)
    expected = by_autograd(net.start(), loss, 0.02, 30)
    for found, wanted in zip(run.layers, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    assert float(run.loss[-1]) == pytest.approx(float(loss(dln.product(expected))), rel=1e-10)
    assert float(net.loss(dln.product(expected))) == pytest.approx(float(run.loss[-1]), rel=1e-10)


def test_one_layer_is_a_linear_problem():
    run = dln.DeepLinear(matrix(2, 3), depth=1, init="gaussian").fit(1.0, steps=1)
    torch.testing.assert_close(run.layers[0], matrix(2, 3))


def test_a_batch_is_its_items():
    rates, scales, seeds = [0.02, 0.03], [0.1, 0.3], [4, 5, 6]
    net = dln.DeepLinear(S, depth=3, init="gaussian", scale=scales, seed=seeds)
    run = net.fit(rates, steps=60, record=("loss", "values", "product", "gap"), every=20)
    assert run.loss.shape == (2, 2, 3, 4)
    assert run.values.shape == (2, 2, 3, 4, 4)
    assert run.times.tolist() == [0, 20, 40, 60]
    for i, lr in enumerate(rates):
        for j, scale in enumerate(scales):
            for k, seed in enumerate(seeds):
                one = dln.DeepLinear(S, depth=3, init="gaussian", scale=scale, seed=seed)
                alone = one.fit(lr, steps=60, record=("loss", "values", "product", "gap"), every=20)
                for name, values in run.records.items():
                    torch.testing.assert_close(values[i, j, k], alone.records[name], atol=1e-12, rtol=1e-12)
                assert (float(run.lr[i, j, k]), float(run.scale[i, j, k])) == (lr, scale)
                assert alone.loss.shape == (4,)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_aligned_training_is_that_of_the_matrices(shape):
    M = matrix(*shape)
    net = dln.DeepLinear(M, depth=3, scale=0.3)
    names = ("loss", "values", "product", "gap")
    run = net.fit([0.05, 0.1], steps=25, record=names)
    plain = dln.DeepLinear(M, depth=3, init=net.start()).fit([0.05, 0.1], steps=25, record=names)
    for name in names:
        torch.testing.assert_close(run.records[name], plain.records[name], atol=1e-11, rtol=0)
    for found, wanted in zip(run.layers, plain.layers, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-11, rtol=0)


def test_factors_are_the_diagonals():
    run = dln.DeepLinear(S, depth=3, scale=0.3).fit(0.02, steps=9, record=("factors", "values"))
    assert run.factors.shape == (10, 3, 4)
    torch.testing.assert_close(run.factors.prod(-2), run.values)


def test_a_diagonal_network_keeps_the_oscillation_that_mixes_in_a_full_one():
    # Beyond 2 / S_2 both singular values oscillate; a deviation of 1e-6 is forgotten, or grows in bursts.
    lr = 0.034
    wanted = dln.period2_orbit(S[:2], depth=3, lr=lr).amplitude
    options = {"depth": 3, "init": "aligned", "perturb": 1e-6}
    diagonal, full = (
        dln.DeepLinear(S, diagonal=flag, **options).fit(lr, steps=2000, record=("values",), last=1000)
        for flag in (True, False)
    )
    off = [(run.values.diff(dim=0).abs()[:, :2] - wanted).abs().max() for run in (diagonal, full)]
    assert float(off[0]) < 1e-6
    assert float(off[1]) > 1


def test_momentum_moves_the_edge():
    edge = (2 + 2 * 0.5) / float(dln.balanced_sharpness([10.0], depth=3)[0])
    near = [[10.0 ** (1 / 3) + 0.01]] * 3
    net = dln.DeepLinear([10.0], depth=3, diagonal=True, init=near)
    run = net.fit([0.98 * edge, 1.02 * edge], steps=3000, momentum=0.5, record=("values",), last=2)
    swing = (run.values[:, 1, 0] - run.values[:, 0, 0]).abs()
    assert float(swing[0]) < 1e-8
    assert float(swing[1]) > 0.5


def test_divergence_is_told_and_does_not_touch_the_others():
    net = dln.DeepLinear(S, depth=3, init="gaussian", scale=0.3, seed=0)
    run = net.fit([0.02, 5.0, 0.03], steps=200, record=("loss", "product"))
    assert run.diverged.tolist() == [False, True, False]
    assert run.steps[0] == run.steps[2] == 200
    step = int(run.steps[1])
    assert 0 < step < 200
    limit = 1e6 * torch.tensor(S, dtype=F64).norm()
    assert bool(torch.isfinite(run.loss[1, :step]).all())
    assert bool((run.product[1, :step].norm(dim=(-2, -1)) <= limit).all())
    assert bool(run.loss[1, step:].isnan().all())
    assert bool(run.product[1, step:].isnan().all())
    # The last weights within the limit are kept.
    P = dln.product([W[1] for W in run.layers])
    torch.testing.assert_close(P, run.product[1, step - 1])
    alone = net.fit(0.03, steps=200, record=("loss", "product"))
    torch.testing.assert_close(run.loss[2], alone.loss)
    lonely = net.fit(5.0, steps=200)
    assert (bool(lonely.diverged), int(lonely.steps)) == (True, step)


def test_a_run_ends_at_its_tolerance_and_keeps_its_last_values():
    net = dln.DeepLinear([3.0, 2.0], depth=2, init="gaussian", scale=[0.5, 1.0], seed=0)
    run = net.fit(0.05, steps=5000, tol=1e-6, record=("loss", "product"))
    assert run.converged.all()
    for k in range(2):
        end = int(run.steps[k])
        assert float(run.loss[k, end]) < 1e-6 <= float(run.loss[k, end - 1])
        assert bool((run.loss[k, end:] == run.loss[k, end]).all())
        torch.testing.assert_close(dln.product([W[k] for W in run.layers]), run.product[k, -1])


def test_the_last_records_are_kept():
    net = dln.DeepLinear(S, depth=2, scale=0.3)
    run, whole = net.fit(0.01, steps=50, last=3), net.fit(0.01, steps=50)
    assert run.times.tolist() == [48, 49, 50]
    assert torch.equal(run.loss, whole.loss[-3:])
    assert net.fit(0.01, steps=0).loss.shape == (1,)


def test_what_was_not_recorded_is_said():
    run = dln.DeepLinear(S, depth=2).fit(0.01, steps=1)
    with pytest.raises(DataError, match=r"values was not recorded, only loss"):
        _ = run.values


def test_scales_start_from_the_same_matrices():
    net = dln.DeepLinear(S, depth=2, init="gaussian", scale=[0.1, 0.2], seed=[0, 1])
    for W in net.start():
        assert W.shape == (2, 2, 4, 4)
        torch.testing.assert_close(W[1], 2 * W[0])
        assert not torch.allclose(W[:, 0], W[:, 1])


@pytest.mark.parametrize("shape", [(3, 3), (2, 4)])
def test_orthogonal_starts(shape):
    first, last = dln.DeepLinear(matrix(*shape), depth=2, init="orthogonal", scale=0.5, width=5).start()
    assert (first.shape, last.shape) == ((5, shape[1]), (shape[0], 5))
    torch.testing.assert_close(first.mT @ first, 0.25 * torch.eye(shape[1], dtype=F64))
    torch.testing.assert_close(last @ last.mT, 0.25 * torch.eye(shape[0], dtype=F64))


def test_layers_of_the_users_own():
    layers = [matrix(5, 3), matrix(2, 5, seed=1)]
    run = dln.DeepLinear(matrix(2, 3), depth=2, init=layers).fit([0.01, 0.02], steps=0, record=("product",))
    torch.testing.assert_close(run.product[1, 0], layers[1] @ layers[0])
    assert run.scale.isnan().all()
    diagonal = dln.DeepLinear([5.0], depth=2, diagonal=True, init=[[1.5], [2.25]])
    gap = diagonal.fit([0.18, 0.21], steps=500, record=("gap",)).gap[:, -1]
    assert float(gap[0]) == pytest.approx(2.378, abs=1e-3)
    assert float(gap[1]) < 1e-8
    with pytest.raises(ShapeError, match="init"):
        dln.DeepLinear(matrix(2, 3), depth=3, init=layers)
    with pytest.raises(ShapeError, match="init"):
        dln.DeepLinear(matrix(3, 3), depth=2, init=layers)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"init": "xavier"}, "init"),
        ({"scale": 0.0}, "scale=0"),
        ({"scale": [0.1, 0.0], "init": "gaussian"}, "scale=0"),
        ({"scale": -1.0}, "scale"),
        ({"scale": [[0.1]]}, "scale"),
        ({"perturb": -1.0}, "perturb"),
        ({"perturb": math.nan}, "perturb"),
        ({"width": 3}, "width"),
        ({"width": 0, "init": "gaussian"}, "width"),
        ({"diagonal": True, "measurements": [[[1.0] * 4] * 4]}, "measurements"),
        ({"measurements": torch.zeros(4, 4, dtype=torch.bool)}, "measurements"),
        ({"measurements": torch.full((1, 4, 4), math.nan)}, "measurements"),
        ({"seed": "seven", "init": "gaussian"}, "seed"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, match):
    with pytest.raises(DataError, match=match):
        dln.DeepLinear(S, depth=2, **options).start()


def test_measurements_must_fit():
    with pytest.raises(ShapeError, match="measurements"):
        dln.DeepLinear(S, depth=2, measurements=torch.ones(3, 2, 2))
    with pytest.raises(DataError, match="vector"):
        dln.DeepLinear(matrix(2, 2), depth=2, diagonal=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": -1}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"every": 0}, "every"),
        ({"last": 0}, "last"),
        ({"momentum": 1.0}, "momentum"),
        ({"record": "loss"}, "record"),
        ({"record": ("speed",)}, "record"),
    ],
)
def test_options_of_a_training_that_make_no_sense_are_refused(options, match):
    with pytest.raises(DataError, match=match):
        dln.DeepLinear(S, depth=2).fit(0.1, **{"steps": 1, **options})
    with pytest.raises(DataError, match="factors"):
        dln.DeepLinear(S, depth=2, init="gaussian").fit(0.1, steps=1, record=("factors",))
    with pytest.raises(DataError, match="lr"):
        dln.DeepLinear(S, depth=2).fit([[0.1]], steps=1)
