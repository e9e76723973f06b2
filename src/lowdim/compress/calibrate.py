"""Second moments of the inputs of linear layers, streamed over calibration batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.compress.timing import Batch, feed
from lowdim.errors import DataError, LowdimWarning

__all__ = ["Moments", "evaluation_mode", "execution_groups", "second_moments"]


# Most tokens that are multiplied at once, and least width of a strip of their product.
_GATHERED, _STRIP = 2048, 128


@dataclass(frozen=True)
class Moments:
    """Second moments of layer inputs; layers that read the same input share one matrix.

    Parameters
    ----------
    matrices : dict of str to Tensor
        For the first layer of every group, H = mean of x x^T over the tokens that are not padding,
        (n, n), float32.
    owner : dict of str to str
        For every layer, the layer under whose name its matrix is stored.
    tokens : int
        Tokens seen by the widest-read input.
    crosses : dict of str to Tensor
        C = mean of z x^T, where z is the input of the same layer in the original model; filled by
        ``second_moments(..., original=...)`` only.

    Examples
    --------
    >>> moments = Moments({"q": torch.eye(2)}, {"q": "q", "k": "q"}, tokens=10)
    >>> moments.of("k") is moments.of("q")
    True
    """

    matrices: dict[str, Tensor]
    owner: dict[str, str]
    tokens: int
    crosses: dict[str, Tensor] = field(default_factory=dict)

    def of(self, name: str) -> Tensor:
        """Return H (n, n), float32, of the layer called `name`."""
        if name not in self.owner:
            raise DataError(f"Moments: layer {name!r} was not calibrated. Known: {', '.join(self.owner)}.")
        return self.matrices[self.owner[name]]

    def target(self, name: str, weight: Tensor, *, ridge: float = 1e-4) -> Tensor:
        """Return the matrix that best reproduces the original outputs from the present inputs.

        With z the input in the original model and x the input now, the mean of |A z - B x|^2 differs by a
        constant from |(B - B*) H^(1/2)|^2 with B* = A (C + d I)(H + d I)^-1, so that a factorization of
        B* under H also makes up for the errors of the layers before. The ridge d keeps B* near A where
        there are no data.

        Parameters
        ----------
        name : str
            The layer.
        weight : Tensor
            A, (m, n).
        ridge : float
            d as a fraction of the mean diagonal of H.

        Returns
        -------
        Tensor
            B*, (m, n), in the dtype of `weight`.

        Raises
        ------
        DataError
            If the moments were taken without the original model.

        Examples
        --------
        >>> eye = torch.eye(2)
        >>> Moments({"q": eye}, {"q": "q"}, 10, {"q": eye}).target("q", eye)
        tensor([[1., 0.],
                [0., 1.]])
        """
        H = self.of(name).double()
        if self.owner[name] not in self.crosses:
            raise DataError(
                f"Moments: no cross moments of {name!r}. Call second_moments(..., original=model)."
            )
        C = self.crosses[self.owner[name]].double()
        d = ridge * H.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        eye = torch.eye(len(H), dtype=H.dtype, device=H.device)
        A = weight.detach().to(H.device, H.dtype)
        # B* (H + d I) = A (C + d I); H + d I is symmetric and positive.
        solved = torch.linalg.solve(H + d * eye, (A @ (C + d * eye)).T).T
        return solved.to(weight.device, weight.dtype)


def execution_groups(model: nn.Module, batch: Batch, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the layers in the order in which they run, those with one common input together.

    Parameters
    ----------
    model : Module
        Contains the layers.
    batch : mapping, tuple or Tensor
        One batch of inputs.
    names : sequence of str
        Names of the layers, as in ``model.named_modules()``.

    Returns
    -------
    list of tuple of str
        For example (query, key, value), (output,), ...

    Raises
    ------
    DataError
        If a layer does not exist or does not run.

    Examples
    --------
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b, self.c = (nn.Linear(2, 2) for _ in range(3))
    ...     def forward(self, x):
    ...         return self.c(self.a(x) + self.b(x))
    >>> execution_groups(Net(), torch.ones(1, 2), ["c", "b", "a"])
    [('a', 'b'), ('c',)]
    """
    inputs: dict[str, list[Tensor]] = {}

    def record(name: str, x: Tensor) -> None:
        inputs.setdefault(name, []).append(x)

    with torch.no_grad(), evaluation_mode(model), _hooks(model, names, record):
        feed(model, batch)
    if silent := [name for name in names if name not in inputs]:
        raise DataError(
            f"calibration: layer {silent[0]!r} does not run on the calibration inputs "
            f"({len(silent)} such). Leave it out with exclude=, or give inputs that reach it."
        )
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, tensors in inputs.items():
        groups.setdefault(tuple(map(id, tensors)), []).append(name)
    return [tuple(group) for group in groups.values()]


