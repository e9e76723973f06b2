"""Evaluation of a policy: what is counted, what it does not depend on, and what is refused."""

import copy
import json

import pytest
import torch

from lowdim.errors import DataError, Diverged, RunError
from lowdim.policy import Evaluation, evaluate_policy, read_prompts

transformers = pytest.importorskip("transformers")
pytest.importorskip("datasets")

CHARACTERS = "0123456789+=$"


def tokenizer():
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {"[PAD]": 0, **{c: i for i, c in enumerate(CHARACTERS, start=1)}}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", eos_token="$")


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=14,
            max_position_embeddings=64,
            initializer_range=0.3,
            eos_token_id=13,
            bos_token_id=None,
            **sizes,
        )
    )


def gpt2():
    """Learned absolute positions: padding that shifts them would show."""
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=14,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            initializer_range=0.3,
            eos_token_id=13,
            bos_token_id=None,
        )
    )


PROMPTS = [{"prompt": "+".join("1234567"[: n % 5 + 1]) + f"{n}=", "answer": str(n)} for n in range(9)]
TOKENIZER = tokenizer()


def starts_even(prompts, completions, completion_ids, answer, **columns):
    """1 for an even first token, None for one prompt."""
    return [
        None if a == "3" else float(ids[0] % 2 == 0) for ids, a in zip(completion_ids, answer, strict=True)
    ]


def run(model, prompts=PROMPTS, **options):
    settings = {"reward": starts_even, "samples": 4, "max_completion_length": 8, "seed": 1, "shown": 99}
    return evaluate_policy(model, TOKENIZER, prompts, **{**settings, **options})


@pytest.mark.parametrize("n", [2, 11], ids=["two", "more than prompts"])
def test_shares_of_several_processes_are_what_one_finds(n):
    model = llama()
    whole, shares = run(model, batch_size=64), [run(model, batch_size=5, share=(k, n)) for k in range(n)]
    found = Evaluation.together(shares)
    for name in ("rewards", "lengths", "truncated", "greedy"):
        assert torch.equal(getattr(found, name).nan_to_num(-1.0), getattr(whole, name).nan_to_num(-1.0))
    assert found.completions == whole.completions
    assert found.tokens == whole.tokens
    assert max(share.tokens for share in shares) < whole.tokens
    assert found.seconds == max(share.seconds for share in shares)
    with pytest.raises(DataError, match="share="):
        run(model, share=(n, n))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_completions_do_not_depend_on_the_batch_or_the_padding(make):
    model = make()
    alone, some, together = (run(model, PROMPTS[:6], batch_size=size) for size in (1, 5, 64))
    assert alone.completions == some.completions == together.completions
    for name in ("rewards", "lengths", "truncated", "greedy"):
        one, other = getattr(alone, name), getattr(together, name)
        assert torch.equal(one.nan_to_num(-1.0), other.nan_to_num(-1.0))
    assert len({row["completion"] for row in alone.completions}) > 15


def test_the_seed_decides_and_fewer_samples_are_the_first_ones():
    model = llama()
    assert run(model).completions != run(model, seed=2).completions
    fewer = run(model, samples=2, greedy=False)
    assert torch.equal(fewer.rewards.nan_to_num(-1), run(model).rewards[:, :2].nan_to_num(-1))
    assert fewer.greedy is None
    # The global state of random numbers is neither used nor moved.
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(model, samples=2)
    assert torch.equal(torch.rand(3), expected)


def test_lengths_truncation_and_tokens_are_counted():
    seen = []

    def reward(prompts, completions, completion_ids, **columns):
        seen.extend(completion_ids)
        return [0.0] * len(prompts)

    found = run(llama(), reward=reward)
    for ids in seen:  # up to and with the first end of text, or cut off
        assert 13 not in ids[:-1]
        assert ids[-1] == 13 or len(ids) == 8
    assert found.tokens == sum(map(len, seen))
    sampled = seen[:36]
    assert sorted(found.lengths.flatten().tolist()) == sorted(map(len, sampled))
    assert found.truncated_share == sum(ids[-1] != 13 for ids in sampled) / 36
    assert 0 < found.truncated_share < 1


def test_the_model_and_its_settings_are_as_before():
    model = llama()
    model.generation_config.top_k = 1  # would make every sample the greedy one
    model.generation_config.repetition_penalty = 5.0
    before = copy.deepcopy(model.generation_config.to_dict())
    model.train()
    with_settings = run(model)
    assert model.training
    assert model.generation_config.to_dict() == before
    assert with_settings.completions == run(llama()).completions


