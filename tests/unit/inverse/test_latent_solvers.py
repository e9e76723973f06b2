"""ReSample, latent DCDP and latent DPS on digits."""

import json

import pytest
import torch

from lowdim.errors import DataError, LowdimWarning, ShapeError
from lowdim.inverse import LatentDCDP, LatentDPS, LatentPrior, Pooling, ReSample, psnr
from lowdim.inverse.digits import digits, latent_digits_prior

SIGMA = 0.02
QUICK = {"steps": 30, "skip": 5, "lookahead": 2, "max_iter": (60, 60), "lr": (1e-2, 2e-2)}
SHORT = {**QUICK, "max_iter": (10, 10)}

SOLVERS = {
    "resample": lambda prior: ReSample(prior, **QUICK),
    "resample-gn": lambda prior: ReSample(prior, latent_solver="gn", **QUICK),
    "dcdp": lambda prior: LatentDCDP(prior, steps=6),
    "dcdp-latent": lambda prior: LatentDCDP(prior, steps=3, consistency="latent", final=True, max_iter=50),
    "dps": lambda prior: LatentDPS(prior, steps=20),
}


@pytest.fixture(scope="module")
def images():
    return digits("test")[:6]


@pytest.fixture(scope="module")
def prior():
    return latent_digits_prior()


def measured(x):
    return Pooling(2).measure(x, sigma=SIGMA, seed=5)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_image_does_not_depend_on_its_batch(name, images, prior):
    solver, y = SOLVERS[name](prior), measured(images)
    together = solver(y, Pooling(2), sigma=SIGMA, seed=11)
    for b in (0, 5):
        alone = solver(y[b : b + 1], Pooling(2), sigma=SIGMA, seed=11 + b)
        torch.testing.assert_close(alone.image, together.image[b : b + 1], atol=1e-4, rtol=0)


def test_hard_consistency_meets_the_data_and_soft_guidance_does_not(images, prior):
    y = measured(images)
    hard = ReSample(prior, **{**QUICK, "max_iter": (60, 400)})(y, Pooling(2), sigma=SIGMA, seed=0)
    soft = LatentDPS(prior, steps=30)(y, Pooling(2), sigma=SIGMA, seed=0)
    assert int((hard.residual <= 1).sum()) >= 5  # one of them is at the limit of the autoencoder
    assert float(soft.residual.mean()) > 5
    assert float((psnr(hard.image, images) - psnr(soft.image, images)).mean()) > 1
    torch.testing.assert_close(hard.image, prior.decode(hard.latent).clamp(-1, 1))


def test_network_calls_are_those_of_the_schedule(images, prior):
    y = measured(images)
    # Fits at 20, 15, 10 and 5 of 30 steps to go, each 2 steps ahead.
    found = ReSample(prior, **QUICK)(y, Pooling(2), sigma=SIGMA, seed=0)
    assert found.network_calls == 30 + 4 * 2
    assert len(found.curve) == 5
    assert LatentDCDP(prior, steps=7)(y, Pooling(2), sigma=SIGMA).network_calls == 7
    found = LatentDCDP(prior, steps=2, purify="ddim", ddim_steps=5)(y, Pooling(2), sigma=SIGMA)
    assert found.network_calls == 5 + 1  # times 399 and 1


def test_pixel_consistency_takes_no_gradient_of_the_decoder(images):
    prior, y = latent_digits_prior(), measured(images)
    LatentDCDP(prior, steps=5)(y, Pooling(2), sigma=SIGMA, seed=0)
    options = {**QUICK, "guidance": 0, "consistency": "pixel", "final": False}
    ReSample(prior, **options)(y, Pooling(2), sigma=SIGMA, seed=0)
    assert prior.decoder_gradients.batches == 0


def test_infinite_gamma_is_stochastic_encoding(images, prior):
    y = measured(images)
    one = ReSample(prior, gamma=float("inf"), **SHORT)(y, Pooling(2), sigma=SIGMA, seed=3)
    other = ReSample(prior, reencode="encode", **SHORT)(y, Pooling(2), sigma=SIGMA, seed=3)
    assert torch.equal(one.image, other.image)
    third = ReSample(prior, reencode="ddim", **SHORT)(y, Pooling(2), sigma=SIGMA, seed=3)
    assert not torch.equal(one.image, third.image)


def test_a_seed_is_a_result_and_settings_are_json(images, prior):
    y = measured(images)
    for name in ("resample", "dcdp", "dps"):
        solver = SOLVERS[name](prior)
        one, two = (solver(y[:2], Pooling(2), sigma=SIGMA, seed=4) for _ in range(2))
        assert torch.equal(one.image, two.image)
        json.dumps(one.settings, allow_nan=False)


