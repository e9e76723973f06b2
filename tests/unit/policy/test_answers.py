"""Which part of a completion is its answer, which number that is, and what it earns."""

import pickle
from fractions import Fraction

import pytest

from lowdim.errors import DataError, MissingExtra
from lowdim.policy.rewards import (
    FinalAnswer,
    answer_reward,
    check_gold,
    final_answer,
    gold_answer,
    read_number,
)
from lowdim.policy.rewards.numbers import read_answer, same_number

LONG = 1_000_000
# Completions that are no answer to "5", whatever the kind of the comparison.
ADVERSARIAL = {
    "empty": "",
    "spaces": " \n\t",
    "million": "x" * LONG,
    "million digits": "5" * LONG,
    "million boxes": r"\boxed{" * (LONG // 7),
    "million dollars": "$" * LONG,
    "million fractions": r"\frac{" * (LONG // 6),
    "million escapes": "\\" * LONG,
    "million conjunctions": "answer is 5 " + "or 5 or 6 " * (LONG // 10),
    "million tags": "<answer>" * (LONG // 8),
    "deep braces": r"\boxed{" + "{" * 10_000 + "5" + "}" * 10_000 + "}",
    "deep parentheses": r"\boxed{" + "(" * 10_000 + "5" + ")" * 10_000 + "}",
    "deep boxes": r"\boxed{" * 10_000 + "5" + "}" * 10_000,
    "tower": r"\boxed{9**9**9**9}",
    "exponent": r"\boxed{5e999999999}",
    "null": "\\boxed{5\x005}",
    "superscript": "\\boxed{5\u00b2}",
    "stuffed": "answer: 3 or 4 or 5",
    "stuffed box": r"\boxed{3 \text{ or } 5}",
    "stuffed list": r"\boxed{3, 4, 5}",
    "stuffed line": "3 4 5",
    "code": r"\boxed{__import__('os')._exit(5)}",
    "nan": r"\boxed{NaN}",
    "infinity": r"\boxed{\infty}",
    "cut off": r"so \boxed{5",
    "thought": "<think>it is 5",
    "negative": r"\boxed{-5}",
}


@pytest.mark.parametrize(
    ("completion", "text", "mark"),
    [
        (r"\boxed{3} no, \boxed{4}", "4", "box"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "box"),
        (r"\boxed{\boxed{5}}", "5", "box"),
        (r"\fbox {5}", "5", "box"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "box"),
        (r"{{} \boxed{5} {", "5", "box"),
        (r"<answer> \boxed{5} </answer>", "5", "box"),
        ("<answer>4</answer> <answer>5\n</answer>", "5", "tag"),
        (r"\boxed{4} #### 5", "5", "hashes"),
        (r"#### 4" "\n" r"\boxed{5}", "5", "box"),
        ("a\n#### 1,234 \nb", "1,234", "hashes"),
        (r"<think>\boxed{3}</think>\boxed{4}", "4", "box"),
        (r"<think>a</think>\boxed{3}<think>b</think>4", "4", "none"),
        ("The answer is 4. The Answer: 5.", "5.", "says"),
        ("one\n\ntwo 5 \n\n", "two 5", "none"),
    ],
)
def test_the_last_marked_answer_counts(completion, text, mark):
    assert final_answer(completion) == FinalAnswer(text, mark)


@pytest.mark.parametrize("name", ["empty", "spaces", "cut off", "thought"])
def test_without_an_answer_there_is_none(name):
    assert final_answer(ADVERSARIAL[name]) is None


def test_only_the_end_of_a_completion_is_read():
    assert final_answer(r"\boxed{5}" + " and so on" * 10_000).mark == "none"
    assert final_answer("and so on " * 10_000 + r"\boxed{5}").text == "5"


def test_a_gold_answer_is_taken_out_of_its_solution():
    assert gold_answer("a = <<1+1=2>>2\n#### 1,002") == "1,002"
    assert gold_answer(r"Thus \boxed{\frac{3}{4}}.") == r"\frac{3}{4}"
    assert gold_answer(" x + 1 ") == "x + 1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("72", 72), ("72.", 72), ("72.00", 72), ("$72", 72), (r"\$72", 72), ("$72$", 72), ("-$5", -5)),
        *(
            ("1,234", 1234),
            ("1 234 567", 1234567),
            ("1{,}234", 1234),
            (r"1\,234", 1234),
            ("1\u202f234", 1234),
        ),
        *(("\u22125", -5), ("- 5", -5), ("+.5", 0.5), ("(5)", 5), ("**5**", 5), ("0", 0), ("-0.0", 0)),
        *(
            ("1e3", 1000),
            ("1.5E-3", 0.0015),
            (r"1.5 \times 10^{3}", 1500),
            ("10^6", 10**6),
            ("1e400", 10**400),
        ),
        *(("1/2", 0.5), ("-3/4 cup", -0.75), (r"\frac{1}{2}", 0.5), (r"\dfrac12", 0.5), ("1 1/2", 1.5)),
        *(("1½", 1.5), (r"1\frac12", 1.5), ("2.5 million", 2_500_000), ("$3 thousand", 3000)),
        *(
            ("72 ducks per day.", 72),
            (r"72 \text{ cm}^2", 72),
            ("72 m²", 72),
            ("90^\\circ", 90),
            ("5 km/h", 5),
        ),
        *(("\uff17\uff12", 72), ("\u0667\u0662", 72), ("7\u200f2", 72), ("\u202e72\u202c", 72)),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert read_number(text).value == (value if isinstance(value, int) else Fraction(str(value)))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "$",
            "five",
            "3 or 4",
            "5 or six",
            "3,5",
            "12,34",
            "1,2345",
            "1.2.3",
            "7-8",
            "5 - 3",
            "5+3",
            "5:30",
        ),
        *("1/0", "2^10", "9**9**9**9", "1e999", "0x10", "1_000", "NaN", "inf", "\u221e", "7\u00b2", "7\x002"),
        *(r"5\pi", r"5\sqrt{2}", r"\frac{1}{0}", "x = 5", "9" * 257, "1e-99999999", "\ud835\udfd8x"),
    ],
)
def test_what_is_no_single_number_is_not_read(text):
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("The answer is 18 dollars per day for 2 ducks.", 18),
        ("He has 3 apples and 4 pears, so 7.", 7),
        ("The answer is 16 - 3 - 4 = 9 eggs for 2 days", 9),
        ("so 2*3 = 6 dollars for 2 ducks", 6),
        (r"\boxed{x = 5}", 5),
        ("<answer>Janet makes $18 every day</answer>", 18),
        ("It is -5 degrees", -5),
        ("Answer: **72**", 72),
        ("3 or 4 or 5", None),
        ("x = 3 or x = 5", None),
        ("Is it 5? Or 6?", None),
        ("The answer is 5 dollars, maybe 6", None),
        ("Answer: 5 (or 6)", None),
        ("5; 6", None),
        ("3/4/5", None),
        (r"\boxed{3 \text{ and } 4}", None),
        ("<answer>between 3 eggs and 4 eggs</answer>", None),
        ("not known", None),
    ],
)
def test_a_sentence_gives_one_number_or_none(completion, value):
    found = read_answer(final_answer(completion))
    assert (found.value if found else None) == value


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("0.5", "50%", True),
        ("5%", "5 %", True),
        ("5%", "500%", False),
        ("0.3333", "1/3", False),
        ("0.0000001", "0.0000002", False),
    ],
)
def test_percent_is_a_hundredth_or_a_unit(gold, answer, equal):
    assert same_number(read_number(gold), read_number(answer)) is equal


