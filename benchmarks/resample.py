"""ReSample: decoder calls with Gauss-Newton against those of the schedule of the official code."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Options, Row, Table
from lowdim.inverse import Pooling, ReSample, psnr
from lowdim.inverse.digits import digits, latent_digits_prior

NAME = "resample"
DESCRIPTION = (
    "Digits behind an autoencoder, super-resolution by 2, noise 0.02. Official: the schedule of the authors'"
    " code, Adam with up to 2000 iterations in pixels and 500 in latents, down to a root mean square of 1e-3"
    " whatever the noise. Ours: the proximal map in pixels, Gauss-Newton in latents, where every pass forward"
    " or back through the decoder is a call; an iteration of Adam, forward and back, is one call, too."
)
NOTES = (
    "Threshold: a third of the decoder calls at a PSNR at most 0.2 dB lower. All figures are of one run.",
)
SIGMA = 0.02


def run(options: Options) -> Table:
    images = digits("test")[: 8 if options.quick else 24]
    return Table(NAME, DESCRIPTION, (_row(images, 100 if options.quick else 500),), NOTES)


def _row(x: Any, steps: int) -> Row:
    prior, A = latent_digits_prior(), Pooling(2)
    y = A.measure(x, sigma=SIGMA, seed=0)
    official = ReSample(
        prior, steps=steps, pixel_solver="adam", max_iter=(2000, 500), lr=(1e-2, 5e-3), tau=1e-3 / SIGMA
    )
    ours = ReSample(prior, steps=steps, latent_solver="gn", tau=0.6)
    found = {"official": official, "ours": ours}
    done = {name: solver(y, A, sigma=SIGMA, seed=1) for name, solver in found.items()}
    quality = {name: float(psnr(one.image, x).mean()) for name, one in done.items()}
    calls = {name: one.decoder_calls for name, one in done.items()}
    fewer = calls["official"] / calls["ours"]
    return Row(
        case=f"{len(x)} images, {steps} steps",
        cells={
            "PSNR": ", ".join(f"{name}: {value:.2f} dB" for name, value in quality.items()),
            "decoder calls": f"{calls['official']} / {calls['ours']} = {fewer:.1f}",
            "times faster": f"{done['official'].seconds / done['ours'].seconds:.1f}",
        },
        figures={
            "psnr": quality,
            "decoder_calls": calls,
            "seconds": {name: one.seconds for name, one in done.items()},
            "residual": {name: float(one.residual.mean()) for name, one in done.items()},
        },
        met=fewer >= 3 and quality["ours"] >= quality["official"] - 0.2,
    )
