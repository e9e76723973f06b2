"""Choose: priors and solvers by name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowdim.errors import DataError
from lowdim.inverse.dcdp import DCDP
from lowdim.inverse.dps import DPS
from lowdim.inverse.gmm import GMMPrior
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.latent_dcdp import LatentDCDP
from lowdim.inverse.latent_dps import LatentDPS
from lowdim.inverse.priors import Prior
from lowdim.inverse.resample_solver import ReSample

__all__ = ["SOLVERS", "chosen_prior", "chosen_solvers"]

BASELINES = {"ddrm": "DDRM", "diffpir": "DiffPIR", "tv": "TotalVariation", "pinv": "PseudoInverse"}
"""Those of deepinv."""

SOLVERS = ("dcdp", "dcdp-without-noise", "resample", "dps", *BASELINES)
"""Solvers by name; of a latent prior "dcdp" is `LatentDCDP` and "dps" is `LatentDPS`."""

AUTO = "auto"
"""The solver for those who name none: "dcdp-without-noise" of a prior of images, of a latent one "dcdp"."""

BUILTIN = ("builtin", "builtin-latent")


def chosen_prior(prior: Any) -> Prior:
    """Return a prior from what a user names it by.

    Parameters
    ----------
    prior : Prior, path, or {"builtin", "builtin-latent"}
        A folder holds a pipeline of diffusers (latent, if it has a vae/ or vqvae/), or a saved `GMMPrior`;
        the built-in ones know 8 x 8 digits.

    Returns
    -------
    Prior

    Raises
    ------
    DataError
        If it is none of these.
    """
    if isinstance(prior, Prior):
        return prior
    if prior == "builtin":
        from lowdim.inverse.digits import digits_prior

        return digits_prior()
    if prior == "builtin-latent":
        from lowdim.inverse.digits import latent_digits_prior

        return latent_digits_prior()
    if not isinstance(prior, (str, os.PathLike)):
        raise DataError(
            f"prior: got a {type(prior).__name__}, expected a Prior, a folder, or one of "
            f"{', '.join(BUILTIN)}."
        )
    folder = Path(prior)
    if not folder.is_dir():
        raise DataError(
            f"prior: {folder} is no folder. Give one that holds a pipeline of diffusers, or 'builtin'."
        )
    if (folder / "prior.json").is_file():
        return GMMPrior.load(folder)
    if any((folder / part).is_dir() for part in ("vae", "vqvae")):
        return LatentPrior.from_folder(folder)
    from lowdim.inverse.diffusers import PixelPrior

    return PixelPrior.from_folder(folder)


def chosen_solvers(solvers: Any, prior: Prior) -> dict[str, Any]:
    """Return solvers by name.

    Parameters
    ----------
    solvers : str, sequence of str, or mapping of str to options or solver
        Names of `SOLVERS`, or "auto", the one with the least error in few network calls: "dcdp-without-noise"
        of a prior of images, "dcdp" of a latent one. A mapping gives options, such as ``{"dcdp": {"steps":
        10}}``, or names of its own with solvers that are made, or with ``{"solver": "dcdp", "steps": 10}``.
    prior : Prior

    Returns
    -------
    dict of str to solver

    Raises
    ------
    DataError
        If a name or an option is unknown, or a solver does not fit the prior.

    Examples
    --------
    >>> from lowdim.inverse.digits import latent_digits_prior
    >>> found = chosen_solvers(["dcdp", "resample"], latent_digits_prior())
    >>> {name: type(solver).__name__ for name, solver in found.items()}
    {'dcdp': 'LatentDCDP', 'resample': 'ReSample'}
    """
    if isinstance(solvers, str):
        solvers = [solvers]
    if isinstance(solvers, Sequence):
        solvers = {name: {} for name in solvers}
    if not isinstance(solvers, Mapping) or not solvers:
        raise DataError(f"solvers: got {solvers!r}, expected one or more of {', '.join(SOLVERS)}.")
    best = "dcdp" if isinstance(prior, LatentPrior) else "dcdp-without-noise"
    named = {best if name == AUTO else str(name): options for name, options in solvers.items()}
    if len(named) < len(solvers):
        raise DataError(f"solvers: {AUTO} is {best} here, which is there twice. Leave one out.")
    return {name: _solver(name, options, prior) for name, options in named.items()}


def _solver(name: str, options: Any, prior: Prior) -> Any:
    if callable(options):
        return options
    options = dict(options or {})
    kind = options.pop("solver", name)
    latent = isinstance(prior, LatentPrior)
    known: dict[str, Any] = {
        "dcdp": LatentDCDP if latent else DCDP,
        "dcdp-without-noise": DCDP.without_noise,
        "dps": LatentDPS if latent else DPS,
        "resample": ReSample,
    }
    if kind in BASELINES:
        baselines = importlib.import_module("lowdim.inverse.deepinv")
        known[kind] = getattr(baselines, BASELINES[kind])
    if kind not in known:
        raise DataError(f"solvers: {kind!r} is unknown. Use one of {', '.join(SOLVERS)}.")
    if "/" in name or name in ("", ".", ".."):
        raise DataError(f"solvers: {name!r} cannot name a folder. Choose a plain word.")
    if kind == "resample" and not latent:
        raise DataError(
            "solvers: resample needs a latent prior (a pipeline with a vae), and this one is of images. Use "
            "dcdp or dps."
        )
    if latent and kind in ("dcdp-without-noise", "ddrm", "diffpir"):
        raise DataError(f"solvers: {kind} needs a prior of images, and this one is of latents. Use dcdp.")
    try:
        return known[kind](**options) if kind in ("tv", "pinv") else known[kind](prior, **options)
    except TypeError as error:
        raise DataError(
            f"solvers: {name} does not take these options ({error}). See help({known[kind].__qualname__})."
        ) from error
