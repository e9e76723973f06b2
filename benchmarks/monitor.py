"""What watching costs: the share of a Monitor in the time of training a transformer of 10M parameters."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Options, Row, Table, Timing, ratio
from lowdim.dynamics.monitor import Monitor

now = time.process_time

NAME = "monitor"
DESCRIPTION = (
    "A causal transformer of 10M parameters (8 layers, width 320), AdamW, 16 sequences of 64 tokens a step, "
    "one thread, is trained on texts of a Markov chain. `Monitor` with its default probes reports every 100 "
    "steps on a probe batch of 4 sequences; its alternation looks at every step. Shares are of the time of "
    "training without it: `Monitor.step` over the rest of the loop, of the same steps, in seconds of the "
    "processor, which other work hardly stretches; on a quiet machine these are those of the clock."
)
SEQUENCES, TOKENS, VOCABULARY, WIDTH, LAYERS = 16, 64, 512, 320, 8
ALL, ALTERNATION = 3.0, 1.0
"""Thresholds in percent."""


class Transformer(nn.Module):
    """A causal language model."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(TOKENS, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 5, 4 * WIDTH, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.tokens(x) + self.places.weight
        return self.head(self.layers(inner, mask=self.mask, is_causal=True))


def texts() -> Callable[[int], Tensor]:
    """Return a source of sequences, each token one of four likely successors of the one before."""
    source = torch.Generator().manual_seed(0)
    successors = torch.randint(VOCABULARY, (VOCABULARY, 4), generator=source)

    def draw(count: int) -> Tensor:
        columns = [torch.randint(VOCABULARY, (count,), generator=source)]
        for _ in range(TOKENS - 1):
            choice = torch.randint(4, (count,), generator=source)
            columns.append(successors[columns[-1], choice])
        return torch.stack(columns, dim=1)

    return draw


class Training:
    """The training that is watched, one optimizer step per call."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Transformer()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self._draw = texts()
        self._probe = self._draw(SEQUENCES // 4)

    def loss(self, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    def probe(self) -> Tensor:
        return self.loss(self._probe)

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(self._draw(SEQUENCES))
        loss.backward()
        self.optimizer.step()
        return loss


def run(options: Options) -> Table:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        every, reports = (20, 3) if options.quick else (100, 3)
        rows = (_alternation(options.repeats(30)), _all(every, reports))
    finally:
        torch.set_num_threads(threads)
    notes = (
        f"Thresholds: default probes under {ALL:g} %, alternation under {ALTERNATION:g} %, by the median. "
        "A report that starts cold (the first, and every 20th) counts as the others do.",
        "A look at the sharpness ends when a product adds no more than 0.01 of the threshold, or 3e-3 of the "
        "sharpness. The ratio tells where this training is; nearer to the edge a look takes more products.",
        *(("Quick: reports every 20 steps, their time shared out over 100.",) if options.quick else ()),
    )
    return Table(NAME, DESCRIPTION, rows, notes)


def _alternation(repeats: int) -> Row:
    """Time steps with and without the alternation in turn."""
    train = Training()
    monitor = Monitor(
        train.model, optimizer=train.optimizer, every=10**9, probes=["oscillation"], strict=True
    )
    _, _ = train(), monitor.step()
    plain, watched, own = [], [], []
    for repetition in range(repeats):
        for watch in (False, True) if repetition % 2 else (True, False):
            start = now()
            loss = train()
            middle = now()
            if watch:
                monitor.step(loss=loss)
                own.append(now() - middle)
            (watched if watch else plain).append(now() - start)
    step = statistics.median(plain)
    shares = [100 * seconds / step for seconds in own]
    paired = ratio(Timing(tuple(plain)), other=Timing(tuple(watched)))
    return Row(
        case="alternation, every step",
        cells={
            "training step, s": f"{step:.2f}",
            "Monitor, ms": f"{1e3 * statistics.median(own):.1f} ({_range([1e3 * s for s in own])})",
            "share, %": f"{statistics.median(shares):.2f} ({_range(shares)})",
            "step with / without": str(paired),
        },
        figures={"plain": plain, "watched": watched, "own": own, "parameters": _size(train.model)},
        met=statistics.median(shares) < ALTERNATION,
    )


def _all(every: int, reports: int) -> Row:
    """Train on with all probes, and time the Monitor and what is around it."""
    train = Training()
    memory: list[dict[str, float]] = []
    monitor = Monitor(
        *(train.model, train.probe),
        optimizer=train.optimizer,
        every=every,
        sink=lambda step, metrics: memory.append(metrics),
        strict=True,
    )
    loss = train()
    monitor.step(loss=loss)  # here the probes are made, and references for the drift are taken
    started = monitor._seconds
    spent: dict[str, list[float]] = defaultdict(list)
    for probe in monitor._active:
        _timed(probe, spent[probe.name])
    blocks: list[dict[str, float]] = []
    for _ in range(reports):
        training, watching, report = 0.0, 0.0, 0.0
        while True:
            start = now()
            loss = train()
            middle = now()
            found = monitor.step(loss=loss)
            end = now()
            training += middle - start
            if found is not None:
                report = end - middle
                break
            watching += end - middle
        steps = every - (not blocks)
        step = training / steps
        share = 100 * (watching / (steps - 1) + report / 100) / step
        blocks.append({"step": step, "watching": watching / (steps - 1), "report": report, "share": share})
    shares = [block["share"] for block in blocks]
    each = [1e3 * block["report"] for block in blocks]
    products = [metrics["dyn/hvps"] for metrics in memory]
    return Row(
        case="default probes, every 100 steps",
        cells={
            "training step, s": f"{statistics.median(block['step'] for block in blocks):.2f}",
            "Monitor, ms": f"{statistics.median(each):.0f} ({_range(each)}) per report",
            "share, %": f"{statistics.median(shares):.2f} ({_range(shares)})",
            "of a report, s": ", ".join(f"{name} {statistics.median(v):.2f}" for name, v in spent.items()),
            "Hessian products": ", ".join(f"{n:.0f}" for n in products),
            "sharpness ratio": ", ".join(f"{metrics['dyn/sharpness_ratio']:.2f}" for metrics in memory),
        },
        figures={
            "blocks": blocks,
            "probes": dict(spent),
            "start": started,
            "products": products,
            "ratio": [metrics["dyn/sharpness_ratio"] for metrics in memory],
            "parameters": _size(train.model),
        },
        met=statistics.median(shares) < ALL,
    )


def _timed(probe: Any, seconds: list[float]) -> None:
    """Let a probe note how long its measurements take."""
    measure = probe.measure

    def timed(training: Any) -> dict[str, float]:
        start = now()
        found: dict[str, float] = measure(training)
        seconds.append(now() - start)
        return found

    probe.measure = timed


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _range(values: list[float]) -> str:
    if len(values) < 4:
        return f"{min(values):.3g}-{max(values):.3g}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{low:.3g}-{high:.3g}"
