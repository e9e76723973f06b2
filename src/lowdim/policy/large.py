"""The second policy of a run: a model with its own optimizer, schedule and folder in the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.errors import RunError

__all__ = ["LargePolicy", "load_optimizer", "save_optimizer"]

FORMAT = 1


class LargePolicy:
    """A model beside the Trainer's own one, trained by an optimizer of its own.

    Parameters
    ----------
    model : nn.Module
        The model, adapters included.
    trainable : bool
        False for a frozen teacher.
    offload : {False, True, "all"}
        What waits in the CPU's memory while the model is not needed: nothing, the optimizer's moments, or
        these and the weights.

    Attributes
    ----------
    model : nn.Module
        The model itself.
    wrapped : nn.Module
        The model as the processes train it (DistributedDataParallel, shards); the model itself before
        :meth:`prepare` and in a single process.
    optimizer, scheduler : object or None
        None before :meth:`prepare`, and for a frozen teacher.

    Examples
    --------
    >>> from torch import nn
    >>> LargePolicy(nn.Linear(2, 2), trainable=False).trainable
    False
    """

    def __init__(self, model: nn.Module, *, trainable: bool = True, offload: bool | str = False) -> None:
        self.model = model
        self.wrapped = model
        self.trainable = trainable
        self.offload = offload
        self.optimizer: Any = None
        self.scheduler: Any = None
        self._device: torch.device | None = None
        self._resting = False
        if not trainable:
            model.requires_grad_(False)

    def prepare(
        self,
        prepare: Callable[..., Any],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        schedule: Callable[[Any], Any] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Place the model, and bring optimizer and schedule along.

        Parameters
        ----------
        prepare : callable
            ``prepare(model, optimizer)`` or, for a frozen teacher, ``prepare(model)``: places and wraps them.
        optimizer : torch.optim.Optimizer or None
            Of the model's parameters.
        schedule : callable or None
            From the prepared optimizer to its learning rate scheduler.
        device : torch.device or None
            Where the model works.
        """
        self._device = device
        if self.trainable and optimizer is not None and schedule is not None:
            self.wrapped, self.optimizer = prepare(self.model, optimizer)
            self.scheduler = schedule(self.optimizer)
        else:
            self.wrapped = prepare(self.model)
        self.wrapped.train()

    def step(self, clip: Callable[[nn.Module], Tensor | float]) -> float:
        """Clip the gradient, step optimizer and schedule, forget the gradient.

        Parameters
        ----------
        clip : callable
            Clips the gradient of the wrapped model and returns its norm.

        Returns
        -------
        float
            Norm of the gradient before clipping.
        """
        norm = clip(self.wrapped)
        self.optimizer.step()
        self.scheduler.step()
        self.wrapped.zero_grad()
        return float(norm)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step; 0 for a frozen teacher."""
        return 0.0 if self.optimizer is None else float(self.optimizer.param_groups[0]["lr"])

    def rest(self) -> None:
        """Move what `offload` names to the CPU's memory."""
        if not self.offload or self._resting or self._device is None or self._device.type == "cpu":
            return
        self._move(torch.device("cpu"))
        self._resting = True

    def wake(self) -> None:
        """Move it back to the device."""
        if self._resting and self._device is not None:
            self._move(self._device)
            self._resting = False

    def _move(self, device: torch.device) -> None:
        for state in _optimizer_state(self.optimizer):
            for name, value in state.items():
                # The step counters of PyTorch's optimizers live on the CPU or beside their parameter: as
                # they were.
                if isinstance(value, Tensor) and value.dim():
                    state[name] = value.to(device)
        if self.offload == "all":
            self.model.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Schedule and format, as plain values; tensors are saved by :func:`save_optimizer`."""
        schedule = {} if self.scheduler is None else self.scheduler.state_dict()
        return {"format": FORMAT, "scheduler": {k: v for k, v in schedule.items() if _plain(v)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's schedule.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict`.

        Raises
        ------
        RunError
            If a newer version of lowdim wrote it.
        """
        if state.get("format") != FORMAT:
            raise RunError(
                f"LargePolicy: the checkpoint's large model has format {state.get('format')}, this version "
                f"of lowdim reads {FORMAT}. Resume with the version that wrote it."
            )
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _whole(tensor: Any) -> Tensor:
    """Gather the shards of a tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _sharded(value: Any, parameter: Any) -> Any:
    """Cut a tensor as its parameter is cut."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def _like(value: Any, known: Any) -> Any:
    """Make a tuple of what JSON made a list."""
    return tuple(value) if isinstance(known, tuple) else value


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Unwrap accelerate's optimizer."""
    return getattr(optimizer, "optimizer", optimizer)


def _optimizer_state(optimizer: Any) -> Iterator[dict[str, Any]]:
    if optimizer is not None:
        yield from _inner(optimizer).state.values()


def save_optimizer(
    optimizer: Any, folder: str | Path, *, extra: dict[str, Any] | None = None, write: bool = True
) -> None:
    """Write an optimizer's state as safetensors and JSON.

    Sharded states are gathered, so every process calls this and one of them writes.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Or accelerate's wrapper of one.
    folder : path
        Gets ``optimizer.safetensors`` and ``state.json``.
    extra : dict, optional
        Plain values to keep beside it.
    write : bool
        Whether this process writes.
    """
    from safetensors.torch import save_file

    state = {"state": {}, "param_groups": []} if optimizer is None else _inner(optimizer).state_dict()
    tensors = {
        f"{number}.{name}": _whole(value.detach()).cpu().contiguous()
        for number, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    plain = {
        str(number): {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        for number, values in state["state"].items()
    }
    groups = [{k: v for k, v in group.items() if _plain(v)} for group in state["param_groups"]]
    if not write:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "optimizer.safetensors")
    text = json.dumps({"groups": groups, "plain": plain, **(extra or {})}, indent=1)
    (folder / "state.json").write_text(text, encoding="utf-8")


def load_optimizer(optimizer: Any, folder: str | Path) -> dict[str, Any]:
    """Read what :func:`save_optimizer` wrote into an optimizer of the same parameters.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer or None
        Or accelerate's wrapper of one.
    folder : path
        The folder.

    Returns
    -------
    dict
        The plain values that were kept beside it.

    Raises
    ------
    RunError
        If files are missing, or the optimizer has other parameters.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        kept = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"LargePolicy: the checkpoint {folder.parent} has no usable large model ({error}). Resume from "
            "an earlier checkpoint, or start anew."
        ) from error
    if optimizer is None:
        return kept
    state: dict[int, dict[str, Any]] = {int(n): dict(values) for n, values in kept["plain"].items()}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    inner = _inner(optimizer)
    trained = [p for group in inner.param_groups for p in group["params"]]
    for index, parameter in enumerate(trained):
        if index in state and hasattr(parameter, "full_tensor"):
            state[index] = {name: _sharded(value, parameter) for name, value in state[index].items()}
    groups = [
        {name: _like(saved.get(name, value), value) for name, value in now.items()}
        for now, saved in zip(inner.state_dict()["param_groups"], kept["groups"], strict=False)
    ]
    try:
        inner.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:
        raise RunError(
            f"LargePolicy: the large model's optimizer in {folder} is of other parameters ({error}). Resume "
            "with the same large model and the same adapters."
        ) from error
    return kept
