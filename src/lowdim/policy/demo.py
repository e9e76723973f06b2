"""A world to try the trainer in: two small language models that half know two-digit addition."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.seeds import generator
from lowdim.errors import DataError, Diverged
from lowdim.policy.arithmetic.addition import CHARACTERS, END, Addition
from lowdim.runs import atomic_json, atomic_write, digest, read_json

__all__ = ["SIZES", "Size", "World", "write_world"]

Progress = Callable[[str, int, int, str], object]


@dataclass(frozen=True)
class Size:
    """Sizes of a Llama.

    Parameters
    ----------
    width, inner, layers, heads : int
        Hidden size, size of the gated layer, number of layers and of heads.
    accuracy : float
        Probability of the right completion at which its warm-up stops.

    Examples
    --------
    >>> Size(64, 192, 3, 4, 0.18).width
    64
    """

    width: int
    inner: int
    layers: int
    heads: int
    accuracy: float


SIZES = {"small": Size(64, 192, 3, 4, 0.18), "large": Size(160, 448, 4, 4, 0.40)}
"""0.16 and 1.3 million parameters; both are right now and then, and far from always."""

TINY = {"small": Size(16, 32, 1, 2, 0.0), "large": Size(32, 64, 2, 2, 0.0)}
"""Sizes for those who want to see everything work, and nothing learn."""

BATCH, RATE, RISING, MOST, EVERY, NOISE = 128, 3e-3, 30, 4000, 20, 0.5
SPREAD, WAVE = 0.08, 10.0  # of first weights, and of positions: prompts are short, and so is the warm-up


@dataclass(frozen=True)
class World:
    """Where the parts of the demo lie.

    Parameters
    ----------
    small, large : Path
        Folders of the two models, with their tokenizer.
    train, evaluate : Path
        JSONL files of prompts and answers; no prompt is in both.
    """

    small: Path
    large: Path
    train: Path
    evaluate: Path


def write_world(
    directory: str | os.PathLike[str],
    *,
    sizes: dict[str, Size] | None = None,
    held_out: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> World:
    """Write two small language models and the sums that they shall learn.

    A prompt is ``ab+cd=`` and its one right completion the sum; the tokens are characters. Both models are
    trained on answers of which half have one digit replaced by a random one, until they are right in 18 %
    (small) and 40 % (large) of their attempts: like base models, they can do the task and do not.

    Parameters
    ----------
    directory : path
        Made if it is missing. What is there of the same call is taken as it is.
    sizes : dict of str to Size, optional
        Sizes of "small" and "large"; by default 0.16 and 1.3 million parameters.
    held_out : int
        Prompts for the evaluation, of 10,000.
    seed : int
        Of weights, prompts and noise.
    progress : callable, optional
        Called with (phase, done, total, what is going on).

    Returns
    -------
    World

    Raises
    ------
    DataError
        If a size is impossible.
    Diverged
        If a warm-up does not get to its accuracy.
    MissingExtra
        Without transformers.

    Notes
    -----
    Without noise in the warm-up the two models would be so sure of themselves, and so far apart, that the
    large one could learn nothing from the small one's rollouts.

    Examples
    --------
    >>> import tempfile
    >>> tiny = {"small": Size(8, 8, 1, 1, 0.0), "large": Size(16, 16, 1, 1, 0.0)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     world = write_world(folder, sizes=tiny)
    ...     json.loads(world.train.read_text().splitlines()[0]).keys()
    dict_keys(['prompt', 'answer'])
    """
    sizes = SIZES if sizes is None else sizes
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder / "small", folder / "large", folder / "train.jsonl", folder / "evaluate.jsonl")
    made = {
        "format": 1,
        "settings": digest({name: asdict(size) for name, size in sizes.items()}, held_out, seed),
    }
    whole = folder / "world.json"
    if whole.is_file() and read_json(whole) == made:
        return world
    task = Addition(held_out=held_out, seed=seed)
    for path, which in ((world.train, task.train), (world.evaluate, task.held_out)):
        pairs = zip(task.text(task.prompt(which)), task.text(task.answer(which)), strict=True)
        rows = [json.dumps({"prompt": prompt, "answer": answer.rstrip("$")}) for prompt, answer in pairs]
        atomic_write(path, "\n".join(rows) + "\n")
    tokenizer = character_tokenizer()
    for number, (name, size) in enumerate(sizes.items()):
        model = llama(size, seed=seed + number)
        _warm_up(model, task, size, seed + number, name, progress)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    atomic_json(whole, made)
    return world


def character_tokenizer() -> Any:
    """Return a tokenizer of transformers whose tokens are the characters of `CHARACTERS`; ``$`` ends."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: token for token, character in enumerate([*CHARACTERS, "<pad>"])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="$", padding_side="left", model_max_length=64
    )


def llama(size: Size, *, seed: int) -> Any:
    """Return a Llama with random weights for the characters of the demo."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if size.width % (2 * size.heads):
        raise DataError(
            f"demo: width={size.width} cannot be shared out over {size.heads} heads of even size. Use a "
            f"multiple of {2 * size.heads}."
        )
    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 1,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=64,
        pad_token_id=len(CHARACTERS),
        eos_token_id=END,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=SPREAD,
        rope_parameters={"rope_type": "default", "rope_theta": WAVE},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def right(model: Any, task: Addition, which: Tensor) -> float:
    """Return the mean probability that a model writes the sum and its end, exactly, by one forward pass."""
    completion = task.answer(which)
    ended = (completion == END).long().cumsum(1)
    counted = (ended - (completion == END).long()) == 0  # up to the first end, included
    return float((_log_probabilities(model, task, which, completion) * counted).sum(1).exp().mean())


def _log_probabilities(model: Any, task: Addition, which: Tensor, completion: Tensor) -> Tensor:
    """Return log pi(o_t | q, o_<t) of completions, shape (n, N)."""
    prompt = task.prompt(which)
    tokens = torch.cat([prompt, completion], dim=1)
    logits = model(input_ids=tokens, use_cache=False).logits[:, prompt.shape[1] - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, completion[..., None]).squeeze(-1)


def _warm_up(model: Any, task: Addition, size: Size, seed: int, name: str, progress: Progress | None) -> None:
    """Train on answers with noise until the model is right as often as its size says."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    source = generator(seed)
    checked = task.held_out[:200]
    model.eval()
    for step in range(MOST + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                found = right(model, task, checked)
            if progress is not None:
                share = min(1.0, found / size.accuracy) if size.accuracy else 1.0
                progress(f"warm {name}", round(100 * share), 100, f"step {step}, right {found:.1%}")
            if found >= size.accuracy:
                return
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / RISING)
        which = task.train[torch.randint(len(task.train), (BATCH,), generator=source)]
        completion = task.noisy_answer(which, probability=NOISE, seed=source)
        loss = -_log_probabilities(model, task, which, completion).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise Diverged(
        f"demo: the {name} model is right in {found:.1%} after {MOST} steps of warm-up, expected "
        f"{size.accuracy:.0%}. Use another seed.",
        step=MOST,
        last=found,
    )
