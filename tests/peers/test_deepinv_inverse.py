"""deepinv: its physics as our operators, our proximal maps beside its own, our solvers in its `test`."""

import pytest
import torch

from lowdim.errors import DataError
from lowdim.inverse import (
    DCDP,
    DPS,
    BlurDecimation,
    CallablePrior,
    CircularBlur,
    GMMPrior,
    Inpainting,
    Pooling,
    Problem,
    adjoint_error,
    as_operator,
    gaussian_kernel,
    linear_alphas_cumprod,
    prox,
)
from lowdim.inverse.deepinv import (
    DDRM,
    DiffPIR,
    PseudoInverse,
    TotalVariation,
    as_denoiser,
    as_reconstructor,
    tomography,
)
from lowdim.inverse.metrics import psnr

deepinv = pytest.importorskip("deepinv", reason="deepinv is not installed")

SHAPE = (1, 16, 16)
KERNEL = gaussian_kernel(1.5)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask():
    return (torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) > 0.6).float()


PAIRS = {
    "inpainting": lambda: (
        Inpainting(mask()),
        deepinv.physics.Inpainting(img_size=SHAPE, mask=mask()[None]),
    ),
    "blur": lambda: (
        CircularBlur(KERNEL),
        deepinv.physics.BlurFFT(img_size=SHAPE, filter=KERNEL[None, None]),
    ),
    "decimation": lambda: (
        BlurDecimation(KERNEL, 2),
        deepinv.physics.Downsampling(img_size=SHAPE, filter=KERNEL[None, None], factor=2, padding="circular"),
    ),
}


@pytest.mark.parametrize("rho", [0.03, 0.3])
@pytest.mark.parametrize("name", PAIRS)
def test_operators_and_proximal_maps_are_those_of_deepinv(name, rho):
    ours, theirs = PAIRS[name]()
    x, z = noise(3, *SHAPE), noise(3, *SHAPE, seed=1)
    y = theirs.A(x)
    torch.testing.assert_close(ours.A(x), y, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.A_adjoint(y), theirs.A_adjoint(y), rtol=0, atol=1e-5)
    found = prox(Problem.of(y, ours, sigma=0.1), z, rho=rho).x
    torch.testing.assert_close(found, theirs.prox_l2(z, y, gamma=1 / rho), rtol=0, atol=1e-5)
    through = prox(Problem.of(y, as_operator(theirs, value_range=(-1, 1)), sigma=0.1), z, rho=rho).x
    torch.testing.assert_close(found, through, rtol=0, atol=1e-5)


PHYSICS = {
    "blur with edges": lambda: deepinv.physics.Blur(filter=KERNEL[None, None], padding="valid"),
    "tomography": lambda: deepinv.physics.Tomography(angles=6, img_width=16, normalize=True),
    "bare decimation": lambda: deepinv.physics.Downsampling(img_size=SHAPE, filter=None, factor=2),
    "decimation with edges": lambda: deepinv.physics.Downsampling(
        img_size=SHAPE, filter="gaussian", factor=2, padding="valid"
    ),
    "compressed sensing": lambda: deepinv.physics.CompressedSensing(m=40, img_size=SHAPE),
    "stacked": lambda: deepinv.physics.stack(
        deepinv.physics.Inpainting(img_size=SHAPE, mask=mask()[None]),
        deepinv.physics.Blur(filter=KERNEL[None, None], padding="valid"),
    ),
    "MRI": lambda: deepinv.physics.MRI(mask=mask().expand(1, 2, 16, 16), img_size=(2, 16, 16)),
    "denoising": lambda: deepinv.physics.Denoising(),
}


@pytest.mark.parametrize("name", PHYSICS)
def test_a_linear_physics_is_taken_as_it_is(name):
    physics = PHYSICS[name]()
    shape = (2, 16, 16) if name == "MRI" else SHAPE
    operator = as_operator(physics, image_shape=shape)
    assert operator.linear
    assert operator.value_range == (0, 1)
    x = noise(3, *shape)
    assert adjoint_error(operator, x) < 1e-4
    y = operator.A(x)
    problem = Problem.of(physics.A(x), operator, sigma=0.1)
    found = prox(problem, torch.zeros_like(x), rho=0.1, max_iter=300, tol=1e-6).x
    # The gradient of what is minimized vanishes; the problem has moved to [-1, 1].
    gradient = operator.A_adjoint(operator.A(found) - problem.y) + 0.1 * found
    assert float(gradient.abs().max()) < 1e-4 * max(float(operator.A_adjoint(y).abs().max()), 1)


