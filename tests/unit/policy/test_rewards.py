"""The contract of a reward, and those of form, length and name."""

import importlib.util
import pickle
import sys

import numpy as np
import pytest
import torch

from lowdim.errors import DataError
from lowdim.policy.rewards import (
    checked,
    named_reward,
    overlong_penalty,
    tag_reward,
    total_reward,
)

GOOD = "<think>2 + 3</think>\n<answer>5</answer>"


class Gives:
    """A reward that returns what it was made with."""

    __name__ = "gives"

    def __init__(self, values):
        self.values = values

    def __call__(self, prompts, completions, completion_ids, **columns):
        return self.values


@pytest.mark.parametrize(
    "values",
    [
        [1, None],
        (1.0, None),
        np.array([1.0, 2.0]),
        torch.tensor([1.0, 2.0]),
        [np.float32(1), torch.tensor(2)],
        [True, 0],
    ],
    ids=["list", "tuple", "numpy", "torch", "scalars", "bool"],
)
def test_numbers_of_any_make_are_floats_or_none(values):
    found = checked(Gives(values))(["a", "b"], ["c", "d"], [[1], [2]])
    assert [type(value) for value in found] == [float, type(None) if found[1] is None else float]
    assert found[0] == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "reward gives: returned 1 values for 2 completions"),
        ([1.0] * 3, "returned 3 values for 2 completions"),
        (None, "returned NoneType, expected a list"),
        (1.0, "returned float, expected a list"),
        ("11", "returned str, expected a list"),
        ([1.0, float("inf")], r"returned 'inf' for row 1 \(completion 'd'\), expected a finite number"),
        ([float("nan"), 1.0], r"returned 'nan' for row 0 \(completion 'c'\)"),
        ([1.0, "1"], "returned '1' for row 1"),
        ([1.0, [1.0]], r"returned '\[1.0\]' for row 1"),
        ([1.0, 1j], "returned '1j' for row 1"),
        ([torch.zeros(2), 1.0], "for row 0"),
    ],
)
def test_what_is_no_reward_is_refused_with_name_row_and_value(values, message):
    for completions in (["c", "d"], [[{"role": "assistant", "content": text}] for text in "cd"]):
        with pytest.raises(DataError, match=message):
            checked(Gives(values))(["a", "b"], completions, [[1], [2]])


def test_checking_twice_is_checking_once():
    once = checked(Gives([1.0]))
    assert checked(once) is once
    assert once.__name__ == "gives"
    with pytest.raises(DataError, match="'latex' is str, expected a function"):
        checked("latex")


def test_a_total_is_the_weighted_sum_and_none_only_if_all_are():
    total = total_reward([Gives([1.0, None, None]), Gives([2.0, 3.0, None])], weights=[0.5, 2])
    assert total(["a"] * 3, ["b"] * 3, [[1]] * 3) == [4.5, 6.0, None]
    with pytest.raises(DataError, match=r"weights=\[1.0\] for 2 rewards"):
        total_reward([len, len], weights=[1])
    with pytest.raises(DataError, match="there is no reward"):
        total_reward([])


@pytest.mark.parametrize(
    ("text", "loose", "ordered"),
    [
        (GOOD, 1.0, 1.0),
        ("", 0.0, 0.0),
        ("<think>" * 2 + "</think><answer></answer>", 0.75, 0.75),
        ("</answer><answer></think><think>", 1.0, 0.25),
        ("<think></answer>", 0.5, 0.5),
        ("</think><think>", 0.5, 0.25),
        (GOOD * 2, 0.0, 0.0),
        ("<THINK></THINK>", 0.0, 0.0),
        ("<think >", 0.0, 0.0),
        ("<th\u200bink>", 0.0, 0.0),
        ("<think>" * 200_000, 0.0, 0.0),
        ("<" * 1_000_000 + GOOD, 1.0, 1.0),
        (GOOD + "\x00" * 1000, 1.0, 1.0),
    ],
)
def test_each_tag_counts_if_it_stands_exactly_once(text, loose, ordered):
    chat = [{"role": "assistant", "content": text}]
    for completion in (text, chat):
        assert tag_reward()(["?"], [completion]) == [loose]
        assert tag_reward(ordered=True)(["?"], [completion]) == [ordered]


