"""``lowdim doctor``: what is installed, on which device, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import typer
from packaging.requirements import Requirement

import lowdim
from lowdim.cli import manners

__all__ = ["EXTRAS", "Extra", "examine", "register"]


@dataclass(frozen=True)
class Extra:
    """One extra of the package: which system uses it and what it brings."""

    name: str
    system: str
    brings: str


EXTRAS = (
    Extra(
        "transformers", "compress", "Hugging Face models in and out, LoRA, Hub data sets; a GPT-2 (incontext)"
    ),
    Extra(
        "compress", "compress", "int8 on the factors (torchao), ONNX export, Parquet and images (track, too)"
    ),
    Extra("demo", "compress", "a real sentence encoder (MiniLM) without a network: `make demo`"),
    Extra("dynamics", "dynamics", "curvatures of curvlinops; TensorBoard and Lightning as loggers"),
    Extra("diffusion", "inverse", "image priors of diffusers; operators and baselines of deepinv"),
    Extra("policy", "policy", "the trainer of TRL; mathematical answers checked by math-verify"),
    Extra("images", "phase", "images (track, too) and videos in, animations out"),
    Extra("imaging", "regress", "NIfTI volumes in and out"),
    Extra(
        "peers", "developers", "independent implementations and real data for tests, claims and benchmarks"
    ),
    Extra("docs", "developers", "the documentation pages: `make docs`"),
    Extra("dev", "developers", "tests, lint, type check, pages in a browser: `make test`"),
)
"""Every extra that brings something of its own (``all`` is the sum of those for users)."""


def register(app: typer.Typer) -> None:
    """Add ``lowdim doctor`` to the application."""

    @app.command(rich_help_panel=manners.HOUSE_PANEL)
    def doctor(json: manners.JsonOption = False) -> None:
        """Show versions, the device, and which extras are present or would bring what."""
        found = examine()
        if json:
            manners.emit(found)
        else:
            _show(found)


def examine() -> dict[str, Any]:
    """Look at the installation.

    Returns
    -------
    dict
        ``versions`` (name to version or None), ``device``, ``extras`` (list of
        rows: system, name, status, missing, brings, install) and ``tools``
        (list of rows: name, path, serves). JSON-ready.

    Examples
    --------
    >>> examine()["versions"]["lowdim"] == lowdim.__version__
    True
    """
    requirements = [Requirement(text) for text in metadata.requires("lowdim") or []]
    base = [requirement for requirement in requirements if requirement.marker is None]
    return {
        "versions": {
            "lowdim": lowdim.__version__,
            "python": platform.python_version(),
            **{requirement.name: _version(requirement.name) for requirement in base},
        },
        "unfit": [text for text in map(_unfit, base) if text],
        "device": _device(),
        "extras": [_extra(extra, requirements) for extra in EXTRAS],
        "tools": _tools(),
    }


def _extra(extra: Extra, requirements: list[Requirement]) -> dict[str, Any]:
    needed = _packages(extra.name, requirements)
    missing = [text for text in map(_unfit, needed) if text]
    return {
        **asdict(extra),
        "status": "missing" if missing else "present",
        "missing": missing,
        "versions": {requirement.name: _version(requirement.name) for requirement in needed},
        "install": f"pip install 'lowdim[{extra.name}]'",
    }


def _packages(extra: str, requirements: list[Requirement]) -> list[Requirement]:
    """Return the packages of an extra, without those of the extras that it includes."""
    wanted = []
    for requirement in requirements:
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name != "lowdim":
            wanted.append(requirement)
    return wanted


def _unfit(requirement: Requirement) -> str | None:
    """Return what is wrong with the installed package, or None."""
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} (not installed)"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} ({version}, needs {requirement.specifier})"
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    import torch

    cuda = [
        {
            "name": torch.cuda.get_device_name(index),
            "memory_gib": round(torch.cuda.get_device_properties(index).total_memory / 2**30, 1),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
        }
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    return {
        "default": "cuda" if cuda else "cpu",
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": cuda,
        "cuda_built": torch.version.cuda,
    }


def _tools() -> list[dict[str, Any]]:
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    browsers = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in browsers if (path := shutil.which(name))), None)
    triton = _version("triton") if importlib.util.find_spec("triton") else None
    return [
        {"name": "C++ compiler", "found": compiler, "serves": "torch.compile on the CPU (inductor)"},
        {"name": "Triton", "found": triton, "serves": "the fused BLAST kernel on NVIDIA GPUs"},
        {"name": "Chromium", "found": chromium, "serves": "the tests that open report pages in a browser"},
    ]


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = manners.out
    versions, device = found["versions"], found["device"]
    out.print(
        f"[bold]lowdim {versions['lowdim']}[/bold] on Python {versions['python']} ({sys.executable})",
        soft_wrap=True,
    )
    rest = [(name, version) for name, version in versions.items() if name not in ("lowdim", "python")]
    out.print(", ".join(f"{name} {version or 'missing'}" for name, version in rest), style="dim")
    for text in found["unfit"]:
        out.print(Text(f"Needs attention: {text}", style="red"))

    cards = ", ".join(f"{card['name']} ({card['memory_gib']} GiB)" for card in device["cuda"])
    cores = f"{device['cpu_cores']} CPU cores, {device['torch_threads']} threads for torch"
    gpu = cards or "no CUDA GPU in reach"
    out.print(
        f"\n[bold]Device[/bold] {device['machine']}: {cores}; {gpu}. The default is {device['default']}."
    )

    table = Table(title="Extras", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("System", "Extra", "Status", "Brings"):
        table.add_column(column, overflow="fold")
    for extra in found["extras"]:
        present = extra["status"] == "present"
        status = Text("present", style="green") if present else Text("missing", style="yellow")
        brings = Text(extra["brings"])
        if not present:
            brings.append(f"\nmissing: {', '.join(extra['missing'])}\n{extra['install']}", style="dim")
        table.add_row(extra["system"], extra["name"], status, brings)
    out.print()
    out.print(table)

    tools = Table(title="Tools", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("Tool", "Found", "Serves"):
        tools.add_column(column, overflow="fold")
    for tool in found["tools"]:
        mark = Text(tool["found"], style="green") if tool["found"] else Text("missing", style="yellow")
        tools.add_row(tool["name"], mark, tool["serves"])
    out.print()
    out.print(tools)
