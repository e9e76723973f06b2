"""A Monitor in the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

from torch import nn

from lowdim.dynamics.frozen import SHARE, freeze
from lowdim.dynamics.monitor import Monitor
from lowdim.errors import MissingExtra

try:
    from transformers import TrainerCallback
except ImportError as error:  # pragma: no cover - exercised in a process without transformers
    raise MissingExtra("transformers", extra="transformers", purpose="watch its Trainer") from error

__all__ = ["MonitorCallback"]


class MonitorCallback(TrainerCallback):
    """Call a Monitor after every optimizer step of the Trainer.

    Without a ``loss_fn`` of its own, the Monitor looks at a part of the first training batch, which is
    copied as the model sees it; the data loader is not touched.

    Parameters
    ----------
    monitor : Monitor
        Of the Trainer's model.
    trainer : Trainer, optional
        Reports go through its ``log``, to all its loggers; into ``state.log_history`` without it.
    loss : callable, optional
        ``loss(model, batch)`` on the copied keyword arguments of the model; the model's own loss otherwise.
    share : float
        Part of the first batch that is looked at.
    """

    def __init__(
        self,
        monitor: Monitor,
        *,
        trainer: Any = None,
        loss: Callable[[nn.Module, Any], Any] | None = None,
        share: float = SHARE,
    ) -> None:
        self.monitor = monitor
        self._trainer = trainer
        self._loss = loss
        self._share = share
        self._handle: Any = None
        self._report: dict[str, float] | None = None
        self._logged: float | None = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Take the optimizer, and wait for the first batch."""
        if self.monitor.optimizer is None:
            self.monitor.optimizer = optimizer
        if self.monitor.loss_fn is None and "sharpness" in self.monitor.probes and model is not None:
            self._handle = model.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not model.training or self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        with self.monitor.caught("probe batch"):
            # The number of labels of all batches of a step belongs to that step.
            batch = {key: value for key, value in kwargs.items() if key != "num_items_in_batch"}
            args, batch = freeze((args, batch), share=self._share)
            loss = self._loss
            self.monitor.loss_fn = (
                (lambda: model(*args, **batch)) if loss is None else lambda: loss(model, batch)
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look after the optimizer step, while the gradients are there."""
        self._report = self.monitor.step(state.global_step + 1, loss=self._logged)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the report, now that the Trainer has counted the step."""
        if self._report is None or not state.is_world_process_zero:
            return
        report, self._report = {k: v for k, v in self._report.items() if isfinite(v)}, None
        with self.monitor.caught("log"):
            if self._trainer is not None:
                self._trainer.log(report)
            else:
                state.log_history.append({**report, "epoch": state.epoch, "step": state.global_step})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Take note of the training loss, which the Trainer tells to its logs only."""
        if logs and "loss" in logs:
            self._logged = float(logs["loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the Monitor."""
        if self._handle is not None:
            self._handle.remove()
        self.monitor.close()
