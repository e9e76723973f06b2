"""Claims about DCDP: against tuned sampling, the exact posterior mean, and the variants of the paper."""

from __future__ import annotations

from typing import Any

from lowdim.claims.declare import Measurement, Trial, claim
from lowdim.claims.mixtures import PATCHES, figures, natural, pooled_psnr, problem_of, sampled, tomography
from lowdim.errors import MissingExtra

__all__: list[str] = []

PAPER = "Li, Kwon, Liang, Alkhouri, Ravishankar, Qu (arXiv 2403.06054)"
OWN = "own measurement"
TARGET = "own target, not measured by others"
METRIC = "PSNR is the mean over images; of the pooled mean square error in the details."
SR4 = f"Means of 4 x 4 pixels, noise 0.02. {PATCHES} {METRIC}"
BLUR = f"Circular Gaussian blur of 1.5 pixels, noise 0.02. {PATCHES} {METRIC}"
SR2 = f"Means of 2 x 2 pixels, noise 0.02. {PATCHES} {METRIC}"
INPAINTING = f"70 % of the pixels missing at random, noise 0.01. {PATCHES} {METRIC}"


def above(trial: Trial, task: str, ours: str, theirs: str) -> Measurement:
    """Return how many dB one solver is above another."""
    found = figures(trial, task)
    details = {name: [round(row["psnr"], 2), round(row["pooled psnr"], 2)] for name, row in found.items()}
    pooled = found[ours]["pooled psnr"] - found[theirs]["pooled psnr"]
    value = found[ours]["psnr"] - found[theirs]["psnr"]
    return Measurement(value, {"pooled": pooled, "PSNR, pooled PSNR": details}, judged=not trial.quick)


@claim(
    "dcdp.sr4",
    statement="Super-resolution by 4: DCDP with 20 network calls above DPS with 250, tuned (dB)",
    source=PAPER,
    setting=SR4,
    paper="24.58 / 28.01 dB against 23.56 / 26.63 on two photographs (figure in the authors' repository)",
    at_least=0.8,
    unit=" dB",
)
def sr4(trial: Trial) -> Measurement:
    return above(trial, "sr4", "K=20", "DPS 250")


@claim(
    "dcdp.sr4-ten",
    statement="And with 10 network calls above DPS with 100, tuned (dB)",
    source=PAPER,
    setting=SR4,
    at_least=0.8,
    unit=" dB",
)
def sr4_ten(trial: Trial) -> Measurement:
    return above(trial, "sr4", "K=10", "DPS 100")


@claim(
    "dcdp.blur",
    statement="Deblurring: DCDP with 20 network calls above DPS with 250, tuned (dB)",
    source=PAPER,
    setting=BLUR,
    paper="27.14 / 33.58 dB against 24.43 / 30.25 on two photographs",
    at_least=1.2,
    unit=" dB",
)
def blur(trial: Trial) -> Measurement:
    return above(trial, "blur", "K=20", "DPS 250")


@claim(
    "dcdp.prox",
    statement="The proximal data consistency above the paper's 100 gradient steps where those are not "
    "stopped: they fit the noise (dB)",
    source=OWN,
    setting=f"{BLUR} Both K = 10.",
    at_least=3.0,
    unit=" dB",
)
def proximal(trial: Trial) -> Measurement:
    return above(trial, "blur", "K=10", "SGD 100")


@claim(
    "dcdp.sr2",
    statement="Super-resolution by 2: DCDP with 20 network calls above DPS with 250, tuned (dB)",
    source=PAPER,
    setting=SR2,
    at_least=0.6,
    unit=" dB",
)
def sr2(trial: Trial) -> Measurement:
    return above(trial, "sr2", "K=20", "DPS 250")


@claim(
    "dcdp.sr2-pinv",
    statement="The same above the pseudo-inverse, which knows no prior (dB)",
    source=OWN,
    setting=SR2,
    at_least=0.5,
    unit=" dB",
)
def sr2_pinv(trial: Trial) -> Measurement:
    return above(trial, "sr2", "K=20", "pseudo-inverse")


