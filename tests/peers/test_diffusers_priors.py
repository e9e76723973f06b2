"""Networks of diffusers, tiny and random, in memory and in a local folder, as priors."""

import json

import pytest
import torch

from lowdim.errors import DataError, ShapeError
from lowdim.inverse import LatentDCDP, LatentPrior, Pooling, ReSample

diffusers = pytest.importorskip("diffusers")

from lowdim.inverse.diffusers import PixelPrior  # noqa: E402

SMALL = {"block_out_channels": (8, 8), "norm_num_groups": 4}


def unet(channels=3, size=8, out=None, seed=0):
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=out or channels,
        layers_per_block=1,
        add_attention=False,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        **SMALL,
    )


def condition_unet(channels=3):
    torch.manual_seed(1)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=6,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **SMALL,
    )


def autoencoder(kind, **more):
    torch.manual_seed(2)
    return getattr(diffusers, kind)(
        in_channels=3,
        out_channels=3,
        latent_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **SMALL,
        **more,
    ).eval()


def ddim(**more):
    return diffusers.DDIMScheduler(**more)


@pytest.fixture
def z():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_latent_networks_from_memory_are_those_of_the_folder(tmp_path, kind, z):
    network, vae = unet(), autoencoder(kind)
    network.save_pretrained(tmp_path / "unet")
    ddim().save_pretrained(tmp_path / "scheduler")
    vae.save_pretrained(tmp_path / ("vqvae" if kind == "VQModel" else "vae"))
    here = LatentPrior.from_diffusers(network, ddim(), vae)
    there = LatentPrior.from_folder(tmp_path)
    assert here.image_shape == there.image_shape == (3, 16, 16)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(here.eps(z, 500), there.eps(z, 500))
        assert torch.equal(here.decode(z), there.decode(z))
        assert torch.equal(here.encode(x), there.encode(x))
        torch.testing.assert_close(here.eps(z, 500), network(z, 500).sample)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_encoding_and_decoding_are_those_of_the_autoencoder(kind, z):
    vae = autoencoder(kind)
    prior = LatentPrior.from_diffusers(unet(), ddim(), vae)
    x, scale = torch.randn(2, 3, 16, 16), vae.config.scaling_factor
    with torch.no_grad():
        found = vae.encode(x)
        direct = found.latents if kind == "VQModel" else found.latent_dist.mean
        torch.testing.assert_close(prior.encode(x), direct * scale)
        extra = {"force_not_quantize": True} if kind == "VQModel" else {}
        torch.testing.assert_close(prior.decode(z), vae.decode(z / scale, **extra).sample)
    z.requires_grad_()
    prior.decode(z).sum().backward()
    assert bool(z.grad.abs().sum() > 0)
    assert not any(p.requires_grad for p in vae.parameters())


def test_shift_and_statistics_of_the_checkpoint_are_used():
    vae = autoencoder("AutoencoderKL", scaling_factor=0.5, shift_factor=0.25)
    prior = LatentPrior.from_diffusers(unet(), ddim(), vae)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(prior.encode(x), (vae.encode(x).latent_dist.mean - 0.25) * 0.5)
    vae = autoencoder("AutoencoderKL", scaling_factor=0.5, latents_mean=[1.0, 2, 3], latents_std=[2.0, 4, 8])
    prior = LatentPrior.from_diffusers(unet(), ddim(), vae)
    with torch.no_grad():
        mode = vae.encode(x).latent_dist.mean
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([1.0, 2, 3], [2.0, 4, 8]))
        torch.testing.assert_close(prior.encode(x), (mode - mean) * 0.5 / std)
        torch.testing.assert_close(prior.decode(prior.encode(x)), vae.decode(mode).sample)


def test_kinds_of_prediction_agree_after_conversion(z):
    network, t = unet(), 300
    with torch.no_grad():
        output = network(z, t).sample
        abar = ddim().alphas_cumprod[t]
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        v = PixelPrior(network, ddim(prediction_type="v_prediction"))
        torch.testing.assert_close(v.eps(z, t), signal * output + noise * z, atol=1e-5, rtol=0)
        torch.testing.assert_close(v.x0(z, t), signal * z - noise * output, atol=1e-5, rtol=0)
        clean = PixelPrior(network, ddim(prediction_type="sample"))
        torch.testing.assert_close(clean.x0(z, t), output)
        torch.testing.assert_close(signal * clean.x0(z, t) + noise * clean.eps(z, t), z, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_clean_image_is_that_of_the_scheduler(z, prediction):
    network, t = unet(), 300
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False)
    with torch.no_grad():
        theirs = scheduler.step(network(z, t).sample, t, z).pred_original_sample
        torch.testing.assert_close(PixelPrior(network, scheduler).x0(z, t), theirs, atol=1e-5, rtol=1e-5)