def test_impossible_tags_are_refused():
    for tags in ([], ["<a>", ""], ["<a>", "<a>"]):
        with pytest.raises(DataError, match="must be different texts"):
            tag_reward(tags)


def test_the_penalty_of_length_looks_at_tokens_alone():
    penalty = overlong_penalty(8, buffer=4)
    ids = [[0] * n for n in (0, 4, 5, 8, 9, 100_000)]
    assert penalty(["?"] * 6, ["x" * 1_000_000] * 6, ids) == [0.0, 0.0, -0.25, -1.0, -1.0, -1.0]
    for buffer in (0, 9):
        with pytest.raises(DataError, match=f"buffer={buffer} must be from 1 to max_length=8"):
            overlong_penalty(8, buffer=buffer)


def test_names_make_the_rewards_of_the_library():
    assert named_reward("number", column="gold")(["?"], ["5"], [[1]], gold=["5"]) == [1.0]
    assert named_reward("tags")(["?"], [GOOD], [[1]]) == [1.0]
    assert named_reward("overlong:8:4")(["?"], ["a"], [[0] * 6]) == [-0.5]
    names = [named_reward(name).__name__ for name in ("exact", "tags", "overlong:8:4")]
    assert names == ["exact_answer", "tags", "overlong"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("calls = []\nSHIFT = 1\ndef length(completions, **rest):\n    calls.append(1)\n"
                    "    return [len(text) + SHIFT for text in completions]\n"
                    "def short(**rest):\n    return []\n")  # fmt: skip
    return path


def test_a_function_of_a_file_is_a_reward_and_survives_pickling(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    reward = named_reward("mine.py:length")
    assert reward(["?"], ["abc"], [[1]]) == [4.0]
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(reward))
    assert again(["?"], ["abc"], [[1]]) == [4.0]
    assert again.__name__ == "length"
    with pytest.raises(DataError, match="reward short: returned 0 values for 1 completions"):
        named_reward(f"{file}:short")(["?"], ["abc"], [[1]])


def test_two_functions_of_one_file_share_its_state(file):
    one, two = named_reward(f"{file}:length"), named_reward(f"{file}:short")
    assert one.reward._function.__globals__ is two.reward._function.__globals__


def test_a_function_of_a_module_is_a_reward(file, monkeypatch):
    monkeypatch.syspath_prepend(str(file.parent))
    file.rename(file.with_name("mine_as_module.py"))
    assert named_reward("mine_as_module:length")(["?"], ["ab"], [[1]]) == [3.0]
    sys.modules.pop("mine_as_module")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latexx", "'latexx' is unknown. Use latex, number, exact, tags, overlong:MAX:BUFFER"),
        ("overlong:8", "'overlong:8' must be overlong:MAX:BUFFER"),
        ("overlong:a:b", "must be overlong:MAX:BUFFER"),
        ("absent.py:f", "there is no file .*absent.py"),
        ("no_such_module_here:f", r"cannot be imported \(ModuleNotFoundError"),
        ("{file}:lenght", "has no function 'lenght'. It has: length, short"),
        ("{file}:SHIFT", "has no function 'SHIFT'"),
        ("{broken}:f", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("{file}:", "is unknown"),
        (":f", "is unknown"),
    ],
)
def test_a_reward_that_cannot_be_found_is_told(file, name, message):
    broken = file.with_name("broken.py")
    broken.write_text("1 / 0\n")
    with pytest.raises(DataError, match=message):
        named_reward(name.format(file=file, broken=broken))


@pytest.mark.parametrize(
    "name",
    [
        *("number", "exact", "tags", "overlong:8:4"),
        *(["latex"] if importlib.util.find_spec("math_verify") else []),
    ],
)
def test_every_reward_has_a_name_and_can_be_rebuilt(name):
    reward = pickle.loads(pickle.dumps(named_reward(name)))
    assert reward.__name__ == named_reward(name).__name__
    assert reward(["?"], [r"<answer>\boxed{5}</answer>"], [[1]], answer=["5"])[0] in (0.0, 0.5, 1.0)
    if hasattr(reward.reward, "close"):
        reward.reward.close()