@claim(
    "dcdp.gap",
    statement="DCDP with 20 network calls below the exact posterior mean, the worst of super-resolution by "
    "2 and 4 and deblurring (dB)",
    source=OWN,
    setting=f"{PATCHES} {METRIC}",
    at_most=1.8,
    unit=" dB",
)
def gap(trial: Trial) -> Measurement:
    gaps = {task: above(trial, task, "exact", "K=20") for task in ("sr2", "sr4", "blur")}
    details = {task: {"gap": m.value, "pooled": m.details["pooled"]} for task, m in gaps.items()}
    return Measurement(max(m.value for m in gaps.values()), details, judged=not trial.quick)


@claim(
    "dcdp.version-one",
    statement="Tweedie's formula (version II) above five steps of DDIM (version I), the least of three "
    "tasks (dB)",
    source=PAPER,
    setting=f"K = 20. {PATCHES} {METRIC}",
    paper="0.7 to 2.6 dB on eight photographs (figure in the authors' repository)",
    at_least=0.0,
    unit=" dB",
)
def version_one(trial: Trial) -> Measurement:
    found = {task: above(trial, task, "K=20", "version I").value for task in ("sr2", "sr4", "blur")}
    return Measurement(min(found.values()), found, judged=not trial.quick)


@claim(
    "dcdp.inpainting",
    statement="Random inpainting, the weak case of the paper's method: 20 network calls from time 200 (dB)",
    source=OWN,
    setting=f"{INPAINTING} DPS is better here, see the details.",
    at_least=24.0,
    unit=" dB",
)
def inpainting(trial: Trial) -> Measurement:
    rest = above(trial, "inpainting", "K=20, from 200", "DPS 250")
    value = figures(trial, "inpainting")["K=20, from 200"]["psnr"]
    return Measurement(value, {"above DPS 250": rest.value, **rest.details}, judged=not trial.quick)


@claim(
    "dcdp.without-noise-inpainting",
    statement="Without added noise, DCDP with 10 network calls above DPS with 100, tuned, on random "
    "inpainting (dB)",
    source=TARGET,
    setting=INPAINTING,
    at_least=0.0,
    unit=" dB",
)
def without_noise_inpainting(trial: Trial) -> Measurement:
    return above(trial, "inpainting", "without noise, 10", "DPS 100")


@claim(
    "dcdp.without-noise-gap",
    statement="Share of the gap between DCDP with 20 calls and the exact posterior mean that it closes "
    "with 10 calls, without added noise: the lesser of super-resolution by 4 and deblurring",
    source=TARGET,
    setting=f"{PATCHES} Least over these photographs and 64 images drawn from the mixture, and over the "
    "mean PSNR and that of the pooled mean square error.",
    at_least=1 / 3,
)
def without_noise_gap(trial: Trial) -> Measurement:
    shares: dict[str, Any] = {}
    for task in ("sr4", "blur"):
        for label, found in (("", figures(trial, task)), (" sampled", sampled(trial, task))):
            for metric in ("psnr", "pooled psnr"):
                start, best, ours = (found[n][metric] for n in ("K=20", "exact", "without noise, 10"))
                shares[f"{task}{label}, {metric}"] = (ours - start) / (best - start)
    return Measurement(min(shares.values()), shares, judged=not trial.quick)


SAMPLED = (
    "64 images drawn from the mixture, PSNR of the pooled mean square error, nothing clamped; "
    "super-resolution by 4, deblurring and random inpainting."
)
TASKS = ("sr4", "blur", "inpainting")


@claim(
    "dcdp.oracle",
    statement="No solver is above the exact posterior mean on images drawn from the prior: largest excess "
    "(dB)",
    source="theory: the posterior mean has the least mean square error",
    setting=SAMPLED,
    at_most=0.1,
    unit=" dB",
)
def oracle(trial: Trial) -> Measurement:
    excess: dict[str, float] = {}
    for task in TASKS:
        found = sampled(trial, task)
        best = found["exact"]["pooled psnr"]
        excess |= {f"{task}, {n}": row["pooled psnr"] - best for n, row in found.items() if n != "exact"}
    return Measurement(max(excess.values()), excess)


