import pytest
import torch

from lowdim.errors import DataError, Diverged, RunError, ShapeError
from lowdim.inverse import (
    DCDP,
    DPS,
    CallablePrior,
    GMMPrior,
    Inpainting,
    LatentPrior,
    Pooling,
    Problem,
    Reconstruction,
    as_operator,
    evaluate,
    linear_alphas_cumprod,
)
from lowdim.inverse.consistency import prox


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(count, seed=0):
    x = torch.cumsum(torch.cumsum(noise(count, 1, 8, 8, seed=seed), -1), -2)
    return 0.7 * x / x.abs().amax((1, 2, 3), keepdim=True)


@pytest.fixture(scope="module")
def prior():
    return GMMPrior.fit(smooth(1500), components=3, max_iter=10)


@pytest.fixture(scope="module")
def images(prior):
    return prior.sample(6, seed=3)


def error(found, images):
    return float((found.image - images).square().mean())


def test_one_step_is_what_the_page_says(prior, images):
    """Prox, noise, Tweedie, prox: by hand."""
    operator, sigma = Pooling(2), 0.05
    y = operator.measure(images, sigma=sigma, seed=0)
    found = DCDP(prior, steps=1, t0=0.3)(y, operator, sigma=sigma, seed=[5] * 6)
    problem, t = Problem.of(y, operator, sigma=sigma), 299
    v = prox(problem, torch.zeros_like(images), rho=sigma**2).x
    a = prior.alphas_cumprod[t]
    n = noise(1, 8, 8, seed=5).expand_as(v)
    x = prior.x0(a.sqrt() * v + (1 - a).sqrt() * n, t).clamp(-1, 1)
    s = min(1.0, float(((1 - a) / a).sqrt()))
    torch.testing.assert_close(found.image, prox(problem, x, rho=sigma**2 / s**2).x)
    purified = DCDP(prior, steps=1, t0=0.3, final="purified")(y, operator, sigma=sigma, seed=[5] * 6)
    torch.testing.assert_close(purified.image, x)
    before = DCDP(prior, steps=1, t0=0.3, final="before")(y, operator, sigma=sigma, seed=[5] * 6)
    torch.testing.assert_close(before.image, v)
    assert before.network_calls == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"purify": "ddim", "ddim_steps": 3},
        {"solver": "sgd"},
        {"solver": "adam"},
        {"solver": "gn"},
        {"schedule": "cosine", "t_end": 0.05},
        {"average": 2},
    ],
    ids=str,
)
def test_every_variant_beats_the_start_and_meets_its_data(prior, images, options):
    operator = Inpainting.random((8, 8), missing=0.5, seed=0)
    y = operator.measure(images, sigma=0.05, seed=0)
    found = DCDP(prior, steps=10, **options)(y, operator, sigma=0.05, seed=0)
    assert error(found, images) < 0.8 * float((y - images).square().mean())
    assert float(found.residual.max()) < 4
    assert found.curve.shape == (10, 6)
    again = DCDP(prior, steps=10, **options)(y, operator, sigma=0.05, seed=0)
    assert torch.equal(found.image, again.image)


def test_without_noise_is_nearer_to_the_posterior_mean(prior):
    images = prior.sample(64, seed=4)
    operator = Inpainting.random((8, 8), missing=0.6, seed=0)
    y = operator.measure(images, sigma=0.02, seed=0)
    best = prior.posterior_mean(y, operator, sigma=0.02)
    usual = DCDP(prior, steps=10)(y, operator, sigma=0.02, seed=0)
    ours = DCDP.without_noise(prior, steps=10)(y, operator, sigma=0.02, seed=0)
    assert ours.network_calls == usual.network_calls == 10
    assert float((ours.image - best).square().mean()) < float((usual.image - best).square().mean())
    # No noise is drawn: every seed gives the same.
    assert torch.equal(ours.image, DCDP.without_noise(prior)(y, operator, sigma=0.02, seed=9).image)