def test_nonlinear_physics_are_told_apart_and_solved():
    generator = torch.Generator().manual_seed(0)
    physics = deepinv.physics.RandomPhaseRetrieval(m=400, img_size=SHAPE, rng=generator)
    operator = as_operator(lambda x: physics.A(x.to(torch.complex64)), image_shape=SHAPE, value_range=(0, 1))
    assert not operator.linear
    x = 0.5 + 0.1 * noise(2, *SHAPE)
    prior = CallablePrior(lambda x, t: torch.zeros_like(x), linear_alphas_cumprod())
    start = torch.full_like(x, 0.5)
    y = operator.A(x)
    solver = DCDP(prior, steps=1, solver="gn", t0=0.01, final="consistent")
    found = solver(y, operator, sigma=1e-3, x_init=start, seed=0)
    assert float(Problem.of(y, operator, sigma=1e-3, x_init=start).residual(2 * start - 1).min()) > 100
    assert float(found.residual.max()) < 2


def test_a_complex_operator_has_real_images():
    physics = deepinv.physics.MRI(mask=mask().expand(1, 2, 16, 16), img_size=(2, 16, 16))

    def k_space(x):  # one real channel in, complex measurements out
        y = physics.A(torch.cat([x, torch.zeros_like(x)], 1))
        return torch.complex(y[:, 0], y[:, 1])

    operator = as_operator(k_space, linear=True, image_shape=SHAPE)
    x = noise(2, *SHAPE)
    assert adjoint_error(operator, x) < 1e-5
    y = operator.measure(x, sigma=0.01, seed=0)
    problem = Problem.of(y, operator, sigma=0.01)
    found = prox(problem, torch.zeros_like(x), rho=1e-3, max_iter=200).x
    assert not found.is_complex()
    assert float(problem.residual(found).max()) < 1.5


def prior():
    images = 0.3 * torch.cumsum(noise(500, 1, 8, 8), -1).clamp(-3, 3)
    return GMMPrior.fit(images, components=2, max_iter=5)


def test_a_known_noise_is_read_and_rescaled():
    physics = deepinv.physics.Denoising(noise_model=deepinv.physics.GaussianNoise(0.05))
    problem = Problem.of(torch.rand(1, 1, 8, 8), physics)
    assert problem.sigma == pytest.approx(0.1)


def test_deepinv_tests_our_solver():
    physics = deepinv.physics.Inpainting(
        img_size=(1, 8, 8), mask=0.5, noise_model=deepinv.physics.GaussianNoise(0.01)
    )
    p = prior()
    x = (p.sample(4, seed=0).clamp(-1, 1) + 1) / 2
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, physics(x)), batch_size=2)
    model = as_reconstructor(DCDP(p, steps=10))
    shown = deepinv.test(
        model, data, physics, metrics=deepinv.loss.metric.PSNR(), verbose=False, show_progress_bar=False
    )
    assert shown["PSNR"] > shown["PSNR no learning"] + 3


def test_psnr_is_that_of_deepinv():
    x, y = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    theirs = deepinv.loss.metric.PSNR(max_pixel=1)(x, y)
    torch.testing.assert_close(psnr(x, y, value_range=(0, 1)), theirs)


def test_a_prior_denoises_for_deepinv():
    p = prior()
    x = (p.sample(8, seed=0) + 1) / 2
    noisy = x + 0.2 * noise(*x.shape)
    assert float((as_denoiser(p)(noisy, 0.2) - x).square().mean()) < 0.5 * float((noisy - x).square().mean())


@pytest.mark.parametrize("operator", [Inpainting(mask()[:8, :8]), Pooling(2)], ids=["inpainting", "pooling"])
def test_baselines_answer_like_our_solvers(operator):
    p = prior()
    x = p.sample(4, seed=0).clamp(-1, 1)
    y = operator.measure(x, sigma=0.02, seed=0)
    solvers = {
        "pinv": PseudoInverse(),
        "tv": TotalVariation(weight=0.005, steps=30),
        "diffpir": DiffPIR(p, steps=20),
        "ddrm": DDRM(p, steps=20),
        "dps": DPS(p, steps=20),
    }
    found = {}
    for name, solver in solvers.items():
        if name == "ddrm" and not isinstance(operator, Inpainting):
            with pytest.raises(DataError, match="singular value"):
                solver(y, operator, sigma=0.02, seed=0)
            continue
        result = solver(y, operator, sigma=0.02, seed=0)
        again = solver(y, operator, sigma=0.02, seed=0)
        assert torch.equal(result.image, again.image)
        assert result.network_calls == (0 if name in ("pinv", "tv") else 20)
        assert bool(torch.isfinite(result.residual).all())
        found[name] = float((result.image - x).square().mean())
    if "ddrm" in found:
        assert max(found["ddrm"], found["diffpir"], found["tv"]) < found["pinv"]
    assert max(found["pinv"], found["tv"]) < float(x.square().mean())


def test_tomography_takes_square_images_only():
    operator = tomography((1, 16, 16), angles=6)
    assert adjoint_error(operator, torch.zeros(2, 1, 16, 16)) < 1e-4
    with pytest.raises(DataError, match="not square"):
        tomography((1, 16, 12))