@claim(
    "dcdp.sampler",
    statement="DPS, a sampler, against the 3.01 dB below the posterior mean at which an exact sampler is: "
    "largest distance (dB)",
    source="theory: a sample of the posterior has twice the mean square error of its mean",
    setting=f"DPS with 200 calls, zeta 0.5. {SAMPLED}",
    at_most=1.2,
    unit=" dB",
)
def sampler(trial: Trial) -> Measurement:
    """Give intervals of 95 % with the distances, by the bootstrap over images."""
    import math

    from lowdim.claims.gap import paired_bootstrap

    below = {}
    for task in TASKS:
        found = sampled(trial, task)
        best, drawn = (found[name]["errors"] for name in ("exact", "DPS 200"))
        below[task] = paired_bootstrap(best, other=drawn, statistic=pooled_psnr).to_dict()
    expected = 10 * math.log10(2)
    value = max(abs(gap["value"] - expected) for gap in below.values())
    return Measurement(value, below, judged=not trial.quick)


@claim(
    "dcdp.prox-deepinv",
    statement="Our proximal maps equal deepinv's: largest difference",
    source="Zhao et al. 2016 and textbooks",
    setting="Inpainting, circular blur and blur with decimation of four random 16 x 16 images, rho 0.03 "
    "and 0.3; errors of the adjoints in the details.",
    at_most=1e-5,
)
def prox_deepinv(trial: Trial) -> Measurement:
    import torch

    from lowdim.inverse import BlurDecimation, CircularBlur, Inpainting, adjoint_error, gaussian_kernel

    try:
        from deepinv import physics
    except ImportError as error:
        raise MissingExtra("deepinv", extra="diffusion", purpose="compare with it") from error
    generator = torch.Generator().manual_seed(trial.seed)
    mask = (torch.rand(16, 16, generator=generator) > 0.5).float()
    x, z = (torch.randn(4, 1, 16, 16, generator=generator) for _ in range(2))
    kernel = gaussian_kernel(1.5)
    size = (1, 16, 16)
    pairs = {
        "inpainting": (Inpainting(mask), physics.Inpainting(img_size=size, mask=mask[None])),
        "blur": (CircularBlur(kernel), physics.BlurFFT(img_size=size, filter=kernel[None, None])),
        "decimation": (
            BlurDecimation(kernel, 2),
            physics.Downsampling(img_size=size, filter=kernel[None, None], factor=2, padding="circular"),
        ),
    }
    details = {}
    for name, (ours, theirs) in pairs.items():
        y = theirs.A(x)
        differences = [
            ours.prox_l2(z, y, 1 / rho) - theirs.prox_l2(z, y, gamma=1 / rho) for rho in (0.03, 0.3)
        ]
        details[name] = max(float(difference.abs().max()) for difference in differences)
        details[f"{name}, adjoint"] = adjoint_error(ours, x)
    return Measurement(max(details.values()), details)


@claim(
    "dcdp.batch",
    statement="An image does not depend on its batch: largest difference between batches of 1 and of 8",
    source=OWN,
    setting="Super-resolution by 4, deblurring and random inpainting by DCDP (K = 20 and without noise) "
    "and DPS (50 calls), seeds per image, float32.",
    at_most=1e-4,
)
def batch(trial: Trial) -> Measurement:
    import torch

    from lowdim.inverse import DCDP, DPS
    from lowdim.inverse.patches import patches

    prior, images = natural(trial.quick), patches("test", count=8)
    details = {}
    solvers: dict[str, Any] = {
        "K=20": DCDP(prior),
        "without noise": DCDP.without_noise(prior),
        "DPS": DPS(prior, steps=50),
    }
    for task in TASKS:
        operator, sigma = problem_of(task)
        y = operator.measure(images, sigma=sigma, seed=0)
        for name, solver in solvers.items():
            together = solver(y, operator, sigma=sigma, seed=0).image
            alone = [solver(y[b : b + 1], operator, sigma=sigma, seed=[b]).image for b in range(8)]
            details[f"{task}, {name}"] = float((together - torch.cat(alone)).abs().max())
    return Measurement(max(details.values()), details)