def second_moments(
    model: nn.Module,
    batches: Iterable[Batch],
    names: Sequence[str],
    *,
    original: nn.Module | None = None,
    max_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Moments:
    """Mean of x x^T over calibration tokens, for the input x of every named layer.

    Every batch is summed in float32 and added up in float64, so that long calibration sets lose nothing.
    Padding (``attention_mask`` == 0) is left out wherever the input is (batch, seq, n) or flattened to
    (batch * seq, n). An input that several layers read (query, key, value) is summed and stored once.

    Parameters
    ----------
    model : Module
        The model; it runs in evaluation mode, without gradients, where its parameters are.
    batches : iterable of mapping, tuple or Tensor
        Inputs; read more than once when `max_bytes` asks for several passes.
    names : sequence of str
        Layers (nn.Linear, Conv1D, StructuredLinear, ...) as in ``model.named_modules()``.
    original : Module, optional
        The model before compression: then the cross moments C = mean of z x^T with its inputs z are
        taken too (sequential calibration, `Moments.target`).
    max_bytes : int, optional
        Memory for the running sums; with more layers than fit, several passes are made.
    progress : callable, optional
        Called with (batches done, batches in all).

    Returns
    -------
    Moments
        On the CPU, float32.

    Raises
    ------
    DataError
        If there is no batch, a layer never runs, or an activation is not finite (the layer is named).

    Notes
    -----
    With fewer than 2 n tokens H is (nearly) rank-deficient: a `LowdimWarning` says so.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3, bias=False))
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).repeat(2, 1)
    >>> second_moments(net, [x], ["0"]).of("0")
    tensor([[0.5000, 0.0000],
            [0.0000, 2.0000]])
    """
    batches = batches if isinstance(batches, Sequence) else list(batches)
    if not batches:
        raise DataError("calibration: there is no batch of inputs. Give text or inputs to calibrate with.")
    groups = execution_groups(model, batches[0], names)
    try:
        sums = _passes(model, batches, groups, original, max_bytes, progress)
    except _SharingChangedError:  # layers that shared their input in the first batch do not in a later one
        groups = [(name,) for group in groups for name in group]
        sums = _passes(model, batches, groups, original, max_bytes, progress)
    matrices = {name: (total.H / total.count).float() for name, total in sums.items()}
    crosses = {name: (s.C / s.count).float() for name, s in sums.items() if s.C is not None}
    short = [name for name, s in sums.items() if s.count < 2 * len(s.H)]
    if short:
        worst = max(short, key=lambda name: len(sums[name].H) / sums[name].count)
        warnings.warn(
            LowdimWarning(
                f"calibration: {sums[worst].count} tokens for {worst!r} with {len(sums[worst].H)} inputs; "
                f"its second moment is rank-deficient (as for {len(short)} of {len(sums)} inputs), so it is "
                f"damped. "
                f"Give at least {2 * len(sums[worst].H)} tokens."
            ),
            stacklevel=2,
        )
    owner = {name: group[0] for group in groups for name in group}
    return Moments(matrices, owner, max(s.count for s in sums.values()), crosses)


class _SharingChangedError(Exception):
    """Raised inside a pass when layers stop reading the same input."""


class _Sum:
    """Running sums of one input, in float64.

    Tokens are gathered before they are multiplied (as many as half of the n inputs, so that they take a
    quarter of the sum's memory): batches of short texts have too few for a fast product, and to add n^2
    numbers in float64 would take as long. Only what is on and right of the diagonal is computed.
    """

    def __init__(self, width: int) -> None:
        self.H = torch.zeros(width, width, dtype=torch.float64)
        self.C: Tensor | None = None
        self.count = 0
        self._capacity = min(max(width // 2, 1), _GATHERED)
        self._waiting = 0
        self._x: Tensor | None = None
        self._z: Tensor | None = None

    def add(self, x: Tensor, z: Tensor | None) -> None:
        """Add tokens x (N, n) and, if given, the original's z (N, n)."""
        if self._x is None:
            dtype = torch.promote_types(x.dtype, torch.float32)
            self._x = x.new_empty(self._capacity, x.shape[1], dtype=dtype)
            self._z = None if z is None else torch.empty_like(self._x)
        self.count += len(x)
        while len(x):
            room = slice(self._waiting, self._waiting + len(x))
            taken = len(self._x[room])
            self._x[room] = x[:taken]
            if self._z is not None and z is not None:
                self._z[room], z = z[:taken], z[taken:]
            x, self._waiting = x[taken:], self._waiting + taken
            if self._waiting == self._capacity:
                self._multiply()

    def close(self) -> None:
        """Add what is waiting, and complete the matrix to the left of its diagonal."""
        self._multiply()
        self._x = self._z = None
        above = self.H.triu(1)
        self.H.triu_().add_(above.T)

    def _multiply(self) -> None:
        if self._x is None or not self._waiting:
            return
        x = self._x[: self._waiting]
        strip = max(x.shape[1] // 8, _STRIP)
        for start in range(0, x.shape[1], strip):
            part = x[:, start : start + strip].T @ x[:, start:]
            self.H[start : start + strip, start:] += part.to(self.H)
        if self._z is not None:
            self.C = torch.zeros_like(self.H) if self.C is None else self.C
            self.C += (self._z[: self._waiting].T @ x).to(self.C)
        self._waiting = 0


def _passes(
    model: nn.Module,
    batches: Sequence[Batch],
    groups: list[tuple[str, ...]],
    original: nn.Module | None,
    max_bytes: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, _Sum]:
    """Sum over all batches, in as many passes as the memory for the sums asks for."""
    modules = dict(model.named_modules())
    width = {group[0]: _width(modules[group[0]]) for group in groups}
    chunks: list[list[tuple[str, ...]]] = [[]]
    used = 0
    for group in groups:
        need = 10 * width[group[0]] ** 2 * (1 if original is None else 2)
        if chunks[-1] and max_bytes is not None and used + need > max_bytes:
            chunks.append([])
            used = 0
        chunks[-1].append(group)
        used += need
    sums: dict[str, _Sum] = {}
    for number, chunk in enumerate(chunks):
        running = {group[0]: _Sum(width[group[0]]) for group in chunk}
        for done, batch in enumerate(batches, start=1):
            _add_batch(model, batch, chunk, running, original)
            if progress is not None:
                progress(number * len(batches) + done, len(chunks) * len(batches))
        for total in running.values():
            total.close()
        sums |= running
    return sums


def _add_batch(
    model: nn.Module,
    batch: Batch,
    groups: list[tuple[str, ...]],
    sums: dict[str, _Sum],
    original: nn.Module | None,
) -> None:
    """Run one batch and add its inputs; verify that the layers of a group still share theirs."""
    leader = {name: group[0] for group in groups for name in group}
    seen: dict[str, list[Tensor]] = {name: [] for name in leader}
    references: dict[str, list[Tensor]] = {group[0]: [] for group in groups}
    masks = _masks(batch)

    def keep(name: str, x: Tensor) -> None:
        references[name].append(_tokens(x, masks))

    def add(name: str, x: Tensor) -> None:
        seen[name].append(x)
        if leader[name] == name:
            calls = references[name]
            tokens = _tokens(x, masks)
            if not bool(torch.isfinite(tokens).all()):
                raise DataError(
                    f"calibration: the input of layer {name!r} is not finite. Check the model's weights, "
                    "or run it in float32 (dtype=torch.float32)."
                )
            sums[name].add(tokens, calls.pop(0).to(tokens) if calls else None)

    with torch.no_grad():
        if original is not None:
            with evaluation_mode(original), _hooks(original, list(references), keep):
                feed(original, batch)
        with evaluation_mode(model), _hooks(model, list(leader), add):
            feed(model, batch)
    for name, first in leader.items():
        if [id(x) for x in seen[name]] != [id(x) for x in seen[first]]:
            raise _SharingChangedError(name)


def _width(module: nn.Module) -> int:
    """Count the inputs of a linear layer; Conv1D stores its weight as (n, m)."""
    features = getattr(module, "in_features", None)
    if isinstance(features, int):
        return features
    weight = module.get_parameter("weight")
    return int(weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[-1])


def _masks(batch: Batch) -> list[Tensor]:
    """Token masks (batch, seq) of a batch, the encoder's first."""
    if not isinstance(batch, Mapping):
        return []
    found = (batch.get(key) for key in ("attention_mask", "decoder_attention_mask"))
    return [mask for mask in found if isinstance(mask, Tensor) and mask.dim() == 2]


def _tokens(x: Tensor, masks: list[Tensor]) -> Tensor:
    """Return the rows (N, n) of an activation that are not padding, in float32 at least."""
    x = x if x.dtype == torch.float64 else x.float()
    for mask in masks:
        if x.shape[:-1] == mask.shape or (x.dim() == 2 and len(x) == mask.numel()):
            return x.reshape(-1, x.shape[-1])[mask.to(x.device).reshape(-1).bool()]
    return x.reshape(-1, x.shape[-1])


@contextmanager
def _hooks(model: nn.Module, names: Sequence[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call note(name, input) whenever one of the layers runs."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if missing := [name for name in names if name not in modules]:
        raise DataError(
            f"calibration: the model has no layer {missing[0]!r}. Names are those of named_modules()."
        )

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            note(name, args[0] if args else next(iter(kwargs.values())))

        return hook

    handles = [modules[name].register_forward_pre_hook(hook_for(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and back to every module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
