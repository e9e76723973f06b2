"""The algebra of stochastic resampling."""

import math

import pytest
import torch

from lowdim.errors import DataError, ShapeError
from lowdim.inverse.resample import resample, resample_moments, resample_variance

PAIRS = [(0.05, 0.1), (0.3, 0.2), (0.01, 0.5), (1.0, 0.7), (0.02, 0.95)]


@pytest.mark.parametrize(("s2", "alpha_bar"), PAIRS)
def test_moments_are_those_of_the_product_of_two_gaussians(s2, alpha_bar):
    g = torch.Generator().manual_seed(0)
    z0, zt = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    mean, variance = resample_moments(z0, zt, alpha_bar=alpha_bar, s2=s2)
    precisions = 1 / (1 - alpha_bar), 1 / s2
    weighted = (math.sqrt(alpha_bar) * z0 * precisions[0] + zt * precisions[1]) / sum(precisions)
    torch.testing.assert_close(mean, weighted)
    assert variance == pytest.approx(1 / sum(precisions))
    assert variance < 1 - alpha_bar


@pytest.mark.parametrize(("s2", "alpha_bar"), PAIRS)
def test_draws_have_these_moments(s2, alpha_bar):
    n = 200_000
    z0, zt = torch.full((n,), 1.3, dtype=torch.float64), torch.full((n,), -0.4, dtype=torch.float64)
    noise = torch.randn(n, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    drawn = resample(z0, zt, alpha_bar=alpha_bar, s2=s2, noise=noise)
    mean, variance = resample_moments(z0[:1], zt[:1], alpha_bar=alpha_bar, s2=s2)
    assert abs(drawn.mean() - mean) < 3 * math.sqrt(variance / n)
    assert abs(drawn.var() - variance) < 3 * variance * math.sqrt(2 / n)


def test_limits_are_encoding_and_the_present_sample():
    g = torch.Generator().manual_seed(1)
    z0, zt, noise = torch.randn(3, 4, 2, 4, 4, generator=g)
    encoded = math.sqrt(0.6) * z0 + math.sqrt(0.4) * noise
    for s2 in (1e8, math.inf):
        drawn = resample(z0, zt, alpha_bar=0.6, s2=s2, noise=noise)
        torch.testing.assert_close(drawn, encoded, atol=1e-4, rtol=0)
    torch.testing.assert_close(resample(z0, zt, alpha_bar=0.6, s2=1e-8, noise=noise), zt, atol=1e-3, rtol=0)
    assert torch.equal(resample(z0, zt, alpha_bar=0.6, s2=0.0, noise=noise), zt)


def test_the_last_step_returns_the_clean_latent():
    z0, zt = torch.ones(1, 2), torch.zeros(1, 2)
    s2 = resample_variance(0.99, next_alpha_bar=1.0)
    assert s2 == 0
    mean, variance = resample_moments(z0, zt, alpha_bar=1.0, s2=s2)
    assert torch.equal(mean, z0)
    assert variance == 0


def test_schedules_differ_in_one_denominator():
    ddpm = resample_variance(0.2, next_alpha_bar=0.3, gamma=40.0)
    paper = resample_variance(0.2, next_alpha_bar=0.3, gamma=40.0, schedule="paper")
    beta = 1 - 0.2 / 0.3
    assert ddpm == pytest.approx(40 * (0.7 / 0.8) * beta)
    assert paper == pytest.approx(40 * (0.7 / 0.2) * beta)
    assert resample_variance(0.2, next_alpha_bar=0.3, gamma=math.inf) == math.inf


def test_ddpm_schedule_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_small")
    abar = scheduler.alphas_cumprod
    for t in (10, 400, 999):
        ours = resample_variance(float(abar[t]), next_alpha_bar=float(abar[t - 1]), gamma=1.0)
        assert ours == pytest.approx(float(scheduler._get_variance(t)), rel=1e-3)


def test_bad_input_is_refused():
    z = torch.zeros(1, 2)
    with pytest.raises(DataError, match="schedule='cosine' is unknown"):
        resample_variance(0.1, next_alpha_bar=0.2, schedule="cosine")
    with pytest.raises(DataError, match="no step towards less noise"):
        resample_variance(0.2, next_alpha_bar=0.1)
    with pytest.raises(DataError, match="gamma=nan"):
        resample_variance(0.1, next_alpha_bar=0.2, gamma=math.nan)
    with pytest.raises(DataError, match="alpha_bar=0"):
        resample_moments(z, z, alpha_bar=0, s2=1.0)
    with pytest.raises(ShapeError, match="same images"):
        resample_moments(z, torch.zeros(2, 2), alpha_bar=0.5, s2=1.0)
