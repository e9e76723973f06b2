"""A diffusion of latents and its autoencoder as one prior."""

import pytest
import torch

from lowdim.errors import DataError, ShapeError
from lowdim.inverse import CallablePrior, LatentPrior, linear_alphas_cumprod


def latents():
    return CallablePrior(lambda z, t: z, linear_alphas_cumprod(), shape=(1, 2, 2))


def half(x):
    return x[..., ::2, ::2]


def double(z):
    return z.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_scaling_and_shift_stand_between_encoder_and_diffusion():
    prior = LatentPrior(latents(), encode=half, decode=double, scaling=0.5, shift=3.0, factor=2)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(prior.encode(x), (half(x) - 3) * 0.5)
    torch.testing.assert_close(prior.decode(prior.encode(x)), double(half(x)))
    assert prior.image_shape == (1, 4, 4)
    assert prior.latent_shape(x) == (1, 2, 2)


def test_calls_are_counted_where_they_cost():
    prior = LatentPrior(latents(), encode=half, decode=double)
    z = torch.zeros(3, 1, 2, 2)
    prior.decode(z)
    prior.decode(z.requires_grad_())
    prior.eps(z, 5)
    prior.encode(torch.zeros(2, 1, 4, 4))
    assert (prior.decoder_calls.images, prior.decoder_gradients.images) == (6, 3)
    assert (prior.calls.images, prior.encoder_calls.images) == (3, 2)
    assert prior.prior.calls.images == 0


def test_latents_are_what_the_diffusion_says():
    prior = LatentPrior(latents(), encode=half, decode=double)
    z = torch.full((1, 1, 2, 2), 5.0)
    torch.testing.assert_close(prior.eps(z, 100), z)  # not clamped
    with pytest.raises(ShapeError, match=r"expected \(1, 2, 2\)"):
        prior.eps(torch.zeros(1, 1, 4, 4), 3)


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="expected a prior of latents"):
        LatentPrior(lambda z, t: z, encode=half, decode=double)
    with pytest.raises(DataError, match="scaling must not be 0"):
        LatentPrior(latents(), encode=half, decode=double, scaling=0.0)
    prior = LatentPrior(latents(), encode=half, decode=double, factor=4)
    with pytest.raises(ShapeError, match="do not divide by 4"):
        prior.encode(torch.zeros(1, 1, 6, 6))
    with pytest.raises(DataError, match="no U-Net or no autoencoder"):
        LatentPrior.from_pipeline(object())