def test_zero_terminal_noise_is_finite(z):
    scheduler = ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert float(scheduler.alphas_cumprod[-1]) == 0
    with torch.no_grad():
        eps, x0 = PixelPrior(unet(), scheduler).predict(z, 999)
    assert bool(torch.isfinite(eps).all() and torch.isfinite(x0).all())


def test_learned_variances_are_cut_off(z):
    network = unet(out=6)
    with torch.no_grad():
        torch.testing.assert_close(PixelPrior(network, ddim()).eps(z, 7), network(z, 7).sample[:, :3])


@pytest.mark.parametrize(
    "name",
    ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"],
)
def test_schedulers_with_a_table_are_taken(tmp_path, name, z):
    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    unet().save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    prior = PixelPrior.from_folder(tmp_path)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(prior.alphas_cumprod, torch.cumprod(1 - betas, 0), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_schedulers_that_count_noise_otherwise_are_refused_by_name(name):
    with pytest.raises(DataError, match=name):
        PixelPrior(unet(), getattr(diffusers, name)())


def test_text_networks_take_the_embedding_of_a_prompt(z):
    network, cond = condition_unet(), torch.randn(4, 6)
    with pytest.raises(DataError, match="needs cond"):
        PixelPrior(network, ddim())
    prior = PixelPrior(network, ddim(), cond=cond)
    with torch.no_grad():
        direct = network(z, 40, encoder_hidden_states=cond.expand(2, -1, -1)).sample
        torch.testing.assert_close(prior.eps(z, 40), direct)


def test_pipelines_are_taken_apart():
    pipeline = diffusers.LDMPipeline(autoencoder("VQModel"), unet(), ddim())
    assert LatentPrior.from_pipeline(pipeline).image_shape == (3, 16, 16)
    with pytest.raises(DataError, match=r"has an autoencoder\. Use LatentPrior"):
        PixelPrior.from_pipeline(pipeline)
    of_images, network = diffusers.DDPMPipeline(unet(), ddim()), unet()
    network.load_state_dict(of_images.unet.state_dict())
    again, x = PixelPrior.from_pipeline(of_images), torch.ones(1, *PixelPrior(network, ddim()).shape)
    assert torch.equal(again.eps(x, 100), PixelPrior(network, ddim()).eps(x, 100))
    with pytest.raises(DataError, match="has no U-Net"):
        PixelPrior.from_pipeline(object)


def test_bfloat16_is_of_the_network_only(z):
    prior = PixelPrior(unet(), ddim(), precision=torch.bfloat16)
    exact = PixelPrior(unet(), ddim())
    with torch.no_grad():
        rough, fine = prior.eps(z, 100), exact.eps(z, 100)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, fine)
    torch.testing.assert_close(rough, fine, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_solvers_run_on_random_networks(kind):
    prior = LatentPrior.from_diffusers(unet(), ddim(), autoencoder(kind))
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1
    y = Pooling(4).measure(x, sigma=0.1, seed=0)
    solvers = [
        ReSample(prior, steps=3, skip=1, lookahead=1, max_iter=(3, 3)),
        ReSample(prior, steps=3, skip=1, lookahead=1, max_iter=(3, 3), latent_solver="gn"),
        LatentDCDP(prior, steps=3),
    ]
    for solver in solvers:
        found = solver(y, Pooling(4), sigma=0.1, seed=0)
        assert found.image.shape == x.shape
        assert bool(torch.isfinite(found.image).all())


def test_bad_checkpoints_are_refused(tmp_path, z):
    with pytest.raises(DataError, match=r"holds no config\.json"):
        PixelPrior.from_folder(tmp_path)
    with pytest.raises(DataError, match="no U-Net of diffusers"):
        PixelPrior(torch.nn.Linear(2, 2), ddim())
    with pytest.raises(ShapeError, match="gives 4"):
        PixelPrior(unet(out=4), ddim())
    with pytest.raises(ShapeError, match="Take both from one checkpoint"):
        LatentPrior.from_diffusers(unet(channels=1), ddim(), autoencoder("VQModel"))
    with pytest.raises(DataError, match="no autoencoder that is known"):
        LatentPrior.from_diffusers(unet(), ddim(), torch.nn.Linear(2, 2))
    with pytest.raises(ShapeError, match="must divide by 2"):
        PixelPrior(unet(), ddim(), size=(7, 8))
    with pytest.raises(ShapeError, match="do not divide by 2"):
        LatentPrior.from_diffusers(unet(), ddim(), autoencoder("VQModel")).encode(torch.zeros(1, 3, 15, 16))
    with pytest.raises(DataError, match="outside"):
        PixelPrior(unet(), ddim()).eps(z, 1000)
    unet().save_pretrained(tmp_path / "unet", safe_serialization=False)
    ddim().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(DataError, match="pickled"):
        PixelPrior.from_folder(tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(
        json.dumps({**config, "_class_name": "FluxTransformer2DModel"})
    )
    with pytest.raises(DataError, match="FluxTransformer2DModel"):
        PixelPrior.from_folder(tmp_path)