def test_a_cold_policy_samples_what_is_most_probable():
    found = run(llama(), temperature=1e-4, samples=2)
    rows = {(row["row"], row["sample"]): row["completion"] for row in found.completions}
    assert all(rows[row, 0] == rows[row, 1] == rows[row, "greedy"] for row in range(9))


def test_none_is_left_out_of_all_figures():
    found = run(llama())
    assert found.rewards[3].isnan().all()
    known = torch.cat([found.rewards[:3], found.rewards[4:]])
    assert found.mean == pytest.approx(known.mean().item())
    assert found.error == pytest.approx((known.mean(dim=1).std() / 8**0.5).item())
    assert found.to_dict()["unrewarded"] == 4


def test_conversations_reach_the_reward_as_conversations():
    chatty = tokenizer()
    chatty.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    seen = []

    def reward(prompts, completions, completion_ids, **columns):
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    prompts = [{"prompt": [{"role": "user", "content": row["prompt"][:-1]}]} for row in PROMPTS]
    found = evaluate_policy(
        llama(), chatty, prompts, reward=reward, samples=2, max_completion_length=4, shown=99
    )
    plain = run(llama(), samples=2, max_completion_length=4, seed=0)
    assert [row["completion"] for row in found.completions] == [
        row["completion"] for row in plain.completions
    ]
    assert seen[0][0][0]["role"] == "user"
    assert seen[0][1][0]["role"] == "assistant"
    with pytest.raises(DataError, match="no chat template"):
        run(llama(), prompts)


def test_progress_and_prompts_of_the_room():
    calls = []
    prompts = read_prompts(PROMPTS)
    found = run(llama(), prompts, batch_size=8, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (45, 45)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert found.completions == run(llama(), batch_size=8).completions


def test_an_evaluation_is_saved_and_loaded(tmp_path):
    found = run(llama())
    found.save(tmp_path / "e")
    again = Evaluation.load(tmp_path / "e")
    assert again.to_dict() == found.to_dict()
    assert again.completions == found.completions
    assert torch.equal(again.rewards.nan_to_num(-1), found.rewards.nan_to_num(-1))
    header = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    header["format"] = 99
    (tmp_path / "e" / "evaluation.json").write_text(json.dumps(header))
    with pytest.raises(RunError, match="format 99"):
        Evaluation.load(tmp_path / "e")
    with pytest.raises(RunError, match=r"holds no evaluation\.json"):
        Evaluation.load(tmp_path)


def test_figures_of_a_table_by_hand():
    rewards = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    shape = torch.ones(4, 4).long(), torch.zeros(4, 4).bool()
    found = Evaluation(rewards, *shape, torch.tensor([1.0, 0.0, float("nan"), 1.0]), 16, 1.0)
    assert found.mean == 7 / 16
    assert found.pass_at(1)[0] == found.mean
    assert found.pass_at(2)[0] == pytest.approx((1 / 2 + 5 / 6 + 0 + 1) / 4)
    assert found.pass_at(4)[0] == 3 / 4
    assert found.greedy_accuracy[0] == pytest.approx(2 / 3)
    assert found.table()["k"].tolist() == [1, 2, 3, 4]
    for k in (0, 5):
        with pytest.raises(DataError, match=f"k={k} must be from 1 to the 4 samples"):
            found.pass_at(k)
    one = Evaluation(rewards[:1], shape[0][:1], shape[1][:1], None, 4, 1.0).to_dict()
    assert one["error"] is None
    assert one["greedy"] is None


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "there are no prompts"),
        ([{"text": "1="}], {}, "columns text and no 'prompt'"),
        (PROMPTS, {"samples": 0}, "samples=0 must be above 0"),
        (PROMPTS, {"temperature": 0.0}, "temperature=0.0 must be above 0"),
        (PROMPTS, {"batch_size": 0}, "batch_size=0"),
        (PROMPTS, {"max_completion_length": 60}, r"longest prompt \(row 5, 11 tokens\) and max_comp"),
        (PROMPTS, {"max_completion_length": 0}, "max_completion_length=0"),
        ([{"prompt": ""}], {}, "a prompt has no tokens"),
        (PROMPTS, {"reward": lambda **columns: [1.0]}, "returned 1 values for"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(prompts, options, message):
    with pytest.raises(DataError, match=message):
        run(llama(), prompts, **options)


def test_logits_that_are_not_finite_are_an_error():
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="not finite"):
        run(model)