@pytest.mark.parametrize("kind", ["number", "exact"])
def test_adversarial_completions_earn_nothing(kind):
    reward = answer_reward(kind=kind)
    names = list(ADVERSARIAL)
    got = reward([""] * len(names), [ADVERSARIAL[name] for name in names], answer=["5"] * len(names))
    # These say 5 and nothing else: brackets are the dress of an exact text, and a call may hold a number.
    allowed = {"exact": {"deep braces", "deep parentheses"}, "number": {"code"}}[kind]
    assert {name for name, value in zip(names, got, strict=True) if value} == allowed
    assert reward([""], [r"\boxed{5}"], answer=["5"]) == [1.0]


def test_messages_and_texts_earn_the_same():
    reward = answer_reward(kind="number")
    texts = ["#### 5", "#### 6"]
    chat = [[{"role": "assistant", "content": text}] for text in texts]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    for completions in (texts, chat, parts):
        assert reward(["?", "?"], completions, [[1], [2]], answer=["5", "5"]) == [1.0, 0.0]


def test_exact_texts_are_equal_but_for_dress():
    reward = answer_reward("label", kind="exact")
    given = [
        "The answer is (B).",
        r"\boxed{\text{b}}",
        "<answer>B</answer>",
        "B or C",
        "b\u200f",
        "<answer></answer>",
    ]
    assert reward([""] * 6, given, label=["B"] * 6) == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]


def test_counts_and_metrics_say_how_many_had_no_answer():
    reward, logged = answer_reward(kind="number"), {}
    reward(["?"] * 4, ["", "5", "<think>", "6"], answer=["5"] * 4, log_metric=logged.__setitem__)
    assert reward.counts == {"all": 4, "none": 2, "undecided": 0}
    assert logged == {"number_answer/none": 0.5, "number_answer/undecided": 0.0}


def test_a_pickled_reward_rewards_the_same():
    reward = pickle.loads(pickle.dumps(answer_reward("gold", kind="number")))
    assert reward.__name__ == "number_answer"
    assert reward(["?"], ["5"], gold=["5"]) == [1.0]


def test_bad_settings_and_data_are_refused():
    with pytest.raises(DataError, match=r"kind='regex' is unknown. Use 'latex', 'number' or 'exact'"):
        answer_reward(kind="regex")
    with pytest.raises(DataError, match="timeout=0"):
        answer_reward(kind="number", timeout=0)
    reward = answer_reward(kind="number")
    with pytest.raises(DataError, match=r"no column 'answer'. Their columns are: gold, level"):
        reward(["?"], ["5"], gold=["5"], level=[1])
    with pytest.raises(DataError, match="gold answer 'five' cannot be read"):
        reward(["?"], ["5"], answer=["five"])
    with pytest.raises(
        DataError, match=r"2 of 3 gold answers cannot be read \(kind='number'\), the first in row 2"
    ):
        reward.check(["5", "five", None])


def test_gold_answers_are_checked_inside_wrappers():
    from lowdim.policy import checked, read_prompts, total_reward

    prompts = read_prompts([{"prompt": "a", "answer": "5"}, {"prompt": "b", "answer": "x"}])
    reward = total_reward([checked(answer_reward(kind="number"))])
    with pytest.raises(DataError, match="1 of 2 gold answers"):
        check_gold([reward], prompts)
    with pytest.raises(DataError, match=r"no column 'gold'. Their columns are: prompt, answer"):
        check_gold([answer_reward("gold", kind="exact")], prompts.dataset)
    check_gold([answer_reward(kind="exact"), len], prompts)


def test_formulas_without_math_verify_name_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"lowdim\[policy\]"):
        answer_reward(kind="latex")
