"""Laws of answers: a number is itself in every spelling, and no text stops the reader or the checkers."""

import time
from fractions import Fraction

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lowdim.policy.rewards import answer_reward, final_answer, read_number, tag_reward
from lowdim.policy.rewards.numbers import read_answer, same_number

# What a decimal number with its digits, and its value, may look like in a completion.
SPELLINGS = [
    lambda d: d,
    lambda d: f"{d}.",
    lambda d: f"${d}",
    lambda d: rf"\${d}$",
    lambda d: rf"\boxed{{{d}}}",
    lambda d: rf"\boxed{{{d}\text{{ cm}}}}",
    lambda d: f"#### {d}",
    lambda d: f"<think>\n12 or 13?</think><answer> {d} </answer>",
    lambda d: f"Therefore, the answer is {d}.",
    lambda d: f"3 + 4 is not it.\nAnswer: {d} miles",
    lambda d: d + ("0" if "." in d else ".000"),
    lambda d: f"{d}e0",
]
WHOLE = st.integers(-(10**9), 10**9)
DECIMALS = st.decimals(-(10**6), 10**6, places=3, allow_nan=False, allow_infinity=False).map(
    lambda d: f"{d:f}"
)
FRAGMENTS = [
    *(r"\boxed{", "}", "{", r"\frac", r"\sqrt", "^", "!", "(", ")", "$", r"\text{", "<answer>", "</answer>"),
    *("####", "\n", "answer is ", "answer: ", " or ", ", ", "<think>", "</think>", "%", "e9", "10^", "\x00"),
    *(
        r"\binom{9}{4}",
        r"\sum_{i=1}^{99}",
        "NaN",
        "\u202e",
        "\u00b2",
        "\u0667",
        "=",
        "/",
        "*",
        "-",
        ".",
        "x",
        "7",
    ),
]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=40).map("".join)


@given(st.one_of(WHOLE.map(str), WHOLE.map("{:,}".format), DECIMALS), st.sampled_from(SPELLINGS))
def test_a_number_is_itself_in_every_spelling(digits, spell):
    value = Fraction(digits.replace(",", ""))
    assert read_answer(final_answer(spell(digits))).value == value


@given(WHOLE, st.integers(1, 10**6))
def test_a_fraction_is_the_quotient(top, bottom):
    value = Fraction(top, bottom)
    sign = "-" if top < 0 else ""
    for text in (
        f"{top}/{bottom}",
        rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}",
        rf"\frac{{{top}}}{{{bottom}}}",
    ):
        assert read_number(text).value == value


@given(WHOLE, WHOLE, st.sampled_from(SPELLINGS))
def test_equal_is_equal_and_different_is_different(one, other, spell):
    found = read_answer(final_answer(spell(str(other))))
    assert same_number(read_number(str(one)), found) is (one == other)


@given(
    st.lists(WHOLE, min_size=2, max_size=5, unique=True),
    st.sampled_from([" or ", ", ", " and ", "; ", " / ", " "]),
)
def test_several_answers_are_none(values, between):
    if between == " ":
        values = [values[0], -abs(values[1]) or -1]
    listed = between.join(map(str, values))
    reward = answer_reward(kind="number")
    for text in (f"The answer is {listed}.", rf"\boxed{{{listed}}}", f"<answer>{listed}</answer>", listed):
        golds = list(map(str, values))
        assert sum(reward([""] * len(golds), [text] * len(golds), answer=golds)) == 0


@given(TEXTS)
@settings(max_examples=150)
def test_any_text_is_read_without_an_error(text):
    found = final_answer(text)
    if found is not None:
        read_answer(found)
        read_number(found.text)
    for kind in ("number", "exact"):
        assert answer_reward(kind=kind)([""], [text], answer=["987654"]) in ([0.0], [1.0])
    assert 0.0 <= tag_reward()([""], [text])[0] <= 1.0


ATOMS = st.sampled_from(["2", "9", "99", "10^9", "x", r"\pi", "0", "7!", "i", r"\infty"])
FORMULAS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds(r"\frac{{{}}}{{{}}}".format, inner, inner),
        st.builds("({})^{{{}}}".format, inner, inner),
        st.builds("({})!".format, inner),
        st.builds(r"\binom{{{}}}{{{}}}".format, inner, inner),
        st.builds(r"\sqrt{{{}}}".format, inner),
        st.builds(r"\sum_{{k=1}}^{{{}}} ({})^k".format, inner, inner),
        st.builds(r"\int_0^{{{}}} {} dx".format, inner, inner),
        st.builds("{} + {}".format, inner, inner),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def checkers():
    pytest.importorskip("math_verify")
    made = answer_reward(kind="latex", timeout=1.0, workers=2)
    yield made
    made.close()


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(formulas=st.lists(FORMULAS, min_size=1, max_size=2), rest=TEXTS)
def test_no_completion_outlasts_its_time_or_stops_the_checkers(checkers, formulas, rest):
    texts = [*(rf"\boxed{{{formula}}}" for formula in formulas), rest, r"so \boxed{z + y}"]
    begun = time.monotonic()
    found = checkers([""] * len(texts), texts, answer=["y + z"] * len(texts))
    # Each formula has one second, twice, and a worker may have to start each time. The rest is slack: this
    # is no measurement of speed, but what separates an end from none.
    assert time.monotonic() - begun < 60
    assert found[-1] == 1.0
    assert set(found) <= {0.0, 1.0}
