"""Rewards and evaluation against other libraries and against counting everything."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy import stats

from lowdim.claims import data_folder
from lowdim.policy import Evaluation, evaluate_policy
from lowdim.policy.rewards import answer_reward, gold_answer, overlong_penalty


def gsm8k(count):
    folder = data_folder()
    if folder is None or not (folder / "gsm8k" / "test.jsonl").is_file():
        pytest.skip("needs gsm8k/test.jsonl: set LOWDIM_DATA to the folder that has it")
    lines = (folder / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    return [gold_answer(json.loads(line)["answer"]) for line in lines[:count]]


def test_numbers_are_equal_where_math_verify_says_so():
    """Answers of GSM8K, right and wrong, boxed and in a sentence, through the peer's own extraction."""
    math_verify = pytest.importorskip("math_verify")
    golds = gsm8k(150)
    generator = np.random.default_rng(0)
    reward = answer_reward(kind="number")
    for spell in (r"Thus \boxed{{{}}}.", "The final answer is ${}$."):
        for shift in (0, 1, -1):
            values = [int(gold.replace(",", "")) + shift * int(generator.integers(1, 99)) for gold in golds]
            texts = [spell.format(value) for value in values]
            theirs = [
                float(
                    math_verify.verify(
                        math_verify.parse(gold.replace(",", ""), parsing_timeout=None),
                        math_verify.parse(text, parsing_timeout=None),
                        timeout_seconds=None,
                    )
                )
                for gold, text in zip(golds, texts, strict=True)
            ]
            assert reward([""] * len(texts), texts, answer=golds) == theirs
            assert set(theirs) == ({1.0} if shift == 0 else {0.0})


def test_formulas_are_judged_as_by_the_reward_of_trl():
    rewards = pytest.importorskip("trl.rewards")
    pytest.importorskip("math_verify")
    golds = [r"\frac{1}{2}", r"\sqrt{2}", "x^2+2x+1", "(1,2)", r"2\pi", "-3", r"\{1,2\}", r"\frac{2}{3}"]
    ours = answer_reward("solution", kind="latex", workers=1)
    for given in (
        golds,
        golds[1:] + golds[:1],
        ["0.5", "2^{1/2}", "(x+1)^2", "(1, 2)", r"\pi\cdot 2", "-3.0"],
    ):
        pairs = list(zip(golds, given, strict=False))
        chat = [[{"role": "assistant", "content": rf"It is \boxed{{{answer}}}."}] for _, answer in pairs]
        solutions = [rf"\boxed{{{gold}}}" for gold, _ in pairs]
        theirs = rewards.accuracy_reward(chat, solutions)
        assert ours([""] * len(pairs), chat, solution=solutions) == theirs
    ours.close()


def test_the_penalty_of_length_is_that_of_trl():
    rewards = pytest.importorskip("trl.rewards")
    for longest, buffer in ((100, 20), (64, 64), (7, 1)):
        ids = [[0] * n for n in range(longest + 5)]
        theirs = rewards.get_soft_overlong_punishment(longest, buffer)(completion_ids=ids)
        ours = overlong_penalty(longest, buffer=buffer)([""] * len(ids), [""] * len(ids), ids)
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_pass_at_k_is_the_share_of_all_subsets():
    rewards = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (6, 7)).astype(float))
    found = Evaluation(rewards, rewards.long(), rewards.bool(), None, 0, 0.0)
    for k in range(1, 8):
        per_prompt = [
            np.mean([any(row[list(subset)] == 1) for subset in itertools.combinations(range(7), k)])
            for row in rewards
        ]
        value, error = found.pass_at(k)
        assert value == pytest.approx(np.mean(per_prompt), abs=1e-12)
        assert error == pytest.approx(stats.sem(per_prompt), abs=1e-12)


class Digits:
    """One token per digit."""

    eos_token_id, pad_token_id = 0, 11

    def __call__(self, text):
        return {"input_ids": [int(c) + 1 for c in text]}

    def batch_decode(self, rows, *, skip_special_tokens):
        return ["".join(str(token - 1) for token in row if 0 < token < 11) for row in rows]


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 12}
    config = transformers.GPT2Config(**sizes, initializer_range=0.4, eos_token_id=0, bos_token_id=None)
    return transformers.GPT2LMHeadModel(config).eval()


def nothing(prompts, completions, completion_ids, **columns):
    return [0.0] * len(prompts)


def test_greedy_completions_are_those_of_generate_without_padding(model):
    prompts = [{"prompt": "1234567890"[: n + 1]} for n in range(10)]
    found = evaluate_policy(
        model, Digits(), prompts, reward=nothing, samples=1, max_completion_length=8, batch_size=10
    )
    greedy = {row["row"]: row["completion"] for row in found.completions if row["sample"] == "greedy"}
    for number, row in enumerate(prompts):
        ids = torch.tensor([Digits()(row["prompt"])["input_ids"]])
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=11
        )
        assert (
            greedy[number]
            == Digits().batch_decode(alone[:, ids.shape[1] :].tolist(), skip_special_tokens=True)[0]
        )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_tokens_follow_the_distribution_of_the_model(model, temperature):
    """Two tokens of a padded prompt: the pairs against the product of the model's own probabilities."""
    counts = np.zeros((12, 12))

    def reward(prompts, completions, completion_ids, **columns):
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            if prompt == "31":
                counts[ids[0], ids[1] if len(ids) > 1 else 0] += 1
        return [0.0] * len(prompts)

    rows, samples = [{"prompt": "31"}, {"prompt": "31415926"}], 3000
    evaluate_policy(
        model, Digits(), rows, reward=reward, samples=samples, temperature=temperature,
        max_completion_length=2, batch_size=1000, greedy=False, seed=3,
    )  # fmt: skip
    with torch.no_grad():
        start = torch.tensor([Digits()("31")["input_ids"]])
        first = torch.softmax(model(start).logits[0, -1].double() / temperature, dim=-1)
        longer = torch.cat([start.expand(12, -1), torch.arange(12)[:, None]], dim=1)
        second = torch.softmax(model(longer).logits[:, -1].double() / temperature, dim=-1)
    second[0] = torch.nn.functional.one_hot(torch.tensor(0), 12)  # the end of the text is the end
    expected = (first[:, None] * second).numpy() * samples
    seldom = expected < 5
    observed = np.append(counts[~seldom], counts[seldom].sum())
    wanted = np.append(expected[~seldom], expected[seldom].sum())
    assert stats.chisquare(observed, wanted).pvalue > 0.01
    # The test can fail: against another temperature it does.
    assert stats.chisquare(observed, np.roll(wanted, 1)).pvalue < 1e-6
