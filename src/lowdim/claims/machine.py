"""The machine and the versions that a figure was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import lowdim

__all__ = ["describe", "machine"]

_PACKAGES = ("torch", "numpy", "transformers")


def machine() -> dict[str, Any]:
    """Describe the processor, the thread counts and the versions in use.

    Returns
    -------
    dict
        JSON-ready: ``cpu``, ``cores``, ``threads`` (of torch), ``omp`` (the
        environment variable or None), ``gpu`` (name or None), ``system``,
        ``python``, ``lowdim`` and ``versions``.
    """
    import torch

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "lowdim": lowdim.__version__,
        "versions": versions,
    }


def describe(machine: dict[str, Any]) -> str:
    """Put a machine description into one line.

    Parameters
    ----------
    machine : dict
        As :func:`machine` returns it.

    Returns
    -------
    str
        For the foot of a table.
    """
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads{gpu},"
        f" {machine['system']}, "
        f"Python {machine['python']}, lowdim {machine['lowdim']}, {versions}"
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
