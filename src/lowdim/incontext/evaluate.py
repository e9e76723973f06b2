"""Evaluate: the risk of a model over angles and context lengths, beside baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowdim.errors import DataError, ShapeError
from lowdim.incontext.attention import LinearAttention
from lowdim.incontext.baselines import BASELINES, baseline_errors
from lowdim.incontext.door import check_angles, check_count
from lowdim.incontext.optimal import risk
from lowdim.incontext.tasks import SubspaceTasks, Toward

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluate"]

_CHUNK = 1 << 22
"""Numbers of inputs drawn at a time."""


def evaluate(
    model: nn.Module | None,
    tasks: SubspaceTasks,
    *,
    angles_deg: Any = (0.0, 30.0, 45.0, 60.0, 90.0),
    context_lengths: Sequence[int],
    toward: Toward | Tensor | None = None,
    prompts: int = 2000,
    baselines: Sequence[str] = (),
    seed: int = 0,
    callback: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Measure risks on fresh prompts of the first subspace, turned.

    Parameters
    ----------
    model : nn.Module or None
        With ``errors(prompt)``, such as `LinearAttention` and `PromptTransformer`; None measures baselines
        only.
    tasks : SubspaceTasks
        That the model was trained on.
    angles_deg : sequence of float
        In degrees, in [0, 90].
    context_lengths : sequence of int
        Examples before the query.
    toward : "inside", "outside", "anywhere" or Tensor, optional
        See `SubspaceTasks.rotated`.
    prompts : int
        Fresh prompts for every angle, the same for all context lengths and predictors.
    baselines : sequence of str
        "zero", "ridge", "least squares" and "oracle": nothing, ridge regression in all dimensions, least
        squares, and the best predictor linear in the labels that knows the subspace.
    seed : int
        Of prompts, and of a direction that is drawn.
    callback : callable, optional
        Called with (done, total) after every angle.

    Returns
    -------
    DataFrame
        One row per predictor, angle and context length: ``predictor`` ("model", "theory" for linear attention
        on linear functions, or a baseline), ``angle_deg``, ``n``, ``risk`` (against labels without noise),
        ``se`` (its standard error, NaN for theory) and ``relative`` (risk over the variance of a label).

    Raises
    ------
    DataError, ShapeError, RankError
        If an option is out of range, a context longer than the model can see, or there is no room to turn.

    Examples
    --------
    >>> tasks = SubspaceTasks(4, r=1, seed=0)
    >>> table = evaluate(None, tasks, angles_deg=[0], context_lengths=[5], baselines=["zero", "oracle"])
    >>> table[["predictor", "n"]].values.tolist(), bool(table["risk"][1] < 1e-9)
    ([['zero', 5], ['oracle', 5]], True)
    """
    import pandas as pd

    where = "evaluate"
    angles = check_angles(angles_deg, where=where).reshape(-1).tolist()
    lengths = [check_count("context_lengths", n, where=where) for n in context_lengths]
    check_count("prompts", prompts, where=where, least=2)
    check_count("seed", seed, where=where, least=0)
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise DataError(f"{where}: baseline {unknown[0]!r} is unknown. Use {', '.join(BASELINES)}.")
    if not lengths:
        raise DataError(f"{where}: context_lengths is empty. Name at least one number of examples.")
    if model is not None:
        _check_model(model, tasks, max(lengths), where)
        weight = next(model.parameters())
        tasks = tasks.to(weight.device, weight.dtype)
    V = tasks.direction(toward, seed=seed)
    rows = []
    for number, angle in enumerate(angles):
        turned = tasks.rotated(angle, toward=V)
        for name, n, risk_, spread in _risks(model, turned, lengths, prompts, baselines, seed):
            rows.append({"predictor": name, "angle_deg": angle, "n": n, "risk": risk_, "se": spread})
        if callback is not None:
            callback(number + 1, len(angles))
    table = pd.DataFrame(rows)
    table["relative"] = table["risk"] / tasks.variance
    return table


def _check_model(model: nn.Module, tasks: SubspaceTasks, longest: int, where: str) -> None:
    if getattr(model, "d", tasks.d) != tasks.d:
        raise ShapeError(f"{where}: the model has d={model.d}, the tasks have d={tasks.d}. Use the same.")
    most = getattr(model, "n_positions", longest + 1)
    if longest + 1 > most:
        raise DataError(
            f"{where}: a context of {longest} examples and the query exceeds n_positions={most} of the "
            f"model. Use at most {most - 1} examples, or a model with n_positions={longest + 1}."
        )


@torch.no_grad()
def _risks(
    model: nn.Module | None,
    tasks: SubspaceTasks,
    lengths: list[int],
    prompts: int,
    baselines: Sequence[str],
    seed: int,
) -> list[tuple[str, int, float, float]]:
    """Return predictor, context length, risk and standard error on prompts of one subspace."""
    source = torch.Generator(device=tasks.bases.device).manual_seed(seed)
    errors: dict[tuple[str, int], list[Tensor]] = {}
    left, most = prompts, max(1, _CHUNK // (tasks.d * (max(lengths) + 1)))
    was_training = model is not None and model.training
    if model is not None:
        model.eval()
    while left:
        batch = tasks.sample(min(left, most), n=max(lengths), seed=source)
        left -= len(batch.yq)
        for n in lengths:
            part = batch.first(n)
            if model is not None:
                errors.setdefault(("model", n), []).append(model.errors(part)[:, -1])  # type: ignore[operator]
            for name in baselines:
                errors.setdefault((name, n), []).append(baseline_errors(name, part, tasks))
    if model is not None:
        model.train(was_training)
    found = []
    for (name, n), parts in errors.items():
        values = torch.cat(parts).double()
        found.append((name, n, float(values.mean()), float(values.std()) / len(values) ** 0.5))
        if name != "model" or not isinstance(model, LinearAttention):
            continue
        if model.merged and tasks.family.name == "linear":
            W, S = model.effective_weights().double(), tasks.covariance.double()
            inputs = None if tasks.inputs is None else tasks.inputs.double()
            theory = risk(W, covariance=S, n=n, noise=tasks.noise, inputs=inputs)
            found.append(("theory", n, theory, float("nan")))
    return found
