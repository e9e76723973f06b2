"""Prompts: the trainings behind the claims about in-context learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowdim.incontext import SubspaceTasks

__all__ = ["ANGLES", "FIVE", "linear_tasks", "train_linear", "train_on_lines", "train_small"]

ANGLES = (0, 15, 30, 45, 60, 75, 90)
FIVE = (0, 30, 45, 60, 90)


def linear_tasks(seed: int, *, subspaces: int = 1) -> SubspaceTasks:
    """Return tasks of the sizes of the closed forms; of two subspaces the first is that of one."""
    from lowdim.incontext import SubspaceTasks

    return SubspaceTasks(20, r=5, subspaces=subspaces, noise=0.1, seed=seed)


def train_linear(seed: int, quick: bool) -> dict[str, Any]:
    """Train linear attention on one subspace; return its distance from the best one."""
    from lowdim.incontext import LinearAttention, optimal_weights, risk_vs_angle, train

    tasks = linear_tasks(seed)
    model = LinearAttention(20)
    history = train(
        model,
        tasks,
        steps=300 if quick else 3000,
        n=100,
        batch=256,
        lr=1e-2,
        schedule="cosine",
        clip=None,
        seed=seed,
    )
    best, W = optimal_weights(tasks.covariance, n=100, noise=0.1), model.W.detach().double()
    where: dict[str, Any] = {"U": tasks.bases[0], "V": tasks.direction(), "angles_deg": ANGLES}
    found, theory = (risk_vs_angle(weights, **where, n=100, noise=0.1) for weights in (W, best))
    return {
        "gap": float(((found - theory) / theory).abs().max()),
        "distance": float((W - best).norm() / best.norm()),
        "risks": found.tolist(),
        "seconds": history.seconds,
    }


def train_small(seed: int, lines: int, quick: bool, *, tokens: Any = "alternating") -> dict[str, float]:
    """Train a transformer on one line or two; return risks by angle and context length."""
    from lowdim.incontext import PromptTransformer, SubspaceTasks, evaluate, train

    tasks = SubspaceTasks(4, r=1, subspaces=2, seed=seed)
    V, taught = tasks.direction(), tasks if lines == 2 else tasks.on(tasks.bases[:1])
    model = PromptTransformer(4, n_positions=11, n_layer=2, n_head=2, n_embd=48, tokens=tokens, seed=seed)
    steps = 50 if quick else 1500 if tokens == "paired" else {1: 2500, 2: 4000}[lines]
    train(model, taught, steps=steps, n=10, batch=64, lr=3e-3, seed=seed)
    table = evaluate(
        model, taught, angles_deg=FIVE, context_lengths=[4, 10], toward=V, prompts=2000, seed=seed
    )
    return {f"{row.angle_deg:g} degrees, {row.n} examples": row.risk for row in table.itertuples(index=False)}


def train_on_lines(k: int, seed: int, steps: int) -> dict[str, Any]:
    """Train on k lines; return risks over angles into a random direction, and on random lines."""
    import torch

    from lowdim.algebra import Subspace
    from lowdim.incontext import PromptTransformer, SubspaceTasks, evaluate, optimal_weights, risk, train

    n = 12
    tasks = SubspaceTasks(8, r=1, subspaces=k, seed=seed)
    model = PromptTransformer(
        8,
        n_positions=n + 1,
        n_layer=4,
        n_head=4,
        n_embd=64,
        tokens="paired",
        initializer_range=0.02,
        seed=seed,
    )
    history = train(model, tasks, steps=steps, n=n, batch=64, lr=2e-3, seed=seed)
    W = optimal_weights(tasks.covariance, n=n)
    row: dict[str, Any] = {"k": k, "seconds": history.seconds, "loss": history.objective[-1]}
    for toward in ("anywhere", "inside"):
        if toward == "inside" and k == 1:
            continue
        table = evaluate(
            model, tasks, angles_deg=ANGLES, context_lengths=[n], toward=toward, prompts=1000, seed=seed
        )
        row[toward] = table["risk"].tolist()
        row[f"{toward}_linear"] = [
            risk(W, covariance=tasks.rotated(angle, toward=toward, seed=seed).covariance, n=n)
            for angle in ANGLES
        ]
    lines = Subspace.random(8, 1, batch=(1000,), seed=10_000 + seed, dtype=torch.float64).basis
    for name, tested in (("new", tasks.on(lines)), ("trained", tasks)):
        prompt = tested.to(dtype=torch.float32).sample(2000, n=n, seed=20_000 + seed)
        with torch.no_grad():
            row[name] = float(model.errors(prompt)[:, -1].double().mean())
        row[f"{name}_linear"] = risk(W, covariance=tested.covariance, n=n)
    return row
