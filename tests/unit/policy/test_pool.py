"""Worker processes that hang, crash, talk nonsense or never start, and the questions they were asked."""

import os
import pickle
import subprocess
import sys
import time

import pytest

from lowdim.errors import RunError
from lowdim.policy.rewards import KillablePool
from lowdim.policy.rewards import pool as pool_module

# Answers every question with its double; does what the words say.
WORKER = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked == "hang": time.sleep(1000)
    if asked == "hold": 3 ** (10 ** 9)          # arithmetic that no signal interrupts
    if asked == "die": os._exit(3)
    if asked == "babble": print("{", flush=True); continue
    if asked == "environment": print(json.dumps(sorted(os.environ)), flush=True); continue
    if asked == "once":
        if not os.path.exists(sys.argv[1]): open(sys.argv[1], "w").close(); os._exit(1)
    print(json.dumps([os.getpid(), asked]), flush=True)
"""


@pytest.fixture
def pool(tmp_path):
    made = KillablePool(
        [sys.executable, "-S", "-c", WORKER, str(tmp_path / "seen")], workers=2, timeout=0.5, total=60
    )
    yield made
    made.close()


def answers(replies):
    return [None if reply is None else reply[1] for reply in replies]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_answers_come_in_the_order_of_the_questions_from_workers_that_stay(pool):
    first = pool.ask(list(range(40)))
    assert answers(first) == list(range(40))
    workers = {reply[0] for reply in first}
    assert len(workers) <= 2
    assert {reply[0] for reply in pool.ask(list(range(40)))} <= workers
    assert pool.ask([]) == []
    assert (pool.kills, pool.failures) == (0, 0)


@pytest.mark.parametrize("nasty", ["hang", "hold", "die", "babble"])
def test_a_question_that_fails_twice_has_no_answer_and_harms_no_other(pool, nasty):
    assert answers(pool.ask([1, nasty, 2, 3])) == [1, None, 2, 3]
    assert (pool.failures, pool.kills) == (1, 2)
    assert answers(pool.ask([4])) == [4]


def test_a_question_that_fails_once_is_asked_again(pool):
    assert answers(pool.ask(["once", 1])) == ["once", 1]
    assert (pool.failures, pool.kills) == (0, 1)


def test_the_call_ends_after_its_total_time_whatever_is_left(tmp_path):
    pool = KillablePool([sys.executable, "-S", "-c", WORKER], workers=1, timeout=50, total=0.7)
    assert answers(pool.ask([1, "hang", 2])) == [1, None, None]
    assert pool.failures == 2
    assert answers(pool.ask([3])) == [3]
    pool.close()


def test_a_long_question_passes(pool):
    assert answers(pool.ask(["x" * 300_000])) == ["x" * 300_000]


def test_a_worker_killed_from_outside_is_replaced(pool):
    pid = pool.ask([1])[0][0]
    os.kill(pid, 9)
    assert answers(pool.ask([2, 3])) == [2, 3]
    assert pool.failures == 0


def test_workers_that_never_start_are_an_error_with_the_command():
    pool = KillablePool([sys.executable, "-S", "-c", "raise SystemExit(7)"], workers=1)
    with pytest.raises(
        RunError, match=r"status 7 before it was ready, three times. Try .* raise SystemExit\(7\)"
    ):
        pool.ask([1])


def test_a_pickled_pool_has_the_settings_and_workers_of_its_own(pool):
    pid = pool.ask([1])[0][0]
    copy = pickle.loads(pickle.dumps(pool))
    assert (copy.timeout, copy.workers, copy.command) == (pool.timeout, pool.workers, pool.command)
    assert copy.ask([1])[0][0] != pid
    copy.close()
    assert alive(pid)


def test_close_ends_the_workers_and_the_next_question_starts_new_ones(pool):
    pid = pool.ask([1])[0][0]
    pool.close()
    assert not alive(pid)
    assert answers(pool.ask([2])) == [2]


def test_secrets_of_the_environment_stay_here(pool, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("PLAIN_WORD", "x")
    names = pool.ask(["environment"])[0]
    assert "PLAIN_WORD" in names
    assert not {"HF_TOKEN", "WANDB_API_KEY"} & set(names)


# The pool's file alone: the room around it would import torch.
SCRIPT = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("pool", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
pool = module.KillablePool([sys.executable, "-S", "-c", {worker!r}], workers=1, timeout=5)
print(pool.ask([1])[0][0], flush=True)
{rest}
"""


def pids_of(rest):
    code = SCRIPT.format(path=pool_module.__file__, worker=WORKER, rest=rest)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    return [int(word) for word in done.stdout.split()]


def gone(pid):
    for _ in range(200):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)", "os._exit(0)"], ids=["exit", "kill", "_exit"])
def test_workers_end_with_their_owner_however_it_ends(end):
    (pid,) = pids_of(end)
    assert gone(pid)


def test_a_forked_child_has_workers_of_its_own_and_leaves_those_of_its_parent():
    mine, theirs, again = pids_of(
        "if os.fork() == 0:\n"
        "    print(pool.ask([2])[0][0], flush=True)\n"
        "    sys.exit(0)\n"
        "os.wait()\n"
        "print(pool.ask([3])[0][0], flush=True)"
    )
    assert mine == again != theirs
    assert gone(mine)
    assert gone(theirs)
