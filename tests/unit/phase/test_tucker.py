import numpy as np
import pytest
import torch
from simulated import simulated

from lowdim.algebra.seeds import gaussian
from lowdim.errors import DataError, LowdimWarning, RankError, RunError, ShapeError
from lowdim.phase import LowRankPhaseRetrieval, TuckerPhaseRetrieval, relative_error
from lowdim.phase.outliers import biweights

RANKS = (2, 2, 2)


@pytest.mark.parametrize("init", ["auto", "joint", "grow", "frame", "random"])
def test_frames_are_found_from_fewer_measurements_than_pixels(init):
    A, y, X = simulated()
    model = TuckerPhaseRetrieval(RANKS, init=init, n_init=8).fit(A, y)
    assert relative_error(model.frames_, X) < 1e-8
    assert model.converged_
    assert model.loss_[-1] < 1e-15
    assert model.n_iter_ == len(model.loss_)


def test_complex_frames_are_found():
    A, y, X = simulated(dtype=torch.complex128, samples=64)
    model = TuckerPhaseRetrieval(RANKS).fit(A, y)
    assert relative_error(model.frames_, X) < 1e-5


def test_real_frames_are_found_from_complex_measurements():
    A, _, _ = simulated(dtype=torch.complex128)
    X = simulated(1)[2]
    y = torch.einsum("kmij,kij->km", A, X.to(A.dtype)).abs()
    model = TuckerPhaseRetrieval(RANKS, real=True).fit(A, y)
    assert model.frames_.dtype == torch.float64
    assert relative_error(model.frames_, X) < 1e-8


def test_color_frames_have_one_factor_more():
    A, y, X = simulated(shape=(6, 5, 3), ranks=(2, 2, 2, 3), samples=60)
    model = TuckerPhaseRetrieval((2, 2, 2, 3), n_init=8).fit(A, y)
    assert relative_error(model.frames_, X) < 1e-8
    assert len(model.factors_) == 4
    torch.testing.assert_close(model.tucker().dense().movedim(-1, 0), model.frames_)


def test_matrices_vectors_and_numpy_say_the_same():
    A, y, _ = simulated()
    tensors = TuckerPhaseRetrieval(RANKS).fit(A, y)
    arrays = TuckerPhaseRetrieval(RANKS).fit(A.flatten(2).numpy(), y.numpy(), image_shape=(8, 8))
    assert isinstance(arrays.frames_, np.ndarray)
    np.testing.assert_allclose(arrays.frames_, tensors.frames_.numpy())


def test_intensities_are_squares_of_magnitudes():
    A, y, X = simulated()
    model = TuckerPhaseRetrieval(RANKS).fit(A, y.square(), intensity=True)
    assert relative_error(model.frames_, X) < 1e-8


def test_single_precision_ends_near_double():
    A, y, X = simulated()
    model = TuckerPhaseRetrieval(RANKS).fit(A.float(), y.float())
    assert model.frames_.dtype == torch.float32
    assert relative_error(model.frames_.double(), X) < 1e-4


def test_outliers_are_borne_and_found():
    A, y, X = simulated(samples=64)
    generator = torch.Generator().manual_seed(1)
    bad = torch.rand(y.shape, generator=generator) < 0.05
    spoiled = torch.where(bad, 5 * y.mean() * torch.rand(y.shape, generator=generator, dtype=y.dtype), y)
    with pytest.warns(LowdimWarning, match="robust=True"):
        plain = TuckerPhaseRetrieval(RANKS).fit(A, spoiled)
    robust = TuckerPhaseRetrieval(RANKS, robust=True).fit(A, spoiled)
    assert relative_error(plain.frames_, X) > 0.02
    assert relative_error(robust.frames_, X) < 1e-6
    assert float(robust.weights_[bad].mean()) < 0.05
    assert plain.weights_ is None


def test_biweights_ignore_what_was_left_out():
    residual = torch.tensor([[0.1, -0.2, 0.1, 9.0, 9.0, 9.0, 9.0]])
    weights = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0]])
    found = biweights(residual, weights)
    assert bool((found[0, :3] > 0.5).all())
    assert found[0, 3:].tolist() == [0, 0, 0, 0]


def test_weights_of_zero_leave_measurements_out():
    A, y, X = simulated(samples=60)
    weights = torch.ones_like(y)
    weights[:, 50:] = 0
    spoiled = y.clone()
    spoiled[:, 50:] = 100
    model = TuckerPhaseRetrieval(RANKS).fit(A, spoiled, sample_weight=weights)
    assert relative_error(model.frames_, X) < 1e-8


