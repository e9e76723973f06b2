"""How much curvature an optimizer can bear: stability on a quadratic, per optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdim.dynamics.parameters import FlatParameters
from lowdim.dynamics.shards import local
from lowdim.errors import DataError

__all__ = ["Stability", "stability", "trained_by"]


@dataclass(frozen=True, eq=False)
class Stability:
    """The largest curvature at which an optimizer, with its present state, does not blow up.

    Parameters
    ----------
    optimizer : str
        Name of its class.
    rule : str
        The threshold as a formula, such as "2 / lr".
    lr : float
        Learning rate: the largest of the groups.
    threshold : float
        The eigenvalue of ``D^(1/2) (H + decay) D^(1/2)`` which it can just bear; infinite at learning rate 0.
    scale : Tensor, shape (size,), or None
        ``D^(1/2)``: the steps per parameter relative to the group of the largest; None where all are 1.
    decay : Tensor, shape (size,), or float
        Weight decay that enters through the gradient (L2).
    label : str
        What the eigenvalue is: "sharpness", or "preconditioned sharpness" for adaptive optimizers.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> stability(optimizer, FlatParameters.of(layer)).rule
    '3.8 / lr'
    """

    optimizer: str
    rule: str
    lr: float
    threshold: float
    scale: Tensor | None
    decay: Tensor | float
    label: str


@dataclass(frozen=True, eq=False)
class _Group:
    """One parameter group: threshold times learning rate, the preconditioner per parameter, the formula."""

    bound: float
    rule: str
    lr: float
    decay: float
    denominator: Callable[[Any], Tensor] | None


def stability(optimizer: torch.optim.Optimizer, parameters: FlatParameters) -> Stability:
    """Read off an optimizer how much curvature it can bear now.

    On a quadratic with curvature h the optimizer is a linear recursion; the threshold is the h at which it
    has the eigenvalue -1. For adaptive optimizers the second moments are held still, as they change slowly,
    and the curvature is that of the preconditioned Hessian. Groups with learning rates of their own are put
    on one scale, so that one number stands for all.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        SGD (with momentum, dampening, Nesterov's variant), Adam, AdamW, NAdam, Adamax, RMSprop or Adagrad; in
        the wrapper of accelerate, too.
    parameters : FlatParameters
        The parameters that are looked at; all must be in the optimizer.

    Returns
    -------
    Stability

    Raises
    ------
    DataError
        If the rule of the optimizer is unknown, a parameter is not in it, or it has made no step yet and
        needs one.

    Notes
    -----
    With momentum b: heavy ball ``(2 + 2b) / ((1 - dampening) lr)``, Nesterov ``(2 + 2b) / ((1 + 2b) lr)``,
    averaged gradients (Adam) ``(2 + 2b) / ((1 - b) lr)``, both at once (NAdam) ``2 / ((1 - m + m (1 - b) /
    (1 + b)) lr)`` with the share m of the average at this step. Decoupled weight decay w puts ``2 - lr w`` in
    the place of 2 (for Adam).
    Minibatches make training unstable before, so that it usually stays below.

    References
    ----------
    .. [1] J. Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability",
       ICLR 2021, appendix.
    .. [2] J. Cohen et al., "Adaptive gradient methods at the edge of stability", arXiv 2207.14484.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(3, 1)
    >>> stability(torch.optim.SGD(layer.parameters(), lr=0.1), FlatParameters.of(layer)).threshold
    20.0
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    kind = _kind(optimizer)
    owners: dict[int, dict[str, Any]] = {
        id(parameter): group for group in optimizer.param_groups for parameter in group["params"]
    }
    strangers = [n for n, t in zip(parameters.names, parameters.tensors, strict=True) if id(t) not in owners]
    if strangers:
        raise DataError(
            f"stability: {strangers[0]} is not in the {type(optimizer).__name__}. Give the optimizer of "
            f"this network, "
            f"or select= the parameters that it trains."
        )
    groups = {id(owners[id(t)]): owners[id(t)] for t in parameters.tensors}
    rules = {
        place: _RULES[kind](group | {"steps": _taken(optimizer, group)}) for place, group in groups.items()
    }
    per_tensor = [rules[id(owners[id(tensor)])] for tensor in parameters.tensors]
    reach = max(rule.lr / rule.bound for rule in rules.values())
    leading = max(rules.values(), key=lambda rule: rule.lr / rule.bound)
    adaptive = leading.denominator is not None
    uniform = not adaptive and len({rule.lr / rule.bound for rule in rules.values()}) == 1
    scale = None
    if not uniform and reach > 0:
        pieces = []
        for rule, name, tensor in zip(per_tensor, parameters.names, parameters.tensors, strict=True):
            piece = torch.full_like(
                local(tensor.detach()), rule.lr / rule.bound / reach, dtype=parameters.dtype
            )
            if rule.denominator is not None:
                piece /= _denominator(rule.denominator, optimizer, name, tensor).to(piece)
            pieces.append(piece.sqrt())
        scale = parameters.flat(pieces)
    decays = {rule.decay for rule in rules.values()}
    decay: Tensor | float = decays.pop()
    if decays:
        decay = parameters.flat(
            [
                torch.full_like(local(t.detach()), rule.decay, dtype=parameters.dtype)
                for rule, t in zip(per_tensor, parameters.tensors, strict=True)
            ]
        )
    return Stability(
        optimizer=type(optimizer).__name__,
        rule=leading.rule,
        lr=leading.lr,
        threshold=1 / reach if reach > 0 else math.inf,
        scale=scale,
        decay=decay,
        label="preconditioned sharpness" if adaptive else "sharpness",
    )


def trained_by(optimizer: torch.optim.Optimizer | None) -> list[Tensor] | None:
    """Return the parameters of an optimizer.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer or None
        In the wrapper of accelerate, too.

    Returns
    -------
    list of Tensor, or None
        None without an optimizer.

    Raises
    ------
    DataError
        If it is none.
    """
    if optimizer is None:
        return None
    if not hasattr(optimizer, "param_groups"):
        raise DataError(
            f"dynamics: optimizer is a {type(optimizer).__name__}, expected the torch.optim.Optimizer of "
            f"the training, or None."
        )
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _kind(optimizer: Any) -> str:
    names = [cls.__name__ for cls in type(optimizer).__mro__ if cls.__module__.startswith("torch.optim")]
    for name in names:
        if name in _RULES:
            return name
    raise DataError(
        f"stability: the threshold of {type(optimizer).__name__} is not known. Known: {', '.join(_RULES)} of "
        f"torch.optim. Leave the optimizer out to see the sharpness without a threshold."
    )


def _denominator(rule: Callable[[Any], Tensor], optimizer: Any, name: str, tensor: Tensor) -> Tensor:
    state = optimizer.state.get(tensor)
    if not state:
        raise DataError(
            f"stability: {type(optimizer).__name__} has no second moments of {name} yet. Probe after its "
            f"first step."
        )
    return rule(state)


def _taken(optimizer: Any, group: dict[str, Any]) -> float:
    """Return how many steps a group has made."""
    states = (optimizer.state.get(parameter, {}) for parameter in group["params"])
    return max((_number(state["step"]) for state in states if "step" in state), default=0.0)


def _number(value: Any) -> float:
    return float(value)


def _plain(group: dict[str, Any], name: str) -> None:
    if group.get("maximize"):
        raise DataError(f"stability: {name} maximizes. Minimize the negative loss instead.")


def _sgd(group: dict[str, Any]) -> _Group:
    _plain(group, "SGD")
    b, dampening = _number(group["momentum"]), _number(group["dampening"])
    if group["nesterov"]:
        bound, rule = (2 + 2 * b) / (1 + 2 * b), f"{2 + 2 * b:g} / ({1 + 2 * b:g} lr)"
    elif b:
        bound = (2 + 2 * b) / (1 - dampening)
        rule = f"{2 + 2 * b:g} / lr" if not dampening else f"{2 + 2 * b:g} / ({1 - dampening:g} lr)"
    else:
        bound, rule = 2.0, "2 / lr"
    return _Group(bound, rule, _number(group["lr"]), _number(group["weight_decay"]), None)


def _averaged(group: dict[str, Any], name: str, *, ahead: float | None = None, decoupled: bool) -> _Group:
    _plain(group, name)
    b, lr = _number(group["betas"][0]), _number(group["lr"])
    decay = _number(group["weight_decay"])
    # What a gradient that flips at every step moves: the average of such gradients, and the last one alone.
    average = (1 - b) / (1 + b)
    moves = average if ahead is None else (1 - ahead) + ahead * average
    bound = (2 - lr * decay if decoupled else 2.0) / moves
    beta2, eps = _number(group["betas"][1]), _number(group["eps"])

    def denominator(state: Any) -> Tensor:
        moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        if moment.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise DataError(f"stability: the second moments of {name} are {moment.dtype}, expected floats.")
        correction = 1 - beta2 ** _number(state["step"])
        return (local(moment).to(torch.promote_types(moment.dtype, torch.float32)) / correction).sqrt() + eps

    return _Group(bound, f"{bound:.4g} / lr", lr, 0.0 if decoupled else decay, denominator)


def _adam(group: dict[str, Any]) -> _Group:
    return _averaged(group, "Adam", decoupled=bool(group.get("decoupled_weight_decay")))


def _adamw(group: dict[str, Any]) -> _Group:
    return _averaged(group, "AdamW", decoupled=True)


def _nadam(group: dict[str, Any]) -> _Group:
    # The share of the average grows towards beta_1, but over tens of thousands of steps.
    grown = 1 - 0.5 * 0.96 ** (group["steps"] * _number(group["momentum_decay"]))
    ahead = _number(group["betas"][0]) * grown
    return _averaged(group, "NAdam", ahead=ahead, decoupled=bool(group["decoupled_weight_decay"]))


def _adamax(group: dict[str, Any]) -> _Group:
    _plain(group, "Adamax")
    b = _number(group["betas"][0])
    bound = (2 + 2 * b) / (1 - b)
    return _Group(
        bound,
        f"{bound:.4g} / lr",
        _number(group["lr"]),
        _number(group["weight_decay"]),
        lambda state: local(state["exp_inf"]),
    )


def _rmsprop(group: dict[str, Any]) -> _Group:
    _plain(group, "RMSprop")
    b, eps = _number(group["momentum"]), _number(group["eps"])

    def denominator(state: Any) -> Tensor:
        moment = local(state["square_avg"])
        if group["centered"]:
            moment = moment - local(state["grad_avg"]).square()
        return moment.clamp(min=0).sqrt() + eps

    return _Group(
        2 + 2 * b, f"{2 + 2 * b:g} / lr", _number(group["lr"]), _number(group["weight_decay"]), denominator
    )


def _adagrad(group: dict[str, Any]) -> _Group:
    _plain(group, "Adagrad")
    eps, fading = _number(group["eps"]), _number(group["lr_decay"])

    def denominator(state: Any) -> Tensor:
        slower = 1 + (_number(state["step"]) - 1) * fading
        return (local(state["sum"]).sqrt() + eps) * slower

    return _Group(2.0, "2 / lr", _number(group["lr"]), _number(group["weight_decay"]), denominator)


_RULES: dict[str, Callable[[dict[str, Any]], _Group]] = {
    "SGD": _sgd,
    "AdamW": _adamw,
    "NAdam": _nadam,
    "Adam": _adam,
    "Adamax": _adamax,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
}
