"""Formulas by math-verify in processes that are killed: right ones, wrong ones, and bombs."""

import subprocess
import sys

import pytest

from lowdim.errors import DataError
from lowdim.policy.rewards import answer_reward, math_verify

from .test_answers import ADVERSARIAL

pytest.importorskip("math_verify")

# Each keeps the algebra busy for far longer than the limit, or needs more memory than there is.
BOMBS = [r"9^{9^{9^{9}}}", r"99999999!"]


@pytest.fixture(scope="module")
def reward():
    made = answer_reward(kind="latex", timeout=5.0, workers=2)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"\frac{1}{3}", "0.333333", 1.0),
        ("x^2 + 2x + 1", "(x+1)^2", 1.0),
        (r"2\sqrt{2}", r"\sqrt{8}", 1.0),
        ("(1, 2)", "(1,2)", 1.0),
        (r"\{1, 2\}", r"\{2, 1\}", 1.0),
        (r"5\pi", "5", 0.0),
        ("5x", "5y", 0.0),
        ("120", "5!", 1.0),
        ("5", r"5\text{ cm}", 1.0),
        ("5", "x = 5", 1.0),
        ("5", r"3 \text{ or } 5", 0.0),
        ("5", "3, 5", 0.0),
        ("5", r"\{3, 5\}", 0.0),
        ("5", r"x = 3 \text{ or } x = 5", 0.0),
        ("0.0000001", "0.0000002", 0.0),
        (r"\text{Evelyn}", "evelyn", 1.0),
    ],
)
def test_equal_formulas_are_right(reward, gold, answer, value):
    assert reward(["?"], [rf"So \boxed{{{answer}}}."], answer=[gold]) == [value]
    assert reward(["?"], [f"The answer is ${answer}$."], answer=[gold]) == [value]


def test_adversarial_completions_earn_nothing(reward, tmp_path):
    trap = tmp_path / "trap"
    code = [rf"\boxed{{__import__('os').system('touch {trap}')}}", rf"\boxed{{\text{{open('{trap}','w')}}}}"]
    given = [text for name, text in ADVERSARIAL.items()] + code
    assert set(reward([""] * len(given), given, answer=["5"] * len(given))) == {0.0}
    assert not trap.exists()


def test_bombs_are_given_up_and_counted_and_the_others_rewarded():
    reward = answer_reward(kind="latex", timeout=1.0, workers=2)
    given = [rf"\boxed{{{bomb}}}" for bomb in BOMBS] + [r"\boxed{\sqrt{25}}"] * 2
    assert reward(["?"] * 4, given, answer=["5"] * 4) == [0.0] * 2 + [1.0] * 2
    assert reward.counts["undecided"] == reward.pool.failures == 2
    # A verdict is remembered: the same bombs cost nothing now.
    kills = reward.pool.kills
    assert reward(["?"] * 4, given, answer=["5"] * 4) == [0.0] * 2 + [1.0] * 2
    assert reward.pool.kills == kills
    reward.close()


def test_gold_formulas_are_checked_at_the_door(reward):
    reward.check([r"\frac{1}{2}", "x^2 + 1", "72", r"... \boxed{(1, 2)}"])
    with pytest.raises(
        DataError, match=r"1 of 2 gold answers cannot be read \(kind='latex'\), the first in row 2: '\?'"
    ):
        reward.check(["x", "?"])
    with pytest.raises(DataError, match="gold answer '\\?' cannot be read"):
        reward(["?"], [r"\boxed{x}"], answer=["?"])


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("bytearray(10 ** 9)", "MemoryError"),
        ("import os; os.write(os.open('written', os.O_CREAT | os.O_WRONLY), b'x')", "OSError"),
        ("module._limit_time(0)\nwhile True: pass", -24),  # SIGXCPU: nobody had to be there
    ],
    ids=["memory", "files", "processor"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux")
def test_the_operating_system_keeps_the_limits(tmp_path, code, outcome):
    script = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('checker', {math_verify.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        f"module._limit(500 * 2**20)\n{code}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    if isinstance(outcome, int):
        assert done.returncode == outcome
    else:
        assert outcome in done.stderr
    assert not (tmp_path / "written").exists() or not (tmp_path / "written").read_text()
