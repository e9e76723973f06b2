"""The arithmetic world: the task, the decoders' two ways to one probability, what a training step is."""

import copy
import dataclasses

import pytest
import torch

from lowdim.algebra import Blast, LowRank
from lowdim.errors import DataError, Diverged
from lowdim.policy.arithmetic import (
    CHARACTERS,
    RECIPES,
    Addition,
    Decoder,
    Recipe,
    closeness,
    completion_mask,
    compressed,
    greedy_accuracy,
    heal,
    large_decoder,
    sampled_accuracy,
    small_decoder,
    train,
    warm_up,
    weights_of,
)


@pytest.fixture(scope="module")
def task():
    return Addition(seed=0)


@pytest.fixture(scope="module")
def digit():
    """Sums of one digit: a decoder learns them in a few steps."""
    return Addition(1, held_out=20, seed=0)


@pytest.fixture(scope="module")
def warmed(digit):
    model = small_decoder(seed=0)
    warm_up(model, digit, until=0.1, lr=5e-3, seed=0)
    return model


def test_every_sum_is_right(task):
    which = torch.arange(10_000)
    for prompt, answer in zip(task.text(task.prompt(which)), task.text(task.answer(which)), strict=True):
        first, second = prompt.rstrip("=").split("+")
        assert answer.rstrip("$") == str(int(first) + int(second))
        assert answer.endswith("$")


def test_three_digits_reversed():
    task = Addition(3, order="reversed", seed=0)
    which = torch.tensor([999_001, 5_007])
    assert task.text(task.prompt(which)) == ["999+001=", "005+007="]
    assert task.text(task.answer(which)) == ["0001$", "2100$"]
    assert task.max_length == 5


def test_held_out_prompts_are_never_trained_on(task):
    both = torch.cat([task.train, task.held_out])
    assert both.unique().numel() == 10_000
    assert not torch.equal(Addition(seed=1).held_out, task.held_out)


def test_a_noisy_answer_differs_in_at_most_one_digit(task):
    which = torch.arange(4_000)
    clean, noisy = task.answer(which), task.noisy_answer(which, probability=0.5, seed=0)
    changed = (clean != noisy).sum(1)
    assert changed.max() == 1
    # Half are touched, a tenth of these come out right.
    assert changed.float().mean() == pytest.approx(0.45, abs=0.03)
    assert torch.equal(completion_mask(clean), completion_mask(noisy))


def test_reward_wants_the_whole_sum_and_its_end(task):
    which = torch.tensor([1213])  # 12 + 13
    for text, reward in (("25$$", 1.0), ("25", 0.0), ("025$", 0.0), ("2$$$", 0.0), ("255$", 0.0)):
        tokens = torch.tensor([[CHARACTERS.index(c) for c in text.ljust(4, "0")]])
        assert task.reward(which, tokens).item() == reward


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"digits": 5}, "must be 1, 2, 3 or 4"),
        ({"order": "backwards"}, "Use 'usual' or 'reversed'"),
        ({"prompts": 500}, "some must be left"),
        ({"prompts": 20_000}, "there are 10000 prompts"),
    ],
)
def test_impossible_tasks(options, words):
    with pytest.raises(DataError, match=words):
        Addition(**options)


def test_sizes_of_the_decoders():
    assert weights_of(small_decoder(seed=0)) == 60_213
    assert weights_of(large_decoder(seed=0)) == 235_613
    with pytest.raises(DataError, match="not divisible"):
        Decoder(10, heads=4)


def test_log_probabilities_of_sampling_are_those_of_one_forward(task):
    model, which = small_decoder(seed=0), task.train[:5]
    rollouts = model.sample(task.prompt(which), group=6, max_length=4, seed=0)
    owner = torch.arange(5).repeat_interleave(6)
    again = model.logp(task.prompt(which), rollouts.tokens, rollouts.mask, owner=owner)
    plain = model.logp(task.prompt(which)[owner], rollouts.tokens, rollouts.mask)
    assert torch.allclose(again, rollouts.logp, atol=1e-5)
    assert torch.allclose(again, plain, atol=1e-5)
    assert (rollouts.logp[~rollouts.mask] == 0).all()


