"""A Monitor in the Trainer of Lightning."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from math import isfinite
from typing import Any

from lowdim.dynamics.frozen import SHARE, freeze
from lowdim.dynamics.monitor import Monitor
from lowdim.errors import MissingExtra

__all__ = ["monitor_callback"]


def monitor_callback(
    monitor: Monitor, *, loss: Callable[[Any, Any], Any] | None = None, share: float = SHARE
) -> Any:
    """Return a callback that calls a Monitor after every optimizer step, and logs to the Trainer's loggers.

    Parameters
    ----------
    monitor : Monitor
        Of the LightningModule.
    loss : callable, optional
        ``loss(module, batch)``, a scalar. With it the sharpness on a part of the first
        training batch is measured. (``training_step`` would log, and count in metrics.)
    share : float
        Part of the first batch that is looked at.

    Returns
    -------
    lightning.pytorch.Callback

    Raises
    ------
    MissingExtra
        If Lightning is not installed.
    """

    class MonitorCallback(_callback_class()):  # type: ignore[misc]
        """Call a Monitor after every optimizer step."""

        def __init__(self) -> None:
            self.monitor = monitor
            self._losses: list[Any] = []
            self._seen = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if monitor.optimizer is None and trainer.optimizers:
                monitor.optimizer = trainer.optimizers[0]
            self._seen = trainer.global_step

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if loss is None or monitor.loss_fn is not None:
                return
            with monitor.caught("probe batch"):
                frozen = freeze(batch, share=share)
                monitor.loss_fn = lambda: loss(pl_module, frozen)

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            value = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if value is not None:
                self._losses.append(value)
            if trainer.global_step <= self._seen:
                return  # gradients are still accumulated
            self._seen = trainer.global_step
            # Lightning has divided the parts of an accumulated step by their number.
            total = sum(self._losses) if self._losses else None
            self._losses = []
            # It counts the steps of all optimizers together.
            report = monitor.step(trainer.global_step // max(1, len(trainer.optimizers)), loss=total)
            if report is not None and trainer.is_global_zero:
                finite = {name: value for name, value in report.items() if isfinite(value)}
                for logger in trainer.loggers:
                    with monitor.caught("log"):
                        logger.log_metrics(finite, step=trainer.global_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            monitor.close()

    return MonitorCallback()


def _callback_class() -> Any:
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(package).Callback
        except ImportError:
            continue
    raise MissingExtra("lightning", extra="dynamics", purpose="watch its Trainer")
