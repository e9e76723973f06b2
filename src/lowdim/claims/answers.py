"""Claims about the rewards of answers: right ones in every spelling, wrong ones, many at once, and bombs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from lowdim.claims.declare import Measurement, Trial, Unavailable, claim
from lowdim.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np

    from lowdim.policy.rewards import AnswerReward

__all__: list[str] = []

DATA = "gsm8k/test.jsonl"
OWN = "own measurement; data: Cobbe et al., GSM8K, 2021, test part, 1,319 questions"
KINDS: tuple[Literal["number", "latex"], ...] = ("number", "latex")

#: Usual spellings of a whole number n.
SPELLINGS: dict[str, Callable[[int], str]] = {
    "plain": "{}".format,
    "thousands": "{:,}".format,
    "dollars": lambda n: f"{'-' * (n < 0)}${abs(n)}",
    "cents": "{:,}.00".format,
    "hashes": "one step and another\n#### {:,}".format,
    "tag": "<think>7 or 8?</think><answer>{:,}</answer>".format,
    "boxed": r"so \boxed{{{}}}.".format,
    "boxed dollars": lambda n: rf"$\boxed{{\${n:,}}}$".replace(",", "{,}"),
    "boxed unit": r"\boxed{{{} \text{{ eggs}}}}".format,
    "sentence": "Therefore, the answer is {:,}.".format,
    "unit": "So there are {:,} eggs in all.".format,
    "equation": "The answer is 2 * 3 = {}".format,
    "formula": "The answer is $x = {}$.".format,
}

# Each keeps a computer algebra busy for longer than it has, or asks for more memory than there is.
BOMBS = (
    r"9^{9^{9^{9}}}",
    "9**9**9**9",
    "99999999!",
    "((99!)!)!",
    r"2^{2^{30}}",
    r"\binom{10^9}{5\cdot 10^8}",
    r"\sum_{i=1}^{10^{10}} i^i",
    r"\gcd(2^{1000000},3)",
    "(a+b+c+d+e+f)^{40}",
    r"\frac{x^{500}-1}{x-1}",
    r"\sin(10^{100000})",
    r"\Gamma(10^{6})",
    "(" * 10_000 + "5" + ")" * 10_000,
    r"\frac{" * 100_000,
    "5" * 1_000_000,
)


def golds_of(trial: Trial) -> list[int]:
    """Return the gold answers, all of them whole numbers."""
    from lowdim.policy.rewards import gold_answer

    lines = trial.data(DATA).read_text(encoding="utf-8").splitlines()
    golds = [int(gold_answer(json.loads(line)["answer"]).replace(",", "")) for line in lines]
    return golds[:100] if trial.quick else golds


def reward_of(kind: Literal["number", "latex"], **options: Any) -> AnswerReward:
    """Make the reward, or say why it cannot be measured here."""
    from lowdim.policy.rewards import AnswerReward

    try:
        return AnswerReward(kind=kind, **options)
    except MissingExtra as error:
        raise Unavailable(str(error)) from None


def wrong(gold: int, generator: np.random.Generator) -> int:
    """Change a number as a slip of arithmetic or of the pen would."""
    digits = list(str(abs(gold)))
    place = int(generator.integers(len(digits)))
    other = digits.copy()
    other[place] = str((int(other[place]) + int(generator.integers(1, 10))) % 10)
    slips = [gold + 1, gold - 1, 10 * gold, -gold, gold // 10, 2 * gold, int("".join(other))]
    slips += [int("".join(reversed(digits))), gold + 100, int("1" + "".join(digits))]
    left = [slip for slip in slips if slip != gold]
    return left[int(generator.integers(len(left)))]


@claim(
    "policy.answers-accepted",
    statement="Every gold answer of GSM8K is rewarded in thirteen usual spellings, as number and formula.",
    source=OWN,
    setting=(
        "1,319 answers; plain, with thousands separators, dollars, cents, unit, in a box, an answer tag, "
        "behind ####, in a sentence, an equation, a formula; value: lowest share over spellings and kinds."
    ),
    at_least=1.0,
)
def answers_accepted(trial: Trial) -> Measurement:
    """Reward every gold answer in every spelling."""
    golds = golds_of(trial)
    shares: dict[str, Any] = {}
    for kind in KINDS:
        reward = reward_of(kind)
        reward([""], [r"\boxed{y + x}"], answer=["x + y"] if kind == "latex" else ["1"])  # workers start
        for name, spell in SPELLINGS.items():
            texts = [spell(gold) for gold in golds]
            started = time.perf_counter()
            found = reward([""] * len(golds), texts, answer=[str(gold) for gold in golds])
            seconds = (time.perf_counter() - started) * 1000 / len(golds)
            shares[f"{kind}, {name}"] = {
                "share": sum(value or 0.0 for value in found) / len(golds),
                "seconds_per_1000": round(seconds, 3),
            }
        reward.close()
    return Measurement(min(row["share"] for row in shares.values()), shares)


@claim(
    "policy.answers-rejected",
    statement="No wrong answer is rewarded: 1,000 perturbed gold answers of GSM8K, as number and as formula.",
    source=OWN,
    setting=(
        "Off by one, tenfold, negated, doubled, a digit changed, dropped, added, digits reversed; in one of "
        "the thirteen spellings at random; value: share rejected by both kinds."
    ),
    at_least=1.0,
)
def answers_rejected(trial: Trial) -> Measurement:
    """Reward wrong answers, of which none may earn anything."""
    import numpy as np

    golds, generator = golds_of(trial), np.random.default_rng(trial.seed)
    chosen = [golds[row] for row in generator.integers(len(golds), size=1000)]
    spellings = list(SPELLINGS.values())
    texts = [spellings[int(generator.integers(len(spellings)))](wrong(gold, generator)) for gold in chosen]
    details: dict[str, Any] = {}
    taken = np.zeros(len(texts), dtype=bool)
    for kind in KINDS:
        reward = reward_of(kind)
        started = time.perf_counter()
        found = reward([""] * len(texts), texts, answer=[str(gold) for gold in chosen])
        details[kind] = {
            "accepted": [texts[row] for row, value in enumerate(found) if value],
            "seconds_per_1000": round(time.perf_counter() - started, 3),
        }
        taken |= np.array(found, dtype=bool)
        reward.close()
    return Measurement(float((~taken).mean()), details)


@claim(
    "policy.answers-stuffed",
    statement="A completion that names several answers, the right one among them, earns nothing.",
    source=OWN,
    setting=(
        "Each gold answer of GSM8K with two others, in any order, joined by or, and, commas, semicolons "
        "or slashes; as last line, in a sentence, a box, a tag, behind ####; value: share rejected."
    ),
    at_least=1.0,
)
def answers_stuffed(trial: Trial) -> Measurement:
    """Reward completions that name several answers."""
    import numpy as np

    golds, generator = golds_of(trial), np.random.default_rng(trial.seed)
    frames = ["{}", "The answer is {}.", r"\boxed{{{}}}", "<answer>{}</answer>", "#### {}"]
    between = [" or ", " and ", ", ", "; ", " / ", " or maybe "]
    texts = []
    for gold in golds:
        values = generator.permutation([gold, gold + 1 + int(generator.integers(9)), 3 * gold + 7])
        joined = between[int(generator.integers(len(between)))].join(map(str, values))
        texts.append(frames[int(generator.integers(len(frames)))].format(joined))
    details: dict[str, Any] = {}
    taken = np.zeros(len(texts), dtype=bool)
    for kind in KINDS:
        reward = reward_of(kind)
        found = reward([""] * len(texts), texts, answer=[str(gold) for gold in golds])
        details[kind] = {"accepted": [texts[row] for row, value in enumerate(found) if value][:20]}
        taken |= np.array(found, dtype=bool)
        reward.close()
    return Measurement(float((~taken).mean()), details)


@claim(
    "policy.answers-bombs",
    statement="Formulas that no computer algebra finishes are given up; right answers beside them count.",
    source=OWN,
    setting=(
        f"{len(BOMBS)} bombs (towers of powers, factorials, sums, expansions, nesting, a million digits) "
        "and 60 right formulas in one batch; 1 second for one formula, 2 workers; value: share of rewards "
        "that are as they should be."
    ),
    at_least=1.0,
)
def answers_bombs(trial: Trial) -> Measurement:
    """Reward right formulas among bombs."""
    reward = reward_of("latex", timeout=1.0, workers=2, total=300.0)
    reward([""], [r"\boxed{y + x}"], answer=["x + y"])  # workers start
    bombs = BOMBS[:3] if trial.quick else BOMBS
    right = [rf"\frac{{{n}}}{{7}} + x" for n in range(1, 61)]
    texts = [rf"\boxed{{{bomb}}}" for bomb in bombs]
    texts += [rf"\boxed{{x + \frac{{{n}}}{{7}}}}" for n in range(1, 61)]
    started = time.perf_counter()
    found = reward([""] * len(texts), texts, answer=[*["5"] * len(bombs), *right])
    seconds = time.perf_counter() - started
    wanted = [0.0] * len(bombs) + [1.0] * len(right)
    pool = reward.pool
    details = {
        "seconds": round(seconds, 1),
        "given_up": reward.counts["undecided"],
        "workers_replaced": 0 if pool is None else pool.kills,
    }
    reward.close()
    good = sum(value == should for value, should in zip(found, wanted, strict=True))
    return Measurement(good / len(wanted), details)
