"""What `plan` measures, computes and says."""

import dataclasses
import json
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lowdim.errors import DataError
from lowdim.policy.plan import plan
from lowdim.policy.planned import Plan
from lowdim.policy.probes import completion_log_probs, probe_times
from lowdim.policy.prospects import Prospects, expected_longest, share_all_zero
from lowdim.policy.steptime import ModelTimes, PassTime, Shape, TokenTime, break_even, step_seconds

WORDS = ["<pad>", "$", "?", *"0123456789+= "]


def tokenizer():
    model = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?")
    found = Tokenizer(model)
    found.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=found, pad_token="<pad>", eos_token="$", unk_token="?")


def config(width=16, layers=1):
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )


def network(width=16, layers=1, seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(width, layers))


def times(token, score, update, *, rows=(8, 14), start=0.0, optimizer=0.0):
    return ModelTimes(
        {size: TokenTime((0,), (token,), start=start) for size in rows},
        PassTime(score),
        PassTime(update),
        optimizer,
    )


def test_the_step_is_the_sum_of_its_parts():
    small = times(0.1, 0.001, 0.003, optimizer=0.5)
    large = times(1.0, 0.010, 0.030, optimizer=2.0)
    shape = Shape(1, 14, 8, 20, 81, 61, reward=0.25, overhead=0.125)
    found = {name: sum(parts.values()) for name, parts in step_seconds(small, large, shape=shape).items()}
    assert found["grpo_large"] == pytest.approx(60 + 8 * 0.25 + 8 * 0.03 * 81 + 2 + 0.125)
    assert found["grpo_small"] == pytest.approx(8 + 8 * 0.25 + 8 * 0.003 * 101 + 0.5 + 0.125)
    assert found["hybrid"] == pytest.approx(8 + 14 * 0.25 + 14 * 0.011 * 101 + 8 * 0.033 * 101 + 2.5 + 0.125)


def test_the_pages_condition_on_the_saved_generation():
    # Section 7.1: M=14, G=8, u_S = u_L/5 and scoring a third of an update: 0.90 u_L must be saved.
    update = 0.03
    spent = 8 * 101 * update
    needed = 14 / 24 * spent + (1 + 14 / 24) * spent / 5
    assert needed / spent == pytest.approx(0.90, abs=0.005)
    for extra in (-0.01, 0.01):
        large = times((needed * (1 + extra) + 10) / 100, update / 3, update)
        small = times(0.1, update / 15, update / 5)
        found = Plan(Shape(1, 14, 8, 0, 101, 101), small, large, (1, 5), (), None, "cpu", 0.0)
        assert (found.saving > 0) == (extra > 0)


def test_decoding_time_is_the_integral_over_the_contexts():
    curve = TokenTime((10, 30, 50), (1.0, 3.0, 3.0), start=7.0)
    assert curve.total(10, 40) == 7 + 20 * 2 + 20 * 3
    assert curve.at(20) == 2.0
    assert curve.at(100) == 3.0  # the last line goes on
    falling = TokenTime((10, 20), (2.0, 1.0))
    assert falling.at(1000) == 1.0  # and never down


def test_pass_time_has_no_negative_part():
    assert PassTime.through([(10, 1.0), (20, 3.0)]).seconds(20) == pytest.approx(3.0)
    assert PassTime.through([(10, 1.0), (20, 3.0)]).seconds(10) == pytest.approx(1.0)
    assert PassTime.through([(10, 1.0), (20, 1.5)]) == PassTime(0.075)
    assert PassTime.through([(10, 1.0), (20, 8.0)]) == PassTime(0.0, 0.02)


def test_rows_between_measured_batches():
    found = ModelTimes({8: TokenTime((0,), (1.0,)), 16: TokenTime((0,), (2.0,))}, PassTime(1), PassTime(1))
    assert found.generate(12, prompt=0, tokens=11) == pytest.approx(15)