def test_a_dark_frame_is_zero():
    A, y, X = simulated()
    y[3] = 0
    model = TuckerPhaseRetrieval(RANKS).fit(A, y)
    assert float(model.frames_[3].abs().max()) == 0
    keep = [k for k in range(20) if k != 3]
    assert relative_error(model.frames_[keep], X[keep]) < 1e-8


def test_nothing_but_darkness_is_zero():
    A, y, _ = simulated()
    model = TuckerPhaseRetrieval(RANKS, n_init=1).fit(A, torch.zeros_like(y))
    assert float(model.frames_.abs().max()) == 0
    assert model.loss_[-1] == 0


def test_ranks_are_chosen_by_held_out_measurements():
    A, y, X = simulated(2, shape=(10, 10), frames=24, ranks=(3, 2, 2), samples=80)
    model = TuckerPhaseRetrieval("auto").fit(A, y)
    assert model.choice_.ranks == (3, 2, 2)
    assert tuple(model.core_.shape) == (3, 2, 2)
    assert model.choice_.table()["held_out"].min() < 1e-6
    assert relative_error(model.frames_, X) < 1e-8


def test_a_model_comes_back_from_disk(tmp_path):
    A, y, _ = simulated(dtype=torch.complex128, samples=64)
    model = TuckerPhaseRetrieval(RANKS, n_init=2).fit(A, y)
    model.save(tmp_path)
    again = TuckerPhaseRetrieval.load(tmp_path)
    torch.testing.assert_close(again.frames_, model.frames_)
    assert again.loss_ == model.loss_
    assert again.get_params()["n_init"] == 2
    with pytest.raises(RunError, match="holds a TuckerPhaseRetrieval"):
        LowRankPhaseRetrieval.load(tmp_path)


def test_progress_is_told():
    A, y, _ = simulated()
    told = []
    model = TuckerPhaseRetrieval(RANKS, init="joint", n_init=1).fit(
        A, y, callback=lambda *state: told.append(state)
    )
    assert [state[1] for state in told] == list(range(1, model.n_iter_ + 1))
    assert [state[2] for state in told] == model.loss_


@pytest.mark.parametrize("method", ["altmin", "lrpr2", "altgdmin"])
def test_frames_of_a_common_subspace_are_found(method):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: gaussian(size, seed=generator, dtype=torch.float64)  # noqa: E731
    X = (draw(30, 2) @ draw(2, 20)).reshape(30, 4, 5)
    A = draw(30, 25, 4, 5)
    y = torch.einsum("kmij,kij->km", A, X).abs()
    model = LowRankPhaseRetrieval(2, method=method, max_iter=300).fit(A, y)
    assert relative_error(model.frames_, X) < 1e-6
    basis = model.basis_.flatten(1)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(2, dtype=basis.dtype))
    torch.testing.assert_close(torch.tensordot(model.coef_, model.basis_, dims=1), model.frames_)


def test_a_low_rank_model_comes_back_from_disk(tmp_path):
    A, y, _ = simulated(samples=80)
    model = LowRankPhaseRetrieval(2).fit(A.numpy(), y.numpy())
    model.save(tmp_path)
    np.testing.assert_allclose(LowRankPhaseRetrieval.load(tmp_path).frames_.numpy(), model.frames_)


# ----- bad input (method page, section 8) ---------------------------------------------------------------


