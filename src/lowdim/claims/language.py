"""From scratch: a small GPT-2-style model whose layers are structured from the start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdim.errors import MissingExtra

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["RATES", "STRUCTURES", "Setting", "corpus", "perplexity_after_training", "tuned_rate"]

STRUCTURES = ("blast", "lowrank", "blockdiag", "dense")

#: Peak learning rates tried for every structure. Low rank is best at the lowest, but flat there: 1 % to 5e-3.
RATES = (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2)

#: The layers that are structured; like the paper's GPT2-S, the attention output stays dense.
TARGETS = ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Setting:
    """Sizes of the experiment.

    Parameters
    ----------
    width, layers, heads, context : int
        The model.
    vocabulary : int
        Size of the byte-pair vocabulary trained on the training part.
    keep : float
        Fraction of the structured layers' parameters.
    blocks : int
        Blocks of Blast in each direction.
    rate : float
        Peak learning rate of everything that is not structured.
    steps, batch : int
        Training steps and sequences per step.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    context: int = 64
    vocabulary: int = 1024
    keep: float = 0.25
    blocks: int = 8
    rate: float = 4e-3
    steps: int = 2000
    batch: int = 16


def corpus(path: Path, *, setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a text file into training and validation tokens.

    The first tenth of the articles (headings ``= Title =``) is the validation
    part; the byte-pair vocabulary is trained on the rest. (The last tenth has
    served to choose the number of steps, and serves to tune the rates.)

    Parameters
    ----------
    path : Path
        ``wikitext2/valid.txt``.
    setting : Setting
        Its `vocabulary` is used.

    Returns
    -------
    tuple of Tensor
        Training and validation tokens, int64.

    Raises
    ------
    MissingExtra
        If the package tokenizers is missing.
    """
    import torch

    try:
        from tokenizers import ByteLevelBPETokenizer
    except ImportError:
        raise MissingExtra("tokenizers", extra="transformers", purpose="train a vocabulary") from None

    articles: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        heading = line.strip()
        if heading.startswith("= ") and not heading.startswith("= ="):
            articles.append([])
        articles[-1].append(line)
    texts = ["\n".join(lines) for lines in articles if any(line.strip() for line in lines)]
    held_out = max(1, len(texts) // 10)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        texts[held_out:], vocab_size=setting.vocabulary, min_frequency=2, show_progress=False
    )
    parts = []
    for part in (texts[held_out:], texts[:held_out]):
        parts.append(torch.tensor([token for text in part for token in tokenizer.encode(text).ids]))
    return parts[0], parts[1]


def perplexity_after_training(
    tokens: tuple[torch.Tensor, torch.Tensor],
    *,
    structure: str,
    rate: float,
    setting: Setting,
    seed: int,
) -> dict[str, Any]:
    """Train one model and return its validation perplexity.

    Every structure gets the same batches, steps and schedule (5 % warm-up,
    cosine to zero, AdamW without weight decay, gradients clipped at 1), and
    starts with the output variance of ``nn.Linear``.

    Parameters
    ----------
    tokens : tuple of Tensor
        From :func:`corpus`.
    structure : {"blast", "lowrank", "blockdiag", "dense"}
        Structure of the target layers.
    rate : float
        Peak learning rate of the target layers; the rest of the model has `setting.rate`.
    setting : Setting
        Sizes.
    seed : int
        Seed of the initialization and of the batches.

    Returns
    -------
    dict
        ``perplexity`` and ``parameters`` (of the target layers).
    """
    import torch

    train, valid = tokens
    torch.manual_seed(seed)
    model, parameters = _build(structure, setting)
    structured = [
        parameter
        for block in _blocks(model)
        for target in TARGETS
        for parameter in block.get_submodule(target).parameters()
    ]
    apart = {id(parameter) for parameter in structured}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in apart]
    groups = [{"params": structured, "lr": rate}, {"params": rest, "lr": setting.rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    warm = max(1, setting.steps // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (setting.steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(seed)
    window = torch.arange(setting.context)
    model.train()
    for _ in range(setting.steps):
        starts = torch.randint(len(train) - setting.context, (setting.batch, 1), generator=generator)
        batch = train[starts + window]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return {"perplexity": _perplexity(model, valid, setting), "parameters": parameters}


def tuned_rate(
    tokens: tuple[torch.Tensor, torch.Tensor], *, structure: str, setting: Setting, seed: int
) -> dict[str, Any]:
    """Try every rate of :data:`RATES` on a part of the training text and return the best.

    The validation text is not touched: the last tenth of the training tokens
    serves in its place.

    Parameters
    ----------
    tokens : tuple of Tensor
        From :func:`corpus`.
    structure : str
        Structure of the target layers.
    setting : Setting
        Sizes of the tuning runs.
    seed : int
        Seed of the tuning runs.

    Returns
    -------
    dict
        ``rate`` and ``perplexities`` by rate.
    """
    train = tokens[0]
    cut = len(train) * 9 // 10
    parts = (train[:cut], train[cut:])
    tried = {
        rate: perplexity_after_training(parts, structure=structure, rate=rate, setting=setting, seed=seed)
        for rate in RATES
    }
    perplexities = {rate: run["perplexity"] for rate, run in tried.items()}
    return {
        "rate": min(perplexities, key=perplexities.__getitem__),
        "perplexities": {f"{rate:g}": value for rate, value in perplexities.items()},
    }


def _build(structure: str, setting: Setting) -> tuple[nn.Module, int]:
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise MissingExtra("transformers", extra="transformers", purpose="build a GPT-2 model") from None
    import torch

    from lowdim.algebra import StructuredLinear

    config = GPT2Config(
        vocab_size=setting.vocabulary,
        n_positions=setting.context,
        n_embd=setting.width,
        n_layer=setting.layers,
        n_head=setting.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.5
        * setting.width**-0.5,  # about GPT-2's 0.02 at width 768, carried over to this width
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    parameters = 0
    for block in _blocks(model):
        for target in TARGETS:
            parent, name = block.get_submodule(target.partition(".")[0]), target.partition(".")[2]
            n, m = getattr(parent, name).weight.shape  # Conv1D stores (in, out)
            operator = _operator(structure, m, n, setting)
            if target == "mlp.c_proj":
                _scale(operator, (2 * setting.layers) ** -0.5)  # as GPT-2 does before the residual sum
            parameters += sum(parameter.numel() for parameter in operator.parameters())
            setattr(parent, name, StructuredLinear(operator, torch.zeros(m)))
    return model, parameters


def _blocks(model: Any) -> Any:
    return model.transformer.h


def _operator(structure: str, m: int, n: int, setting: Setting) -> Any:
    from lowdim.algebra import Blast, BlockDiagonal, Dense, LowRank

    budget = setting.keep * m * n
    if structure == "blast":
        blocks = (setting.blocks, setting.blocks)
        rank = int(budget // Blast.parameters_for(1, m, n, blocks))
        return _latin_square(Blast(n, m, rank=rank, blocks=blocks))
    if structure == "lowrank":
        return LowRank(n, m, rank=int(budget // LowRank.parameters_for(1, m, n, (1, 1))))
    if structure == "blockdiag":
        return BlockDiagonal(n, m, blocks=round(1 / setting.keep))
    return Dense(n, m)


def _scale(operator: Any, factor: float) -> None:
    """Multiply the matrix of a structured operator by a number."""
    import torch

    with torch.no_grad():
        next(operator.parameters()).mul_(factor)


def _latin_square(operator: Any) -> Any:
    """Let every block start with its own share of the components, of high rank together.

    Component c is on (coupling 1) in the blocks with (i + j) mod b = c mod b
    and off elsewhere: the start is a Monarch matrix, and training may couple
    the rest. Couplings that are all alike would start from a matrix that is
    mostly of rank r, from which learning is much slower.
    """
    import torch

    r, b1, b2 = operator.S.shape
    group = (torch.arange(b1)[:, None] + torch.arange(b2)) % max(b1, b2)
    on = group == (torch.arange(r) % max(b1, b2))[:, None, None]
    share = float(on.float().mean())
    deviation = (3 * operator.in_features * r * share) ** -0.25
    with torch.no_grad():
        operator.S.copy_(on)
        torch.nn.init.normal_(operator.U, std=deviation)
        torch.nn.init.normal_(operator.V, std=deviation)
    return operator


def _perplexity(model: nn.Module, valid: torch.Tensor, setting: Setting) -> float:
    import torch

    model.eval()
    sequences = valid[: len(valid) // setting.context * setting.context].view(-1, setting.context)
    total = 0.0
    with torch.inference_mode():
        for batch in sequences.split(64):
            total += float(model(input_ids=batch, labels=batch).loss) * len(batch)
    return math.exp(total / len(sequences))
