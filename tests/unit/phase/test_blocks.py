import pytest
import torch
from simulated import simulated

from lowdim.algebra.seeds import gaussian
from lowdim.phase.alignment import phase
from lowdim.phase.blocks import DenseBlocks, OperatorBlocks, Targets
from lowdim.phase.measurement import DenseMeasurement
from lowdim.phase.video import Video

KINDS = [torch.float64, torch.complex128]


def setting(dtype=torch.float64, *, shape=(5, 4), frames=6, samples=20, weighted=False, real=False):
    """Return a measurement, targets, and a video that does not fit them."""
    full = (*[2] * len(shape), 2) if len(shape) > 1 else (2, 2)
    A, y, _ = simulated(0, shape=shape, frames=frames, ranks=full, samples=samples, dtype=dtype)
    ranks = (*[2] * len(shape), 3 if len(shape) > 1 else 2)
    generator = torch.Generator().manual_seed(5)
    kind = torch.float64 if real else dtype
    factors = [gaussian((n, 2), seed=generator, dtype=kind) for n in shape]
    video = Video(
        gaussian(ranks, seed=generator, dtype=kind),
        factors,
        gaussian((frames, ranks[-1]), seed=generator, dtype=kind),
    )
    root = torch.rand(y.shape, generator=generator, dtype=y.dtype) if weighted else None
    video.orthonormalize()
    return DenseMeasurement(A, image_shape=shape), Targets(y, root, real), video


def fixed(video):
    """Coefficients that stay as they are."""
    return lambda M, part: video.coef[part]


def dense_solution(A, targets, goal, build, like):
    """Solve for one block by lstsq, column by column of what it does to the measurements."""
    columns = []
    for i in range(like.numel()):
        unit = torch.zeros(like.numel(), dtype=like.dtype)
        unit[i] = 1
        columns.append(targets.scaled(A.forward(build(unit.reshape(like.shape)))).flatten())
    J, c = torch.stack(columns, -1), targets.scaled(goal).flatten()
    if targets.real and J.is_complex():
        J, c = torch.cat([J.real, J.imag]), torch.cat([c.real, c.imag])
    return torch.linalg.lstsq(J, c.unsqueeze(-1)).solution.reshape(like.shape)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "real"), [(KINDS[0], False), (KINDS[1], False), (KINDS[1], True)])
def test_a_sweep_solves_each_block_as_dense_least_squares(dtype, real, weighted):
    A, targets, video = setting(dtype, weighted=weighted, real=real)
    goal = targets.y * phase(A.forward(video.frames()))
    expected = video.copy()
    for mode in range(2):

        def build(D, mode=mode):
            factors = list(expected.factors)
            factors[mode] = D
            return Video(expected.core, factors, expected.coef).frames()

        expected.factors[mode] = dense_solution(A, targets, goal, build, expected.factors[mode])
        expected.settle(mode)
    build = lambda G: Video(G, expected.factors, expected.coef).frames()  # noqa: E731
    expected.core = dense_solution(A, targets, goal, build, expected.core)
    found = video.copy()
    values = DenseBlocks(A, targets, chunk_bytes=2**20).sweep(found, fixed(video))
    torch.testing.assert_close(found.frames(), expected.frames(), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(values, A.forward(found.frames()), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", [(20,), (5, 4), (3, 4, 2)])
def test_the_misfit_never_grows_with_phases_held(shape):
    A, targets, video = setting(shape=shape, samples=30)
    goal = targets.y * phase(A.forward(video.frames()))
    before = float((A.forward(video.frames()) - goal).norm())
    after = float((DenseBlocks(A, targets, chunk_bytes=2**20).sweep(video, fixed(video)) - goal).norm())
    assert after <= before


@pytest.mark.parametrize(("dtype", "real"), [(KINDS[0], False), (KINDS[1], False), (KINDS[1], True)])
def test_conjugate_gradients_find_the_same_as_normal_equations(dtype, real):
    A, targets, video = setting(dtype, real=real)
    direct, iterated = video.copy(), video.copy()
    DenseBlocks(A, targets, chunk_bytes=2**20).sweep(direct, fixed(video))
    OperatorBlocks(A, targets, steps=60).sweep(iterated, fixed(video))
    torch.testing.assert_close(iterated.frames(), direct.frames(), atol=1e-8, rtol=1e-7)


def test_the_ridge_is_the_same_for_both_and_shrinks():
    A, targets, video = setting()
    plain = video.copy()
    DenseBlocks(A, targets, chunk_bytes=2**20).sweep(plain, fixed(video))
    targets.ridge = 5.0
    direct, iterated = video.copy(), video.copy()
    DenseBlocks(A, targets, chunk_bytes=2**20).sweep(direct, fixed(video))
    OperatorBlocks(A, targets, steps=60).sweep(iterated, fixed(video))
    torch.testing.assert_close(iterated.frames(), direct.frames(), atol=1e-8, rtol=1e-7)
    assert float(direct.frames().norm()) < float(plain.frames().norm())


def test_parts_of_the_frames_give_what_all_at_once_do():
    A, targets, video = setting()
    one, many = video.copy(), video.copy()
    DenseBlocks(A, targets, chunk_bytes=2**30).sweep(one, fixed(video))
    DenseBlocks(A, targets, chunk_bytes=1).sweep(many, fixed(video))
    torch.testing.assert_close(one.frames(), many.frames(), atol=1e-11, rtol=1e-11)


def test_one_matrix_for_all_frames_is_that_matrix_for_each():
    A, _, video = setting()
    shared = DenseMeasurement(A.A[0], image_shape=(5, 4))
    each = DenseMeasurement(A.A[:1].expand(6, -1, -1, -1))
    goal = shared.magnitudes(video.frames()) + 0.1
    one, other = video.copy(), video.copy()
    DenseBlocks(shared, Targets(goal, None, False), chunk_bytes=2**20).sweep(one, fixed(video))
    DenseBlocks(each, Targets(goal, None, False), chunk_bytes=2**20).sweep(other, fixed(video))
    torch.testing.assert_close(one.frames(), other.frames())


def test_orthonormalizing_changes_no_frame():
    _, _, video = setting(KINDS[1])
    video.factors[0] = 3 * video.factors[0] + 1
    frames = video.frames()
    video.orthonormalize()
    torch.testing.assert_close(video.frames(), frames)
    basis = video.basis().flatten(1)
    torch.testing.assert_close(basis.conj() @ basis.mT, torch.eye(3, dtype=basis.dtype))
    K = video.metric(0)
    torch.testing.assert_close(K.diagonal().real.sum(), frames.abs().square().sum())


def test_growing_changes_no_frame_and_opens_directions():
    _, _, video = setting()
    grown = video.grown((4, 3, 5))
    assert grown.ranks == (4, 3, 5)
    torch.testing.assert_close(grown.frames(), video.frames())
    assert torch.linalg.matrix_rank(grown.factors[0]) == 4
    torch.testing.assert_close(video.tucker().dense().movedim(-1, 0), video.frames())
