"""Latents that fit the data: Adam and Gauss-Newton, image by image."""

import pytest
import torch

from lowdim.errors import DataError, Diverged
from lowdim.inverse import CallablePrior, Problem, as_operator, linear_alphas_cumprod
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.latent_consistency import fit_latents

SIGMA = 0.05
TARGET = 2 * SIGMA**2


def latent_prior():
    g = torch.Generator().manual_seed(0)
    W = torch.randn(16, 6, generator=g) / 4
    latents = CallablePrior(lambda z, t: z, linear_alphas_cumprod(), shape=(6, 1, 1))
    return LatentPrior(
        latents,
        encode=lambda x: (x.flatten(1) @ W).reshape(-1, 6, 1, 1),
        decode=lambda z: torch.tanh(z.flatten(1) @ W.T).reshape(-1, 1, 4, 4),
    )


def problem(prior, *, batch=5, operator=None, sigma=SIGMA):
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        x = prior.decode(torch.randn(batch, 6, 1, 1, generator=g))
    A = operator or (lambda x: torch.tanh(2 * x))
    y = A(x)
    y = y + SIGMA * torch.randn(y.shape, generator=g)
    return Problem.of(y, A, sigma=sigma, image_shape=(1, 4, 4))


@pytest.mark.parametrize("method", ["adam", "gn"])
def test_every_image_stops_at_its_noise_level(method):
    prior = latent_prior()
    task, z = problem(prior), torch.zeros(5, 6, 1, 1)
    with torch.no_grad():  # as a solver calls it
        fit = fit_latents(z, task, prior, target=TARGET, method=method, max_iter=3000, lr=2e-2)
    with torch.no_grad():
        torch.testing.assert_close(task.mean_misfit(prior.decode(fit.z)), fit.misfit)
    assert bool((fit.misfit <= TARGET).all())
    assert len(set(fit.decoded.tolist())) > 1  # not all at once


@pytest.mark.parametrize("method", ["adam", "gn"])
def test_a_batch_is_its_images(method):
    prior = latent_prior()
    task, z = problem(prior), torch.zeros(5, 6, 1, 1)
    options = {"target": TARGET, "method": method, "max_iter": 3000, "lr": 2e-2}
    together = fit_latents(z, task, prior, **options)
    for b in range(5):
        one = Problem(task.operator, task.y[b : b + 1], SIGMA, (1, 1, 4, 4))
        alone = fit_latents(z[b : b + 1], one, prior, **options)
        torch.testing.assert_close(alone.z, together.z[b : b + 1], atol=1e-4, rtol=0)
        assert alone.decoded[0] == together.decoded[b]


def test_stopped_images_are_decoded_no_more():
    prior = latent_prior()
    task = problem(prior)
    fit = fit_latents(torch.zeros(5, 6, 1, 1), task, prior, target=TARGET, max_iter=3000, lr=2e-2)
    assert prior.decoder_calls.images - 5 == int(fit.decoded.sum())  # 5 made the data
    assert prior.decoder_calls.images < 5 * prior.decoder_calls.batches


def test_gauss_newton_needs_fewer_decoder_calls_than_adam():
    prior = latent_prior()
    task, z = problem(prior), torch.zeros(5, 6, 1, 1)
    gn, adam = (
        fit_latents(z, task, prior, target=TARGET, method=m, max_iter=2000, lr=5e-3) for m in ("gn", "adam")
    )
    assert 3 * gn.decoded.sum() < adam.decoded.sum()


def test_gauss_newton_ends_where_no_more_is_to_be_gained():
    """The noise is out of reach of 6 latents for 16 numbers; the least misfit is that of a patient Adam."""
    prior = latent_prior()
    task, z = problem(prior), torch.zeros(5, 6, 1, 1)
    gn, adam = (
        fit_latents(z, task, prior, target=1e-9, method=m, max_iter=2000, lr=2e-2) for m in ("gn", "adam")
    )
    assert bool((adam.misfit > 1e-9).all())  # out of reach indeed
    assert bool((gn.misfit <= 1.05 * adam.misfit).all())
    assert int(gn.iterations.max()) <= 12


def test_every_pass_through_the_decoder_counts():
    """Forward, with its adjoint, and twice the adjoint, which is the Jacobian."""
    passes = 0

    class Adjoint(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            nonlocal passes
            passes += 1
            return g

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal passes
            passes += 1
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            nonlocal passes
            passes += 1
            return Adjoint.apply(g)

    prior = latent_prior()
    task, inner = problem(prior, batch=1), prior._decode
    prior._decode = lambda z: inner(Counted.apply(z))
    fit = fit_latents(torch.zeros(1, 6, 1, 1), task, prior, target=TARGET, method="gn", max_iter=3000)
    assert int(fit.decoded) == passes


def test_a_mask_of_every_image_stays_with_its_image():
    prior = latent_prior()
    masks = torch.arange(5 * 16).reshape(5, 1, 4, 4) % 3 != 0
    task = problem(prior, operator=lambda x: x * masks)
    fit = fit_latents(torch.zeros(5, 6, 1, 1), task, prior, target=TARGET, max_iter=3000, lr=2e-2)
    with torch.no_grad():
        residual = ((prior.decode(fit.z) * masks - task.y) ** 2).flatten(1).mean(1)
    assert bool((residual <= TARGET * (1 + 1e-5)).all())


def test_complex_measurements_are_fitted():
    prior = latent_prior()
    task = problem(prior, operator=lambda x: torch.fft.fft2(x, norm="ortho"))
    for method in ("adam", "gn"):
        fit = fit_latents(
            torch.zeros(5, 6, 1, 1), task, prior, target=TARGET, method=method, max_iter=3000, lr=2e-2
        )
        assert bool((fit.misfit <= TARGET).all())


@pytest.mark.parametrize("method", ["adam", "gn"])
def test_an_operator_without_gradient_is_named(method):
    prior = latent_prior()
    task = problem(prior, operator=lambda x: x.detach() + 1)
    with pytest.raises(DataError, match=r"gradient of .* is None"):
        fit_latents(torch.zeros(5, 6, 1, 1), task, prior, target=1e-6, method=method)


def test_a_vanishing_gradient_is_named():
    prior = latent_prior()
    task = problem(prior, operator=lambda x: torch.round(x) + 0 * x + 3)
    with pytest.raises(DataError, match="zero everywhere"):
        fit_latents(torch.zeros(5, 6, 1, 1), task, prior, target=1e-6)


def test_a_step_that_is_too_long_is_told():
    prior = latent_prior()

    def steep(x):
        return torch.exp(20 * x)

    task = Problem(as_operator(steep), torch.ones(2, 1, 4, 4), SIGMA, (2, 1, 4, 4))
    with pytest.raises(Diverged, match="Lower lr"):
        fit_latents(torch.full((2, 6, 1, 1), 1e-3), task, prior, target=1e-12, lr=1e4)
