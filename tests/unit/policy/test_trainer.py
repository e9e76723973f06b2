"""The trainer of two policies: resuming, padding, hints, adapters, baselines, what it writes down."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::lowdim.errors.LowdimWarning", "ignore::UserWarning"
)


@pytest.mark.parametrize(
    "changes",
    [
        {"hint_tokens": 2, "hint_ratio": "small", "lr_scheduler_type": "cosine"},
        {"hint_tokens": 2, "hint_ratio": "large", "num_iterations": 2, "save_steps": 3},
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, changes):
    saved = {"save_strategy": "steps", "save_steps": 3, "hint_epochs": 0.2} | changes
    whole = tiny.trainer(tmp_path / "whole", **saved)
    whole.train()
    assert whole.state.log_history[0]["hybrid/ess_rows"] == 28
    resumed = tiny.trainer(tmp_path / "resumed", **saved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert tiny.distance(whole.model, resumed.model) == 0.0
    assert tiny.distance(whole.large, resumed.large) == 0.0
    counted = [t.ledger.table().drop(columns=["seconds", "share"]) for t in (whole, resumed)]
    assert counted[0].equals(counted[1])
    assert whole.guards.state_dict() == resumed.guards.state_dict()


class Capturing(tiny.HybridGRPOTrainer):
    """Keeps every slice of rollouts."""

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training:
            self.slices = [*getattr(self, "slices", []), inputs]
        return inputs


@pytest.fixture
def capturing(monkeypatch):
    monkeypatch.setattr(tiny, "HybridGRPOTrainer", Capturing)


def padded(batch, *, left=0, right=0):
    """The same rollouts with more padding."""
    changed = dict(batch)
    for name, value in batch.items():
        if torch.is_tensor(value) and value.dim() == 2:
            before = left if name.startswith("prompt") else 0
            after = 0 if name.startswith("prompt") else right
            changed[name] = torch.nn.functional.pad(value, (before, after))
    return changed


def test_losses_know_nothing_of_padding_and_order(tmp_path, capturing):
    trainer = tiny.trainer(tmp_path, max_steps=2, num_iterations=2, kd_place="loss", kd_estimator="k2")
    trainer.train()
    batch = trainer.slices[1]
    assert "old_per_token_logps" in batch
    assert batch["completion_ids"].shape[0] == 16
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = {k: v[order] if torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}
    losses = [
        [float(trainer._compute_loss(trainer.model, b)), float(trainer._large_loss(b))]
        for b in (batch, padded(batch, right=10), padded(batch, left=10), shuffled)
    ]
    assert min(map(abs, losses[0])) > 1e-3
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"alpha": 1.0}, 0.9),
        ({"alpha": 0.3, "kd_place": "loss", "kd_estimator": "k2"}, 0.9),
    ],
)
def test_without_rewards_distillation_brings_the_policies_together(tmp_path, changes, bound):
    large = tiny.network(24, seed=1)
    large.lm_head.weight.data *= 20  # a policy with opinions
    trainer = tiny.trainer(
        tmp_path,
        large=large,
        reward_funcs=lambda completions, **_: [1.0] * len(completions),
        train_large=False,
        max_steps=9,
        learning_rate=3e-2,
        **changes,
    )
    trainer.train()
    kl = [row["hybrid/kl_per_token"] for row in trainer.state.log_history if "hybrid/kl_per_token" in row]
    assert sum(kl[-3:]) < bound * sum(kl[:3])


def writes_only(character):
    """A large model that writes nothing else."""
    model = tiny.network(24, seed=1)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.full((len(tiny.CHARACTERS),), -30.0))
    model.lm_head.bias.data[tiny.CHARACTERS.index(character)] = 0.0
    return model


@pytest.mark.parametrize("ratio", ["large", "ignore"])
def test_hints_of_the_first_epochs(tmp_path, capturing, ratio):
    written = []

    def watched(completions, **_):
        written.append(completions)
        return [float(len(text) % 3) for text in completions]

    trainer = tiny.trainer(
        tmp_path,
        large=writes_only("7"),
        reward_funcs=watched,
        hint_tokens=2,
        hint_epochs=2 / 64,
        hint_ratio=ratio,
        max_steps=2,
        num_iterations=1,
        alpha=0.0,
        large_learning_rate=0.0,
        per_device_train_batch_size=28,
    )
    trainer.train()
    assert all(text.startswith("77") for text in written[0])
    assert not all(text.startswith("77") for text in written[1])
    assert max(map(len, written[0])) <= 5
    assert max(map(len, written[1])) <= 5
    hinted, plain = trainer.slices
    old, large = hinted["sampling_logps"], hinted["large_logps"]
    assert torch.equal(old[:, :2], large[:, :2]) == (ratio == "large")
    assert ("old_per_token_logps" in hinted) == (ratio == "large")
    assert ("tool_mask" in hinted) == (ratio == "ignore")
    if ratio == "ignore":
        assert not hinted["tool_mask"][:, :2].any()
        assert torch.equal(hinted["tool_mask"][:, 2:], hinted["completion_mask"][:, 2:])
    assert "tool_mask" not in plain
    assert "old_per_token_logps" not in plain
    table = trainer.ledger.table().set_index("phase")
    assert table.loc["hint", "completion_tokens"] == 2 * 28
    lengths = sum(len(text) for batch in written for text in batch)
    ends = table.loc["generate", "completion_tokens"] + 2 * 28 - lengths
    assert 0 <= ends <= 56  # the end of a rollout is a token that is not seen


def test_a_hint_that_ends_is_the_whole_rollout(tmp_path):
    large, written = writes_only("$"), []

    def watched(completion_ids, **_):
        written.extend(completion_ids)
        return [0.0] * len(completion_ids)

    tiny.trainer(tmp_path, large=large, reward_funcs=watched, hint_tokens=2, max_steps=1).train()
    assert written == [[1]] * 28
