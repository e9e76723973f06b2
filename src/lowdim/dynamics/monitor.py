"""Monitor: instruments for any training loop, which neither change the training nor stop it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.dynamics.balance import declared_chains, find_chains
from lowdim.dynamics.door import check_counts, check_options, names
from lowdim.dynamics.oscillation import EdgeDetector
from lowdim.dynamics.parameters import FlatParameters, Select
from lowdim.dynamics.probes import (
    BalanceProbe,
    DriftProbe,
    OscillationProbe,
    Probe,
    RankProbe,
    SharpnessProbe,
)
from lowdim.dynamics.sinks import as_sinks
from lowdim.dynamics.sketch import ParameterSketch
from lowdim.dynamics.spectra import LIMIT
from lowdim.dynamics.thresholds import stability, trained_by
from lowdim.dynamics.tracker import SharpnessTracker
from lowdim.dynamics.training import Training, learning_rate
from lowdim.errors import DataError, LowdimWarning

__all__ = ["PROBES", "Monitor"]

PROBES = ("sharpness", "oscillation", "rank", "drift", "balance")
"""What can be measured; all of it by default."""


class Monitor:
    """Watch a training: sharpness against what the learning rate bears, oscillation, ranks, drift, balance.

    Call :meth:`step` after every optimizer step. The training is the same to the last bit with and
    without it, and an error within it becomes a warning, once per kind; the metric is left out.

    Parameters
    ----------
    model : nn.Module
        With its DDP or FSDP2 wrapper where there is one: then every process makes a Monitor, and the first
        one reports. Trainable floating-point parameters are watched (of a LoRA model, the adapters).
    loss_fn : callable, optional
        ``loss_fn()``, the scalar loss on a batch that stays the same, or ``loss_fn(batch)`` with `batches`.
        Without it there is no sharpness. A quarter of a training batch is enough.
    optimizer : torch.optim.Optimizer, optional
        For the threshold of the sharpness and the learning rate.
    every : int
        Steps between reports. Oscillation is looked at every step.
    probes : sequence of {"sharpness", "oscillation", "rank", "drift", "balance"}
        What is measured.
    sink : callable, path, logger, or a sequence of these, optional
        Where reports go: see :func:`lowdim.dynamics.sinks.as_sinks`.
    batches : sequence, optional
        Parts of the probe batch.
    strict : bool
        Raise errors instead of warning.
    select : str or callable, optional
        Which parameters: a regular expression found in the name, or a function of it.
    average : int
        Steps over which the alternation is averaged, against the noise of small batches.
    detector : EdgeDetector, optional
        Decides from the alternation whether the training is at the edge.
    chains : mapping or sequence of lists of names, optional
        Linear layers that follow each other, for the balance; those within ``nn.Sequential`` are found.
    rank_of : sequence of {"weight", "gradient", "update"}
        Whose ranks are measured.
    rank_limit : int
        Smaller dimension of a matrix up to which its effective rank is computed.
    drift_rank : int
        Leading singular directions whose drift is measured.
    curvature : mapping, optional
        More options of :class:`lowdim.dynamics.SharpnessTracker`, such as ``{"method": "difference"}``.
        Without a tolerance among them a look ends when one more product adds no more than 3e-3 of the
        sharpness, or 0.01 of the threshold: far below the edge two or three digits of it say enough.
    seed : int
        Of sketches and start vectors.

    Attributes
    ----------
    last : dict of str to float
        The last report.
    crossed_at : int or None
        The step at which the detector first found the training at the edge.

    Raises
    ------
    DataError
        If an option is wrong or there is no parameter to watch.

    Notes
    -----
    Metrics: ``dyn/sharpness``, ``dyn/threshold``, ``dyn/sharpness_ratio``, ``dyn/sharpness_residual`` (an
    eigenvalue lies within it), ``dyn/lowest_curvature``, ``dyn/hvps`` (products spent); ``dyn/alternation``
    (mean since the last report), ``dyn/edge``, ``dyn/period``, ``dyn/osc_rank``; ``dyn/erank/NAME``,
    ``dyn/srank/NAME`` (and ``erank_grad``, ``erank_update``, ...); ``dyn/drift_deg/NAME``;
    ``dyn/balance_gap/CHAIN``; ``dyn/loss`` (mean of what was given to `step`), ``dyn/lr``, ``dyn/seconds``
    (spent by the Monitor since the last report).

    Gradients are read after the optimizer step: a GradScaler has unscaled them then, and clearing
    them right after the step leaves their ranks out.

    Examples
    --------
    >>> import torch
    >>> x, y = torch.randn(64, 8), torch.randn(64, 2)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> loss_fn = lambda: (model(x) - y).square().mean()
    >>> with Monitor(model, loss_fn, optimizer=optimizer, every=20) as monitor:
    ...     for _ in range(20):
    ...         optimizer.zero_grad()
    ...         loss = loss_fn()
    ...         loss.backward()
    ...         optimizer.step()
    ...         report = monitor.step(loss=loss)
    >>> report["dyn/threshold"], 0 < report["dyn/sharpness_ratio"] < 1, report["dyn/alternation"] < -0.9
    (20.0, True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Any] | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 100,
        probes: Sequence[str] = PROBES,
        sink: Any = None,
        batches: Sequence[Any] | None = None,
        strict: bool = False,
        select: Select = None,
        average: int = 1,
        detector: EdgeDetector | None = None,
        chains: Mapping[str, Sequence[str]] | Sequence[Sequence[str]] | None = None,
        rank_of: Sequence[str] = ("weight",),
        rank_limit: int = LIMIT,
        drift_rank: int = 4,
        curvature: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        check_counts(every=every, average=average, rank_limit=rank_limit, drift_rank=drift_rank)
        self.probes = names("probes", probes, PROBES)
        self._rank_of = names("rank_of", rank_of, tuple(RankProbe._SUFFIX))
        if loss_fn is not None and not callable(loss_fn):
            raise DataError(
                f"Monitor: loss_fn is a {type(loss_fn).__name__}, expected a function that returns the loss "
                f"on a fixed batch."
            )
        FlatParameters.of(model, select=select, among=trained_by(optimizer))
        check_options(curvature or {})
        found = find_chains(model) if chains is None else declared_chains(model, chains)
        self.model = model
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.every = every
        self.sinks = as_sinks(sink)
        self.last: dict[str, float] = {}
        self.ready: Callable[[], bool] = lambda: True
        self._chains = found
        self._batches, self._select, self._strict, self._seed = batches, select, strict, seed
        self._average, self._rank_limit, self._drift_rank = average, rank_limit, drift_rank
        self._detector = EdgeDetector() if detector is None else detector
        self._curvature = dict(curvature or {})
        self._training: Training | None = None
        self._active: list[Probe] = []
        self._warned: set[str] = set()
        self._opened = self._closed = False
        self._step = 0
        self._losses: list[Any] = [0.0, 0]
        self._seconds = 0.0

    def step(self, step: int | None = None, *, loss: Tensor | float | None = None) -> dict[str, float] | None:
        """Take note of an optimizer step.

        Parameters
        ----------
        step : int, optional
            Its number, counted from 1; one more than the last by default.
        loss : Tensor or float, optional
            Its loss, for ``dyn/loss``.

        Returns
        -------
        dict of str to float, or None
            The report, every `every` steps.
        """
        began = perf_counter()
        if self._closed:
            self.warn(
                "closed", "it is closed, and looks at no more steps. Make another one for another training."
            )
            return None
        if not self.ready():
            return None
        self._step = self._step + 1 if step is None else int(step)
        if loss is not None:
            # No float(): a GPU would have to be waited for.
            value = loss.detach() if isinstance(loss, Tensor) else loss
            self._losses = [self._losses[0] + value, self._losses[1] + 1]
        report = None
        with self.caught("start"):
            training = self._begun()
            training.step = self._step
            for probe in self._active:
                with self.caught(probe.name):
                    probe.watch(training)
            if self._step % self.every == 0:
                report = self._report(training, began)
        self._seconds += perf_counter() - began
        return report

    @property
    def crossed_at(self) -> int | None:
        """The step at which the training was first found at the edge, from its alternation alone."""
        probe = self._oscillation()
        return None if probe is None else probe.crossed_at

    @property
    def alternation(self) -> list[tuple[int, float]]:
        """Step and alternation of the last steps, up to 65536; after FSDP, up to the last report."""
        probe = self._oscillation()
        return [] if probe is None else list(probe.scores)

    def close(self) -> None:
        """Close files and writers. Steps after this are not looked at, which is said once."""
        if self._closed:
            return
        self._closed = True
        for sink in self.sinks if self._opened else ():
            if hasattr(sink, "close"):
                with self.caught("sink"):
                    sink.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def as_trainer_callback(self, trainer: Any = None, **options: Any) -> Any:
        """Return a callback for the Trainer of transformers, which calls `step`.

        Parameters
        ----------
        trainer : Trainer, optional
            Reports go through its ``log`` then, to all its loggers; into its ``state.log_history`` otherwise.
        **options
            See :class:`lowdim.dynamics.transformers.MonitorCallback`.

        Returns
        -------
        TrainerCallback

        Raises
        ------
        MissingExtra
            If transformers is not installed.
        """
        from lowdim.dynamics.transformers import MonitorCallback

        return MonitorCallback(self, trainer=trainer, **options)

    def as_lightning_callback(self, **options: Any) -> Any:
        """Return a callback for the Trainer of Lightning, which calls `step` and logs to its loggers.

        Parameters
        ----------
        **options
            See :func:`lowdim.dynamics.lightning.monitor_callback`.

        Returns
        -------
        lightning.pytorch.Callback

        Raises
        ------
        MissingExtra
            If Lightning is not installed.
        """
        from lowdim.dynamics.lightning import monitor_callback

        return monitor_callback(self, **options)

    def as_accelerate_logger(self, accelerator: Any) -> Monitor:
        """Log to the trackers of an Accelerator, and look only where gradients were accumulated to the end.

        Parameters
        ----------
        accelerator : accelerate.Accelerator

        Returns
        -------
        Monitor
            This one.
        """
        from lowdim.dynamics.accelerate import attach

        return attach(self, accelerator)

    def warn(self, kind: str, text: str) -> None:
        """Warn, once for each kind.

        Parameters
        ----------
        kind : str
            What it is about.
        text : str
            What to say, with a remedy.
        """
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"Monitor: {text}", LowdimWarning, stacklevel=3)

    def _oscillation(self) -> OscillationProbe | None:
        probe = next((p for p in self._active if isinstance(p, OscillationProbe)), None)
        if probe is not None and self._training is not None and not self._training.layout.sharded:
            probe.settle(self._training)
        return probe

    @contextmanager
    def caught(self, name: str) -> Iterator[None]:
        """Turn an error inside into a warning, once for each kind of error under a name; unless strict."""
        try:
            yield
        except Exception as error:
            if self._strict:
                raise
            self.warn(
                f"{name}: {type(error).__name__}",
                f"{name} is left out at step {self._step}, and where it fails again: {type(error).__name__}: "
                f"{error} (Monitor(strict=True) raises it.)",
            )

    def _begun(self) -> Training:
        """Make the probes at the first step: an optimizer or a loss may have come late."""
        if self._training is None:
            training = Training.of(
                self.model, optimizer=self.optimizer, select=self._select, every=self.every, warn=self.warn
            )
            made = [self._made(name, training) for name in self.probes]
            self._active = [probe for probe in made if probe is not None]
            self._training = training
        if not self._opened:
            self._open(self._training)
        return self._training

    def _made(self, name: str, training: Training) -> Probe | None:
        if name == "sharpness":
            if self.loss_fn is None:
                self.warn(
                    "loss",
                    "there is no loss_fn, so sharpness is not measured. Give a function that returns the "
                    "loss on a fixed batch, or leave 'sharpness' out of probes.",
                )
                return None
            # Who names a tolerance means it: the threshold does not loosen it then.
            loose = {} if "tol" in self._curvature else {"tol": 3e-3, "ratio_tol": 0.01}
            options: dict[str, Any] = {"select": self._select, "seed": self._seed, **loose, **self._curvature}
            with self.caught(name):
                tracker = SharpnessTracker(
                    self.model, self.loss_fn, optimizer=self.optimizer, batches=self._batches, **options
                )
                return SharpnessProbe(tracker)
            return None
        if name == "oscillation":
            sketch = self._sketch(training)
            return OscillationProbe(sketch, average=self._average, detector=self._detector)
        if name == "rank":
            vectors = self._drift_rank if "drift" in self.probes else 0
            return RankProbe(of=self._rank_of, vectors=vectors, limit=self._rank_limit)
        if name == "drift":
            return DriftProbe(rank=self._drift_rank, limit=self._rank_limit)
        return BalanceProbe(self._chains)

    def _sketch(self, training: Training) -> ParameterSketch:
        return ParameterSketch(training.parameters.tensors, seed=training.layout.seed(self._seed))

    def _follow(self, training: Training) -> None:
        """Go on with other parameters where layers were frozen or thawed since the last report."""
        with self.caught("parameters"):
            if training.follow(self.optimizer, self._select):
                for probe in self._active:
                    if isinstance(probe, OscillationProbe):
                        probe.turn_to(self._sketch(training), training)

    def _open(self, training: Training, *, last: bool = False) -> None:
        """Tell the sinks what is trained, as soon as the optimizer can say what it bears."""
        limit = None
        try:
            if self.optimizer is not None:
                limit = stability(self.optimizer, training.parameters)
        except DataError as error:
            # Adam has no second moments before its first step, which a GradScaler may have left out.
            if not last:
                return
            self.warn("threshold", f"the sharpness is reported without a threshold: {error}")
            for probe in self._active:
                if isinstance(probe, SharpnessProbe):
                    probe.tracker.optimizer = None
        self._opened = True
        header = training.header(self.optimizer, limit) | {"probes": [probe.name for probe in self._active]}
        for sink in self.sinks if training.writes else ():
            if hasattr(sink, "open"):
                with self.caught("sink"):
                    sink.open(header)

    def _report(self, training: Training, began: float) -> dict[str, float]:
        if not self._opened:
            self._open(training, last=True)
        self._follow(training)
        training.spectra.clear()
        metrics: dict[str, Any] = {}
        total, count = self._losses
        if count:
            metrics["dyn/loss"] = total / count
        if self.optimizer is not None:
            metrics["dyn/lr"] = learning_rate(self.optimizer)
        for probe in self._active:
            with self.caught(probe.name):
                metrics |= probe.measure(training)
        training.spectra.clear()
        self._losses = [0.0, 0]
        metrics["dyn/seconds"] = self._seconds + perf_counter() - began
        self._seconds = began - perf_counter()  # what follows counts for the next report
        self.last = {name: float(value) for name, value in metrics.items()}
        for sink in self.sinks if training.writes else ():
            with self.caught("sink"):
                sink(self._step, self.last)
        return self.last