def test_break_even_is_where_the_sign_changes():
    small, large = times(0.1, 0.001, 0.003, start=9.0), times(1.0, 0.010, 0.030)
    shape = Shape(1, 14, 8, 0, 1, 1)
    length = break_even(small, large, shape=shape)
    at = lambda n: dataclasses.replace(shape, small_length=n, large_length=n)  # noqa: E731

    def saved(n):
        found = step_seconds(small, large, shape=at(n))
        return sum(found["grpo_large"].values()) - sum(found["hybrid"].values())

    assert saved(length) >= 0 > saved(length / 1.13)
    assert break_even(large, small, shape=shape) is None


def test_longest_of_a_batch():
    lengths = [3, 1, 4, 1, 5]
    every = [max(a, b) for a in lengths for b in lengths]
    assert expected_longest(lengths, rows=2) == pytest.approx(sum(every) / 25)
    assert expected_longest(lengths, rows=10**6) == pytest.approx(5)


def test_share_without_success_among_fewer_rollouts():
    reward = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, math.nan, 0.0, math.nan]])
    assert share_all_zero(reward, kept=2) == pytest.approx((3 / 6 + 0 + 1) / 3)
    assert share_all_zero(reward, kept=4) == pytest.approx(1 / 3)


def seen(**changes):
    values = {
        **dict.fromkeys((field.name for field in dataclasses.fields(Prospects)), 0.5),
        **{"prompts": 64, "rollouts": 14, "sample_size_rows": 896, "all_zero": 0.1, "truncated": 0.0},
        **{"lengths_small": (3, 4), "lengths_large": (3,)},
    }
    return Prospects(**{**values, **changes})


def planned(prospects=None, *, token=1.0):
    shape = Shape(1, 14, 8, 0, 100, 100)
    return Plan(shape, times(0.1, 0.001, 0.003), times(token, 0.01, 0.03), (1, 5), (), prospects, "cpu", 0.0)


@pytest.mark.parametrize(
    ("prospects", "token", "word"),
    [
        (seen(all_zero=0.41), 1.0, "no success"),
        (seen(sample_size=0.09), 1.0, "far apart"),
        (seen(), 0.1, "more time per step"),
        (seen(truncated=0.6), 1.0, "cut off"),
    ],
)
def test_each_warning_where_it_belongs(prospects, token, word):
    found = planned(prospects, token=token)
    assert [word in warning for warning in found.warnings] == [True]
    assert found.verdict[-1] == found.warnings[0]
    assert not found.pays


def test_no_warning_at_the_limits():
    found = planned(seen(all_zero=0.4, sample_size=0.1))
    assert found.warnings == ()
    assert found.pays
    assert "less" in found.verdict[0]


def test_few_rollouts_are_told():
    assert "too high" in " ".join(planned(seen(sample_size_rows=100)).verdict)
    assert "too high" not in " ".join(planned(seen()).verdict)