def test_the_mean_of_runs_is_that_of_their_images(prior, images):
    y = Pooling(2).measure(images, sigma=0.05, seed=0)
    two = DCDP(prior, steps=5, average=2)(y, Pooling(2), sigma=0.05, seed=0)
    one = DCDP(prior, steps=5)(y, Pooling(2), sigma=0.05, seed=0)
    other = 2 * two.image - one.image
    assert float((other - one.image).square().mean()) > 1e-4
    assert float(Problem.of(y, Pooling(2), sigma=0.05).residual(other).max()) < 4
    assert two.network_calls == 10


def test_a_consistency_model_purifies(prior, images):
    y = Pooling(2).measure(images, sigma=0.05, seed=0)
    asked = []

    def model(x, sigma):  # what the mixture's denoiser does, in the other convention
        asked.append(float(sigma[0]))
        abar = 1 / (1 + sigma**2).reshape(-1, 1, 1, 1)
        t = int((prior.alphas_cumprod - abar.flatten()[0]).abs().argmin())
        return prior.x0(x * abar.sqrt(), t)

    counted = CallablePrior(lambda x, t: x, prior.alphas_cumprod)
    found = DCDP(counted, steps=5, purify=model)(y, Pooling(2), sigma=0.05, seed=0)
    usual = DCDP(prior, steps=5)(y, Pooling(2), sigma=0.05, seed=0)
    torch.testing.assert_close(found.image, usual.image, rtol=0, atol=1e-4)
    assert found.network_calls == 5
    assert asked == sorted(asked, reverse=True)


def test_a_warm_start_is_used(prior, images):
    y = Pooling(2).measure(images, sigma=0.05, seed=0)
    solver = DCDP(prior, steps=1, t0=0.02)
    warm = solver(y, Pooling(2), sigma=0.05, x_init=images, seed=0)
    cold = solver(y, Pooling(2), sigma=0.05, seed=0)
    assert error(warm, images) < 0.5 * error(cold, images)


def test_the_range_of_values_is_the_operators(prior, images):
    ours, theirs = Pooling(2), Pooling(2, value_range=(0, 1))
    y = ours.measure(images, sigma=0.05, seed=0)
    y01 = (y + 1) / 2
    found = DCDP(prior, steps=5)(y01, theirs, sigma=0.025, seed=0)
    usual = DCDP(prior, steps=5)(y, ours, sigma=0.05, seed=0)
    torch.testing.assert_close(2 * found.image - 1, usual.image, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.residual, usual.residual, rtol=1e-3, atol=1e-3)


def test_progress_is_told(prior, images):
    y = Pooling(2).measure(images, sigma=0.05, seed=0)
    told = []
    DCDP(prior, steps=3, average=2)(y, Pooling(2), sigma=0.05, callback=lambda *a: told.append(a))
    assert [(step, total) for step, total, _ in told] == [(k, 6) for k in range(1, 7)]
    assert told[0][2].shape == images.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"purify": "heun"}, "purify='heun'"),
        ({"final": "best"}, "final='best'"),
        ({"tau": 0}, "tau=0"),
        ({"weight": -1}, "weight=-1"),
        ({"noise": 2}, "noise=2"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"average": 0}, "average=0"),
        ({"ddim_steps": 1.5}, "ddim_steps=1.5"),
        ({"steps": 30, "t0": 0.02}, "more than the 20 times"),
    ],
)
def test_impossible_options_are_refused(prior, options, message):
    with pytest.raises(DataError, match=message):
        DCDP(prior, **options)


def test_priors_of_latents_are_sent_to_the_solvers_of_latents(prior):
    latent = LatentPrior(prior, encode=lambda x: x, decode=lambda z: z, factor=1)
    with pytest.raises(DataError, match="Use LatentDCDP"):
        DCDP(latent)
    with pytest.raises(DataError, match="Use LatentDPS"):
        DPS(latent)


