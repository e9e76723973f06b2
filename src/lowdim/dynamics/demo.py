"""A training to look at: a small network learns digits and rises to the edge of stability."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lowdim.dynamics.monitor import Monitor
from lowdim.dynamics.runfile import DynamicsRun, read_run
from lowdim.errors import DataError, RunError
from lowdim.runs import Run, atomic_write
from lowdim.threads import few_threads

__all__ = ["demo"]

EVERY = 25
MOST = 1797
"""Images in scikit-learn's collection of digits."""

Progress = Callable[[str, int, int, str], object]


def demo(
    *,
    samples: int = 300,
    lr: float = 0.2,
    steps: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    restart: bool = False,
) -> DynamicsRun:
    """Train a network on digits with a Monitor, and return what it saw.

    A tanh network 64-64-64-10 in float32 learns the first images of scikit-learn's digits by gradient
    descent on all of them at once; the loss is half the squared error, summed over classes and averaged over
    images. With 300 images it rises to the edge of stability and stays there; with 5 it never arrives.

    Parameters
    ----------
    samples : int
        Images, up to 1797.
    lr : float
        Learning rate; the edge is at a sharpness of 2 / lr.
    steps : int
        At least 25, the steps between reports.
    seed : int
        Of the first weights.
    progress : callable, optional
        Called with (phase, done, total, what is going on).
    output : path, optional
        Folder for run.jsonl, which appears when it is whole.
    resume, restart : bool
        Read the finished run in `output` again, or throw it away.

    Returns
    -------
    DynamicsRun
        Also of a training that diverged: it ends with the next report.

    Raises
    ------
    DataError
        If an option is out of range.
    RunError
        If the output folder is in use, holds another run, or cannot be written.

    References
    ----------
    .. [1] J. Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability",
       ICLR 2021.

    Examples
    --------
    >>> run = demo(samples=20, steps=50)
    >>> run.table.index.to_list(), run.header["threshold_rule"]
    ([25, 50], '2 / lr')
    """
    _check(samples, lr, steps)
    if output is None and (resume or restart):
        raise RunError("demo: resume and restart need the output folder of the run. Add output=...")
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder) / "run.jsonl"
        if output is None:
            _train(samples, lr, steps, seed, beside, progress)
            return read_run(beside)
        arguments = {"samples": samples, "lr": lr, "steps": steps}
        with Run.open(
            output,
            command="dynamics demo",
            arguments=arguments,
            seed=seed,
            resume=resume,
            restart=restart,
        ) as run:
            if not run.finished:
                _train(samples, lr, steps, seed, beside, progress)
                atomic_write(run.path / "run.jsonl", beside.read_bytes())
            return read_run(run.path / "run.jsonl")


def _train(samples: int, lr: float, steps: int, seed: int, file: Path, progress: Progress | None) -> None:
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    x = torch.as_tensor(images[:samples] / 16 - 0.3, dtype=torch.float32)
    y = nn.functional.one_hot(torch.as_tensor(digits[:samples]), 10).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)

    def loss_fn() -> torch.Tensor:
        return 0.5 * (network(x) - y).square().sum(1).mean()

    tell = progress or (lambda phase, done, total, text: None)
    with (
        few_threads(samples, small=MOST),
        Monitor(network, loss_fn, optimizer=optimizer, every=EVERY, sink=file) as monitor,
    ):
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss = loss_fn()
            loss.backward()
            optimizer.step()
            report = monitor.step(loss=loss)
            if report is not None:
                ratio = report.get("dyn/sharpness_ratio", math.nan)
                tell("train", step, steps, f"loss {report['dyn/loss']:.3g}, ratio {ratio:.3f}")
                if not math.isfinite(report["dyn/loss"]):
                    break


def _check(samples: int, lr: float, steps: int) -> None:
    if not 1 <= samples <= MOST:
        raise DataError(
            f"demo: samples={samples} images, expected 1 to {MOST}. Use 300, or 5 for a simple task."
        )
    if not (math.isfinite(lr) and lr > 0):
        raise DataError(f"demo: lr={lr} is no learning rate, expected a positive number such as 0.2.")
    if steps < EVERY:
        raise DataError(
            f"demo: steps={steps} end before the first report, expected {EVERY} or more, such as 2000."
        )