def test_saved_and_read(tmp_path):
    found = planned(seen(success_large=math.nan))
    found.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert math.isnan(again.prospects.success_large)
    assert again.to_dict()["step_seconds"] == found.to_dict()["step_seconds"]
    assert again.small == found.small
    assert again.shape == found.shape
    (tmp_path / "other.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError, match="no plan"):
        Plan.load(tmp_path / "other.json")


def test_log_probs_are_those_of_the_full_logits():
    model = network(width=32, layers=2).eval()
    ids = torch.randint(3, len(WORDS), (3, 9))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0  # left padding
    found = completion_log_probs(model, ids, mask, tokens=4, temperature=0.7)
    for row in range(3):
        own = ids[row][mask[row].bool()]
        logits = model(own[None]).logits[0, :-1] / 0.7
        expected = logits.log_softmax(-1).gather(-1, own[1:, None]).squeeze(-1)[-4:]
        assert torch.allclose(found[row], expected, atol=1e-5)


def test_probing_changes_nothing():
    model = network(width=32, layers=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = probe_times(
        model, batches=(2, 4), rows=2, prompt_length=4, completion_length=12, steps=3, repeats=1
    )
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert sorted(found.tokens) == [2, 4]
    assert found.update.seconds(16) > found.score.seconds(16) > 0
    assert found.optimizer > 0


def test_probing_counts_what_the_clock_says():
    class Ticks:
        now = 0.0

        def __call__(self):
            self.now += 1.0
            return self.now

    found = probe_times(
        network(),
        batches=(2,),
        rows=4,
        prompt_length=4,
        completion_length=8,
        steps=3,
        repeats=1,
        clock=Ticks(),
    )
    # One tick per call of the clock: per token, before the first, per pass of 4 rows.
    assert found.tokens[2].seconds == (1.0, 1.0, 1.0)
    assert found.tokens[2].start == 1.0
    assert found.update.seconds(12) == found.score.seconds(12) == pytest.approx(0.25)
    assert found.optimizer == 1.0


def test_a_plan_on_real_prompts(tmp_path):
    words = tokenizer()
    small, large = network(seed=1), network(width=32, layers=2, seed=2)

    def reward(prompts, completions, completion_ids, answer, **columns):
        assert len(prompts) == len(completions) == len(completion_ids) == len(answer)
        return [float(a in c) for a, c in zip(answer, completions, strict=True)]

    rows = [{"prompt": f"{a}+{a}=", "answer": str(a)} for a in range(10)]
    found = plan(
        *(small, large, rows),
        reward=reward,
        tokenizer=words,
        candidates=6,
        keep_rollouts=4,
        max_completion_length=12,
        prompts_per_step=2,
        prompts_measured=8,
        repeats=1,
    )
    assert found.prospects.prompts == 8
    assert found.prospects.sample_size_rows == 48
    assert 0 < found.prospects.success_small < 1
    assert 0 < found.prospects.sample_size < 1
    assert found.prospects.all_zero <= found.prospects.all_zero_kept
    assert found.prospects.kl_sequence > 0
    assert found.shape.prompt_length == 4
    assert found.shape.small_length <= 12
    assert [each.name for each in found.memory] == ["full", "lora", "bf16", "offload"]
    assert list(found.table().columns) == ["grpo_large", "grpo_small", "hybrid"]
    found.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").verdict == found.verdict


def test_equal_policies_have_a_full_sample():
    words = tokenizer()
    found = plan(
        *(network(seed=1), network(seed=1), ["1+1=", "2+2="]),
        reward=lambda completions, **_: [1.0] * len(completions),
        tokenizer=words,
        candidates=4,
        keep_rollouts=2,
        max_completion_length=8,
        repeats=1,
    )
    assert found.prospects.sample_size == pytest.approx(1, abs=1e-4)
    assert found.prospects.kl_sequence == pytest.approx(0, abs=1e-4)
    assert found.prospects.flat == 1
    assert found.prospects.all_zero == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep_rollouts": 5}, "not between 2 and candidates=4"),
        ({"max_completion_length": 0}, "max_completion_length=0"),
        ({"temperature": 0}, "temperature=0"),
        ({"device": "cuda:77"}, "cannot be used here"),
        ({"dtype": "float1"}, "float1"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["1+1="]}, "need a tokenizer"),
        ({"prompts": [{"question": "1"}]}, "no column 'prompt'"),
        ({"small": "/nowhere"}, "cannot be loaded"),
    ],
)
def test_refusals(changes, words):
    given = {"small": config(), "large": config(), "prompts": [4], **changes}
    settings = {name: given[name] for name in given if name not in ("small", "large", "prompts")}
    with pytest.raises(DataError, match=words):
        plan(
            given["small"],
            given["large"],
            given["prompts"],
            **{
                "reward": None,
                "candidates": 4,
                "keep_rollouts": 2,
                "max_completion_length": 4,
                "repeats": 1,
                **settings,
            },
        )


def test_a_reward_of_wrong_length_is_named():
    def short(completions, **columns):
        return [1.0]

    with pytest.raises(DataError, match="'short' gave 1 values for 4"):
        plan(
            *(network(), network(), ["1+1="]),
            reward=short,
            tokenizer=tokenizer(),
            candidates=4,
            keep_rollouts=2,
            max_completion_length=4,
            repeats=1,
        )


def test_models_without_a_common_vocabulary_are_refused():
    large = config()
    large.vocab_size = 8
    with pytest.raises(DataError, match="only 8 rows"):
        plan(
            *(network(), LlamaForCausalLM(large), ["1+1="]),
            reward=lambda completions, **_: [1.0] * len(completions),
            tokenizer=tokenizer(),
            candidates=4,
            keep_rollouts=2,
            max_completion_length=4,
            repeats=1,
        )