def test_the_future_has_no_influence(task):
    model, which = small_decoder(seed=0), task.train[:3]
    answers = task.answer(which)
    changed = answers.clone()
    changed[:, 2:] = 7
    before, after = (model.logits(task.prompt(which), tokens) for tokens in (answers, changed))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_equal_completions_are_computed_once_with_the_same_gradient(task):
    model, prompts = small_decoder(seed=0), task.prompt(task.train[:2])
    tokens = task.answer(task.train[:2]).repeat_interleave(3, 0)
    mask, owner = completion_mask(tokens), torch.arange(2).repeat_interleave(3)
    weight = torch.arange(6.0)[:, None]
    gradients = []
    for logp in (model.logp(prompts, tokens, mask, owner=owner), model.logp(prompts[owner], tokens, mask)):
        model.zero_grad()
        (logp * weight).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_exact_accuracies_are_those_of_samples(digit, warmed):
    which = torch.arange(100)
    drawn = warmed.sample(digit.prompt(which), group=100, max_length=3, seed=0)
    reward = digit.reward(which.repeat_interleave(100), drawn.tokens)
    exact = sampled_accuracy(warmed, digit, which=which)
    assert 0.05 < exact < 0.9
    assert float(reward.mean()) == pytest.approx(exact, abs=0.02)
    greedy = warmed.sample(digit.prompt(which), group=1, max_length=3, greedy=True)
    right = float(digit.reward(which, greedy.tokens).mean())
    assert right > 0.05
    assert greedy_accuracy(warmed, digit, which=which) == pytest.approx(right, abs=1e-6)


def test_warm_up_gives_up(task):
    with pytest.raises(Diverged, match="Give more steps"):
        warm_up(small_decoder(seed=0), task, until=0.9, every=2, most=4, seed=0)


def test_a_hint_is_written_by_the_large_model(task):
    prompts = task.prompt(task.train[:2])
    hint = torch.tensor([[3], [4], [5], [12]])
    rollouts = small_decoder(seed=0).sample(prompts, group=2, max_length=4, start=hint, seed=0)
    assert rollouts.tokens[:, 0].tolist() == [3, 4, 5, 12]
    # A hint that ends is a finished rollout.
    assert rollouts.mask[3].tolist() == [True, False, False, False]