def test_a_logarithm_asks_for_a_start(prior):
    operator = as_operator(lambda x: torch.log(x), image_shape=(1, 8, 8))
    y = torch.zeros(1, 1, 8, 8)
    with pytest.raises(DataError, match="Give an x_init"):
        DCDP(prior, steps=2)(y, operator, sigma=0.1)


def test_sigma_is_asked_for_and_images_must_fit(prior):
    with pytest.raises(DataError, match="Give sigma="):
        DCDP(prior)(torch.zeros(1, 1, 4, 4), Pooling(2))
    with pytest.raises(ShapeError, match=r"expected \(1, 8, 8\)"):
        DCDP(prior)(torch.zeros(1, 1, 8, 8), Pooling(2), sigma=0.1, x_init=torch.zeros(1, 1, 16, 16))


def test_dps_is_the_paper_s_step(prior, images):
    """One step from the last time, by hand."""
    y = Pooling(2).measure(images, sigma=0.05, seed=0)
    found = DPS(prior, steps=1, zeta=0.3)(y, Pooling(2), seed=[5] * 6)
    x = noise(1, 8, 8, seed=5).repeat(6, 1, 1, 1).requires_grad_(True)
    clean = prior.x0(x, 999).clamp(-1, 1)
    norms = (Pooling(2).A(clean) - y).flatten(1).norm(dim=1)
    (pull,) = torch.autograd.grad(norms.sum(), x)
    torch.testing.assert_close(found.image, (clean - 0.3 * pull).clamp(-1, 1).detach())
    assert found.network_calls == 1


def test_dps_samples_what_the_data_allow(prior, images):
    y = Pooling(2).measure(images, sigma=0.05, seed=0)
    found = DPS(prior, steps=100, zeta=1.0)(y, Pooling(2), sigma=0.05, seed=0)
    assert error(found, images) < float((images - images.mean((2, 3), keepdim=True)).square().mean())
    with pytest.raises(DataError, match="steps=0"):
        DPS(prior, steps=0)
    with pytest.raises(DataError, match="zeta=-1"):
        DPS(prior, zeta=-1)


def test_dps_that_diverges_is_told():
    prior = CallablePrior(lambda x, t: x * 1e30, linear_alphas_cumprod())
    with pytest.raises(Diverged, match="zeta"):
        DPS(prior, steps=5, zeta=float("inf"))(torch.ones(1, 1, 4, 4), Inpainting(torch.ones(4, 4)))


def test_a_reconstruction_is_saved_and_read(prior, images, tmp_path):
    y = Pooling(2).measure(images, sigma=0.05, seed=0)
    found = DCDP(prior, steps=3)(y, Pooling(2), sigma=0.05, seed=0)
    found.save(tmp_path)
    again = Reconstruction.load(tmp_path)
    for name in ("image", "curve", "iterations"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    torch.testing.assert_close(again.residual, found.residual)
    assert again.settings == found.settings
    assert again.latent is None
    (tmp_path / "reconstruction.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match="format 99"):
        Reconstruction.load(tmp_path)
    with pytest.raises(RunError, match="holds no reconstruction"):
        Reconstruction.load(tmp_path / "nowhere")


def test_a_table_of_solvers(prior, images):
    solvers = {"dcdp": DCDP(prior, steps=5), "none": DCDP(prior, steps=1, final="before")}
    operator = Inpainting.random((8, 8), missing=0.5, seed=0)
    table = evaluate(solvers, operator, images, sigma=0.05, seed=0, batch=4)
    assert table["network calls"].tolist() == [5, 0]
    assert table.loc["dcdp", "psnr"] > table.loc["none", "psnr"]
    whole = evaluate(solvers, operator, images, sigma=0.05, seed=0, batch=64)
    assert table["psnr"].tolist() == pytest.approx(whole["psnr"].tolist(), abs=1e-3)
    with pytest.raises(DataError, match="0 solvers"):
        evaluate({}, Pooling(2), images)