@pytest.mark.parametrize("estimator", [TuckerPhaseRetrieval(RANKS), LowRankPhaseRetrieval(2)])
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda A, y: (A, -y), DataError, "negative numbers"),
        (lambda A, y: (A, y * float("nan")), DataError, "NaN or infinite"),
        (lambda A, y: (A * float("inf"), y), DataError, "A holds NaN or infinite"),
        (lambda A, y: (A, y[:, :-1]), ShapeError, "expected \\(frames, 48\\)"),
        (lambda A, y: (A, y[:-1]), ShapeError, "y has 19 frames, A has 20"),
        (lambda A, y: (A.flatten(2), y), ShapeError, "does not tell the shape"),
        (lambda A, y: (A, y.to(torch.complex128)), DataError, "y is complex"),
        (lambda A, y: ("a file", y), DataError, "expected a tensor"),
    ],
)
def test_wrong_data_are_refused(estimator, spoil, error, message):
    A, y, _ = simulated()
    with pytest.raises(error, match=message):
        estimator.fit(*spoil(A, y))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ranks": (9, 2, 2)}, RankError, "rank 9 of image axis 0"),
        ({"ranks": (5, 2, 2)}, RankError, "product of the other ranks"),
        ({"ranks": (2, 2, 5)}, RankError, "rank 5 of the frames"),
        ({"ranks": (2, 2)}, RankError, "Give 3 positive numbers"),
        ({"ranks": (0, 2, 2)}, RankError, "Give 3 positive numbers"),
        ({"ranks": "many"}, RankError, "ranks='many'"),
        ({"init": "cold"}, DataError, "init='cold' is unknown"),
        ({"solver": "qr"}, DataError, "solver='qr' is unknown"),
        ({"n_init": 0}, DataError, "n_init=0"),
        ({"max_iter": 1.5}, DataError, "max_iter=1.5"),
        ({"tol": -1}, DataError, "tol=-1"),
        ({"random_state": "x"}, DataError, "random_state='x'"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    A, y, _ = simulated()
    with pytest.raises(error, match=message):
        TuckerPhaseRetrieval(**{"ranks": RANKS, **options}).fit(A, y)


def test_more_coefficients_than_measurements_are_refused():
    A, y, _ = simulated()
    with pytest.raises(RankError, match="3 measurements per frame"):
        TuckerPhaseRetrieval((2, 2, 4)).fit(A[:, :3], y[:, :3])


def test_wrong_shapes_and_weights_are_refused():
    A, y, _ = simulated()
    with pytest.raises(ShapeError, match="does not fit image_shape"):
        TuckerPhaseRetrieval(RANKS).fit(A, y, image_shape=(7, 9))
    with pytest.raises(ShapeError, match="sample_weight has shape"):
        TuckerPhaseRetrieval(RANKS).fit(A, y, sample_weight=y[0])
    with pytest.raises(DataError, match="sample_weight must be finite"):
        TuckerPhaseRetrieval(RANKS).fit(A, y, sample_weight=-y)
    with pytest.raises(DataError, match="method='best'"):
        LowRankPhaseRetrieval(2, method="best").fit(A, y)


def test_too_few_measurements_are_told():
    A, y, _ = simulated(samples=5)
    with pytest.warns(LowdimWarning, match="too few to determine"):
        TuckerPhaseRetrieval(RANKS, n_init=1, max_iter=3).fit(A, y)


def test_whole_numbers_are_promoted():
    A, y, _ = simulated()
    whole = (10 * A).round().long()
    y = torch.einsum("kmij,kij->km", whole.double(), simulated()[2]).abs()
    model = TuckerPhaseRetrieval(RANKS).fit(whole, y)
    assert model.loss_[-1] < 1e-15


# ----- what is kept, and units --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float32, 1e20), (torch.float32, 1e-22), (torch.float64, 1e-200)]
)
def test_magnitudes_of_any_size_are_recovered(dtype, factor):
    A, y, X = simulated()
    model = TuckerPhaseRetrieval(RANKS).fit(A.to(dtype), y.to(dtype) * factor)
    assert relative_error(model.frames_.double() / factor, X) < 1e-3


def test_numbers_of_numpy_are_options_and_are_kept(tmp_path):
    A, y, _ = simulated()
    model = TuckerPhaseRetrieval(np.array(RANKS), n_init=np.int64(2)).fit(A.numpy(), y.numpy())
    model.save(tmp_path / "tucker")
    again = TuckerPhaseRetrieval.load(tmp_path / "tucker")
    assert (again.ranks, again.n_init) == ([2, 2, 2], 2)
    np.testing.assert_array_equal(again.frames_.numpy(), model.frames_)
    low = LowRankPhaseRetrieval(np.int64(2), n_init=1, max_iter=5).fit(A.numpy(), y.numpy())
    low.save(tmp_path / "low")
    np.testing.assert_array_equal(LowRankPhaseRetrieval.load(tmp_path / "low").frames_.numpy(), low.frames_)


def test_fractions_are_no_ranks():
    A, y, _ = simulated()
    with pytest.raises(RankError, match="Give 3 positive numbers"):
        TuckerPhaseRetrieval((2.9, 2, 2)).fit(A, y)


def test_complex_numbers_count_twice():
    A, y, _ = simulated(dtype=torch.complex128, samples=8)
    # 160 data: 1.7 times the 92 complex numbers, not 1.5 times the 184 real ones.
    with pytest.warns(LowdimWarning, match="160 measurements for 160 unknowns"):
        TuckerPhaseRetrieval(RANKS, n_init=1, max_iter=2).fit(A, y)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    A, y, _ = simulated()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        TuckerPhaseRetrieval(RANKS, n_init=1, max_iter=2).fit(A, y).save(tmp_path / "file" / "model")