def test_without_distillation_and_selection_the_small_policy_is_grpo(digit, warmed):
    """Hybrid with alpha 0 and M = G trains the small policy as GRPO does, and a copy as large one alike."""
    alone, small, large = (copy.deepcopy(warmed) for _ in range(3))
    train(alone, digit, recipe=RECIPES["grpo"], steps=4, seed=3)
    train(small, digit, recipe=RECIPES["neither"], large=large, steps=4, seed=3)
    assert all(map(torch.equal, alone.parameters(), small.parameters()))
    for one, other in zip(small.parameters(), large.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(alone.parameters(), warmed.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_trains_what_it_should(task, name):
    small, large = small_decoder(seed=0), large_decoder(seed=1)
    before = [copy.deepcopy(model.state_dict()) for model in (small, large)]
    learning = train(small, task, recipe=RECIPES[name], large=large, steps=2, seed=0)
    assert learning.steps == 2
    assert learning.generated > 0
    moved = [
        any(not torch.equal(value, old[key]) for key, value in model.state_dict().items())
        for model, old in zip((small, large), before, strict=True)
    ]
    if RECIPES[name].alpha > 0:  # without a right rollout the plain reward moves nothing
        assert moved[0]
        assert len(learning.log_weight) == 2
    if name == "kdrl":
        assert not moved[1]


def test_work_is_counted_by_tokens(task):
    small, seen = small_decoder(seed=0), []
    recipe = dataclasses.replace(RECIPES["grpo"], prompts=4)
    learning = train(
        small,
        task,
        recipe=recipe,
        steps=1,
        seed=0,
        callback=lambda step, so_far: seen.append((step, so_far.steps)),
    )
    tokens = learning.generated / (2 * 60_213)
    assert tokens == int(tokens)
    assert 32 <= tokens <= 128
    assert learning.updated == pytest.approx(3 * learning.generated)
    assert learning.scored == 0
    assert seen == [(1, 1)]


def test_same_seed_same_training(task):
    runs = []
    for seed in (0, 0, 1):
        small, large = small_decoder(seed=0), large_decoder(seed=1)
        train(small, task, recipe=Recipe(), large=large, steps=2, seed=seed)
        runs.append(torch.cat([p.detach().flatten() for p in (*small.parameters(), *large.parameters())]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_recipes_that_cannot_be(task):
    with pytest.raises(DataError, match="distils from a large policy"):
        train(small_decoder(seed=0), task, recipe=Recipe())
    with pytest.raises(DataError, match="needs ratio_cap"):
        Recipe(large_ratio="truncated")


@pytest.mark.parametrize("structure", [LowRank, Blast])
def test_a_copy_that_keeps_everything_is_the_model(task, structure):
    large = large_decoder(seed=0)
    small = compressed(
        large, structure=structure, **({"rank": 80} if structure is LowRank else {"keep": 1.0})
    )
    found = closeness(small, large, task, rows=200)
    if structure is LowRank:
        assert found.kl == pytest.approx(0, abs=1e-5)
        assert found.ess == pytest.approx(1, abs=1e-4)
    assert weights_of(compressed(large, rank=12)) == 51_293


def test_healing_brings_a_copy_nearer_and_counts_fresh_samples(digit, warmed):
    small = compressed(warmed, rank=4)
    before = closeness(small, warmed, digit, rows=1000).kl
    all_fresh = heal(copy.deepcopy(small), warmed, digit, steps=6)
    reused = heal(small, warmed, digit, steps=6, fresh=2)
    assert reused == pytest.approx(all_fresh / 3, rel=0.1)
    assert closeness(small, warmed, digit, rows=1000).kl < before
    cheap = heal(copy.deepcopy(small), warmed, digit, steps=6, fresh=2, writer="small")
    assert cheap < 0.7 * reused
    with pytest.raises(DataError, match="between 1 and"):
        heal(small, warmed, digit, steps=4, fresh=5)


def test_second_moments_make_a_nearer_copy(digit, warmed):
    plain, weighted = (compressed(warmed, rank=8, task=given) for given in (None, digit))
    far, near = (closeness(model, warmed, digit, rows=1000).kl for model in (plain, weighted))
    assert near < far


def test_alpha_falls_linearly_from_its_full_value(digit, warmed):
    after = []
    for steps in (1, 3):
        for recipe in (Recipe(), Recipe(alpha_schedule="linear")):
            small, large = copy.deepcopy(warmed), large_decoder(seed=1)
            train(small, digit, recipe=recipe, large=large, steps=steps, seed=0)
            after.append(torch.cat([p.detach().flatten() for p in small.parameters()]))
    assert torch.equal(after[0], after[1])
    assert not torch.equal(after[2], after[3])


def test_alpha_falls_with_the_divergence_and_never_rises():
    from lowdim.policy.arithmetic.train import _Anneal

    anneal, seen = _Anneal(Recipe(alpha=2.0, alpha_schedule="closeness")), []
    found = []
    for divergence in (1.0, 0.5, 0.5, 9.0):
        seen.append(torch.full((8,), -divergence))
        found.append(anneal(0.5, seen))
    # A moving average with weight 0.1 of the newest: 1, .95, .905, 1.7145.
    assert found == pytest.approx([2.0, 1.9, 1.81, 2.0])


def test_rows_of_the_large_policy(digit, warmed):
    work, after = {}, {}
    for rows in ("kept", "reward", "all"):
        small, large = copy.deepcopy(warmed), copy.deepcopy(warmed)
        learning = train(small, digit, recipe=Recipe(large_rows=rows), large=large, steps=1, seed=0)
        work[rows] = learning.updated
        after[rows] = torch.cat([p.detach().flatten() for p in large.parameters()])
    # Both models are as large: 8 + 14 rows of a prompt instead of 8 + 8.
    assert work["all"] / work["kept"] == pytest.approx(22 / 16, rel=0.05)
    assert not torch.equal(after["kept"], after["reward"])
    assert not torch.equal(after["kept"], after["all"])


def test_truncated_ratios_move_the_large_policy_where_clipped_ones_do_not():
    """Where the large policy already finds right rollouts 1.2 times likelier, clipping takes the gradient."""
    from lowdim.policy.surrogate import clipped_surrogate, truncated_surrogate

    logp = torch.log(torch.tensor([[0.8], [0.1]])).requires_grad_()
    old, A, mask = torch.log(torch.tensor([[0.5], [0.3]])), torch.tensor([0.5, -0.5]), torch.ones(2, 1)
    clipped, _ = clipped_surrogate(logp, old, A, mask, max_length=1)
    truncated, _ = truncated_surrogate(logp, old, A, mask, max_length=1, cap=2.0)
    assert torch.autograd.grad(clipped, logp, retain_graph=True)[0].tolist() == [[0.0], [0.0]]
    found = torch.autograd.grad(truncated, logp)[0]
    assert torch.allclose(found, torch.tensor([[-0.4], [1 / 12]]))