CT = (
    "Six directions, 40 phantoms of 16 x 16 pixels of ellipses (a body and two to five inside), noise 0.01 "
    "for "
    "||A|| = 1 and values in [-1, 1]; a mixture of 20 Gaussians fitted to 6000 others. K = 20 from time "
    "700. Total variation, tuned and without training, is above it: see the details."
)


@claim(
    "dcdp.tomography",
    statement="Sparse-view tomography: DCDP with 20 network calls above the pseudo-inverse (dB)",
    source=OWN,
    setting=CT,
    at_least=3.0,
    unit=" dB",
)
def ct(trial: Trial) -> Measurement:
    found = tomography(trial)
    return Measurement(found["K=20"] - found["pseudo-inverse"], found, judged=not trial.quick)


@claim(
    "dcdp.tomography-dps",
    statement="And above DPS with 250 (dB)",
    source=OWN,
    setting=CT,
    at_least=-0.5,
    unit=" dB",
)
def ct_dps(trial: Trial) -> Measurement:
    found = tomography(trial)
    return Measurement(found["K=20"] - found["DPS 250"], found, judged=not trial.quick)


@claim(
    "dcdp.nonlinear",
    statement="A saturated blur, tanh(1.5 blur): DCDP with 10 network calls and Adam above DPS with 100, "
    "the better of two zetas (dB)",
    source=PAPER,
    setting=f"Circular Gaussian blur of 1.5 pixels, noise 0.02; 40 of the patches. {PATCHES} {METRIC}",
    paper="27.88 dB on nonlinear deblurring of FFHQ (third party)",
    at_least=1.0,
    unit=" dB",
)
def nonlinear(trial: Trial) -> Measurement:
    from lowdim.inverse import DCDP, DPS, CircularBlur, as_operator, evaluate, gaussian_kernel
    from lowdim.inverse.patches import patches

    prior, inner = natural(trial.quick), CircularBlur(gaussian_kernel(1.5))
    operator = as_operator(lambda x: (1.5 * inner.A(x)).tanh(), image_shape=(1, 16, 16))
    solvers: dict[str, Any] = {
        "DPS, zeta 0.5": DPS(prior, steps=100, zeta=0.5),
        "DPS, zeta 1": DPS(prior, steps=100, zeta=1.0),
        "K=10": DCDP(prior, steps=10),
        "K=10, Gauss-Newton": DCDP(prior, steps=10, solver="gn", tau=1e-3),
        "without noise, Gauss-Newton": DCDP.without_noise(prior, solver="gn", tau=1e-3),
    }
    images = patches("test", count=16 if trial.quick else 40)
    found = dict(evaluate(solvers, operator, images, sigma=0.02, seed=trial.seed)["psnr"])
    best = max(found["DPS, zeta 0.5"], found["DPS, zeta 1"])
    return Measurement(found["K=10"] - best, found, judged=not trial.quick)


@claim(
    "dcdp.calls",
    statement="Network calls per image are K for version II and the sum of min(t, k) for version I: wrong "
    "counts",
    source=PAPER,
    setting="K = 7 and 13, k = 3, batches of 1 and 3, also with a mean of 2 runs.",
    at_most=0,
)
def calls(trial: Trial) -> Measurement:
    import torch

    from lowdim.inverse import DCDP, CallablePrior, Inpainting, linear_alphas_cumprod

    wrong, details = 0, {}
    for steps in (7, 13):
        for batch in (1, 3):
            for average in (1, 2):
                prior = CallablePrior(lambda x, t: 0 * x, linear_alphas_cumprod())
                y = torch.zeros(batch, 1, 8, 8)
                operator = Inpainting(torch.ones(8, 8))
                two = DCDP(prior, steps=steps, average=average)
                one = DCDP(prior, steps=steps, average=average, purify="ddim", ddim_steps=3)
                counted = [solver(y, operator, sigma=0.1, seed=0).network_calls for solver in (two, one)]
                expected = [steps * average, sum(min(t, 3) for t in one.times) * average]
                wrong += counted != expected or prior.calls.images != batch * sum(expected)
                details[f"K={steps}, batch {batch}, mean of {average}"] = counted
    return Measurement(wrong, details)