def test_a_callback_sees_images_or_only_counts(images, prior):
    y, seen = measured(images), []
    LatentDPS(prior, steps=4)(y, Pooling(2), callback=lambda *told: seen.append(told))
    assert [step for step, _, _ in seen] == [1, 2, 3, 4]
    assert seen[0][2].shape == images.shape

    class Counts:
        images = False

        def __call__(self, step, steps, latents):
            seen.append(latents.shape)

    before = prior.decoder_calls.batches
    LatentDCDP(prior, steps=3)(y, Pooling(2), sigma=SIGMA, callback=Counts())
    assert seen[-1] == (6, 2, 4, 4)
    assert prior.decoder_calls.batches - before == 4  # steps 2 and 3, the image, and what it is worth


def test_an_autoencoder_that_returns_nothing_is_told(images):
    good = latent_digits_prior()
    bad = LatentPrior(good.prior, encode=good.encode, decode=lambda z: good.decode(-z))
    y = measured(images)
    with pytest.warns(LowdimWarning, match="autoencoder limits"):
        LatentDPS(bad, steps=2)(y, Pooling(2), seed=0)
    found = LatentDPS(good, steps=2)(y, Pooling(2), seed=0)
    assert found.settings["autoencoder_psnr"] > 20


def test_a_warm_start_begins_at_its_image(images, prior):
    y = measured(images)
    warm = LatentDCDP(prior, steps=2, t0=0.02)(y, Pooling(2), sigma=SIGMA, seed=0, x_init=images)
    cold = LatentDCDP(prior, steps=2, t0=0.02)(y, Pooling(2), sigma=SIGMA, seed=0)
    assert float(psnr(warm.image, images).mean()) > float(psnr(cold.image, images).mean()) + 3


def test_bad_input_is_refused(images, prior):
    y = measured(images)
    with pytest.raises(DataError, match="expected a LatentPrior"):
        LatentDPS(prior.prior, steps=5)(y, Pooling(2))
    with pytest.raises(DataError, match="Give sigma"):
        ReSample(prior, **QUICK)(y, Pooling(2))
    with pytest.raises(ShapeError, match="A gives"):
        ReSample(prior, **QUICK)(y, Pooling(4), sigma=SIGMA)
    with pytest.raises(DataError, match="NaN"):
        LatentDCDP(prior)(y * float("nan"), Pooling(2), sigma=SIGMA)
    with pytest.raises(DataError, match="sigma=-1"):
        LatentDPS(prior, steps=5)(y, Pooling(2), sigma=-1)
    with pytest.raises(DataError, match="gradient"):
        LatentDPS(prior, steps=5)(y, lambda x: Pooling(2).A(x.detach()), sigma=SIGMA)


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 0},
        {"steps": 1000},
        {"skip": 0},
        {"lookahead": -1},
        {"gamma": -1},
        {"schedule": "cosine"},
        {"reencode": "no"},
        {"consistency": "none"},
        {"guidance": -1},
        {"tau": 0},
        {"latent_solver": "sgd"},
        {"lr": (0, 1)},
        {"max_iter": (10,)},
    ],
)
def test_options_out_of_range_are_named(option, prior):
    (name,) = option
    with pytest.raises(DataError, match=f"ReSample: {name}="):
        ReSample(prior, **option)


@pytest.mark.parametrize(
    "option",
    [{"purify": "x"}, {"consistency": "both"}, {"tau": 0}, {"max_iter": 0}, {"latent_solver": "sgd"}],
)
def test_options_of_latent_dcdp_out_of_range_are_named(option, prior):
    (name,) = option
    with pytest.raises(DataError, match=f"LatentDCDP: {name}="):
        LatentDCDP(prior, **option)


def test_a_consistency_model_purifies_latents(images, prior):
    y = measured(images)

    def model(z, sigma):  # what the prior's denoiser does, in the other convention
        abar = 1 / (1 + sigma**2).reshape(-1, 1, 1, 1)
        t = int((prior.alphas_cumprod - abar.flatten()[0]).abs().argmin())
        return prior.prior.x0(z * abar.sqrt(), t)

    solver = LatentDCDP(prior, steps=4, purify=model)
    found = solver(y, Pooling(2), sigma=SIGMA, seed=0)
    usual = LatentDCDP(prior, steps=4)(y, Pooling(2), sigma=SIGMA, seed=0)
    torch.testing.assert_close(found.image, usual.image, rtol=0, atol=1e-4)
    assert found.network_calls == 4
    assert solver.settings["purify"] == "consistency"
