"""Training a small GPT-2 on prompts: our loop against one written by hand around transformers' GPT2Model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.harness import Options, Row, Skipped, Table, interleave, ratio
from lowdim.incontext import PromptTransformer, SubspaceTasks, train

NAME = "incontext"
DESCRIPTION = (
    "Steps per second of training a GPT-2 on fresh prompts of linear regression: `lowdim.incontext.train` "
    "against a plain loop with transformers' GPT2Model of the same size, batch and Adam. Plain: the defaults "
    "of both libraries. Plain, tuned: fused Adam and the fused form of the same GELU, which ours uses. "
    "float32, batch 64. Ratios are plain time over ours: above 1, ours is faster. Median over paired "
    "repetitions of 10 steps, quartiles in parentheses."
)
SIZES = ((2, 2, 48, 4, 10), (4, 4, 64, 8, 12), (4, 4, 128, 8, 20))
THRESHOLD = 0.95
STEPS, BATCH = 10, 64


def run(options: Options) -> Table:
    try:
        import transformers
    except ImportError as error:
        raise Skipped(f"needs {error.name}: pip install 'lowdim[transformers]'") from error
    transformers.logging.set_verbosity_error()
    rows = []
    for layers, heads, width, d, n in SIZES[: 2 if options.quick else None]:
        timings = interleave(
            {
                "ours": _ours(layers, heads, width, d, n),
                "plain": _plain(layers, heads, width, d, n, tuned=False),
                "plain, tuned": _plain(layers, heads, width, d, n, tuned=True),
            },
            repeats=options.repeats(15),
        )
        for name in ("plain", "plain, tuned"):
            gain = ratio(timings["ours"], other=timings[name])
            rows.append(
                Row(
                    case=f"{layers} layers of {width}, {n} examples; {name}",
                    cells={
                        "plain, steps/s": f"{STEPS / timings[name].median:.1f}",
                        "ours, steps/s": f"{STEPS / timings['ours'].median:.1f}",
                        "plain / ours": str(gain),
                        "threshold": f"{THRESHOLD:g}",
                    },
                    figures={
                        "ours": list(timings["ours"].seconds),
                        "plain": list(timings[name].seconds),
                        "ratio": gain.median,
                    },
                    met=gain.median >= THRESHOLD,
                )
            )
    return Table(NAME, DESCRIPTION, tuple(rows))


def _ours(layers: int, heads: int, width: int, d: int, n: int) -> Callable[[], object]:
    tasks = SubspaceTasks(d, r=1, subspaces=2, seed=0)
    model = PromptTransformer(d, n_positions=n + 1, n_layer=layers, n_head=heads, n_embd=width, seed=0)
    return lambda: train(model, tasks, steps=STEPS, n=n, batch=BATCH, lr=1e-3)


def _plain(layers: int, heads: int, width: int, d: int, n: int, *, tuned: bool) -> Callable[[], object]:
    from transformers import GPT2Config, GPT2Model

    kernels = {"activation_function": "gelu_pytorch_tanh"} if tuned else {}
    config = GPT2Config(
        vocab_size=1,
        bos_token_id=0,
        eos_token_id=0,
        n_positions=2 * n + 2,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **kernels,
    )
    trunk, read_in, read_out = GPT2Model(config), nn.Linear(d, width), nn.Linear(width, 1)
    weights = [*trunk.parameters(), *read_in.parameters(), *read_out.parameters()]
    bases = SubspaceTasks(d, r=1, subspaces=2, seed=0, dtype=torch.float32).bases.squeeze(-1)

    def loop() -> None:
        optimizer = torch.optim.Adam(weights, lr=1e-3, fused=tuned or None)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS)
        for _ in range(STEPS):
            b = bases[torch.randint(2, (BATCH,))] * torch.randn(BATCH, 1)
            x = torch.randn(BATCH, n + 1, d)
            y = torch.einsum("bnd,bd->bn", x, b)
            tokens = torch.zeros(BATCH, 2 * n + 2, d)
            tokens[:, ::2] = x
            tokens[:, 1::2, 0] = y
            hidden = trunk(inputs_embeds=read_in(tokens[:, :-1])).last_hidden_state
            loss = (read_out(hidden[:, ::2]).squeeze(-1) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()

    return loop
