"""What ships with the package: networks of digits, and the script that trained them."""

from pathlib import Path

import pytest
import torch

import lowdim.inverse.digits as room
from lowdim.errors import DataError
from lowdim.inverse import GMMPrior, psnr
from lowdim.inverse.digits import digits, digits_prior, latent_digits_prior

FOLDER = Path(room.__file__).parent


def test_the_held_out_digits_are_held_out():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1500, 297)
    with pytest.raises(DataError, match="'all' is unknown"):
        digits("all")


def test_the_network_denoises_digits_as_well_as_a_mixture():
    pytest.importorskip("diffusers")
    prior, x = digits_prior(), digits("test")
    mixture = GMMPrior.fit(digits("train"), components=20, regularization=5e-3)
    assert sum(p.numel() for p in prior.unet.parameters()) == 634_273
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t, margin in ((50, 0.5), (200, -0.2)):
            noisy = prior.add_noise(x, t, noise)
            ours, exact = (psnr(p.x0(noisy, t), x).mean() for p in (prior, mixture))
            assert float(ours - exact) > margin


def test_the_autoencoder_returns_digits_it_has_not_seen():
    prior, x = latent_digits_prior(), digits("test")
    with torch.no_grad():
        z = prior.encode(x)
        assert float(psnr(prior.decode(z), x).mean()) > 29
    assert 0.8 < float(z.std()) < 1.2
    assert prior.image_shape == (1, 8, 8)


def test_nothing_is_pickled_and_the_card_says_what_it_was_trained_on():
    files = [p for p in FOLDER.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {p.suffix for p in files} <= {".py", ".json", ".safetensors", ".md"}
    assert sum(p.stat().st_size for p in files) < 2e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "Trained on" in card
    assert "1,500 of the 1,797" in card


def test_the_script_trains_and_writes_what_is_read(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    from lowdim.inverse.digits.train import train_autoencoder, train_unet, write

    write(tmp_path, *train_unet(steps=2), train_autoencoder(steps=3))
    monkeypatch.setattr(room, "FOLDER", tmp_path)
    x = digits("test")[:2]
    with torch.no_grad():
        assert digits_prior().x0(x, 10).shape == x.shape
        prior = latent_digits_prior()
        assert prior.decode(prior.encode(x)).shape == x.shape
    one, two = (train_autoencoder(steps=2).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
