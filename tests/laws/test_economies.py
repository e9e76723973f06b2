"""Compaction keeps the gradient of every loss; staging never stops a group that showed a fault."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.policy.compaction import compact
from lowdim.policy.stages import StagedRollouts

WIDTH, VOCABULARY = 5, 7


def loss(weight, batch, loss_type, accumulate):
    """The losses of TRL's trainer, at a ratio away from one, with a table of logits for a model."""
    prompt = (batch["prompt_ids"] * batch["prompt_mask"]).sum(-1, keepdim=True)
    ids, mask = batch["completion_ids"], batch["completion_mask"]
    logp = weight[(prompt + ids) % VOCABULARY].log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    ratio = torch.exp(logp - batch["old_per_token_logps"])
    A = batch["advantages"][:, None]
    if loss_type == "cispo":
        each = -ratio.clamp(max=1.2).detach() * A * logp
    elif loss_type == "sapo":
        temperature = torch.where(A > 0, 1.0, 1.05)
        each = -torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * A
    else:
        each = -torch.minimum(ratio * A, ratio.clamp(0.8, 1.2) * A)
    if loss_type in ("grpo", "sapo"):
        return ((each * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean() / accumulate
    if loss_type == "bnpo":
        return (each * mask).sum() / mask.sum().clamp(min=1) / accumulate
    if loss_type == "dr_grpo":
        return (each * mask).sum() / (len(mask) * WIDTH) / accumulate
    if loss_type == "luspo":
        return (each * mask).sum(-1).mean() / accumulate
    return (each * mask).sum() / batch["num_items_in_batch"]


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "grpo", "sapo", "luspo", "dr_grpo", "bnpo"])
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 5),
    slices=st.integers(1, 4),
    flat=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    whole=st.booleans(),
    others=st.integers(0, 4),
)
def test_the_gradient_stays(loss_type, seed, rows, slices, flat, whole, others):
    source = torch.Generator().manual_seed(seed)

    def integers(high, *shape):
        return torch.randint(high, shape, generator=source)

    def normal(*shape):
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    place = torch.arange(WIDTH)
    batches = [
        {
            "prompt_ids": integers(50, rows, WIDTH),
            "prompt_mask": (place >= integers(WIDTH, rows)[:, None]).long(),
            "completion_ids": integers(VOCABULARY, rows, WIDTH),
            "completion_mask": (place < integers(WIDTH + 1, rows)[:, None]).long(),
            "old_per_token_logps": -2 + 0.3 * normal(rows, WIDTH),
            "advantages": normal(rows) * (torch.rand(rows, generator=source) >= flat),
            "num_items_in_batch": torch.tensor(40.0),
        }
        for _ in range(slices)
    ]
    compacted, found = compact(
        batches,
        loss_type=loss_type,
        window=slices if whole else 1,
        agree=lambda sizes: [max(size, min(others, rows)) for size in sizes],
    )
    assert len(compacted) == slices
    assert all(len(batch["prompt_ids"]) for batch in compacted)
    assert found.kept_positions <= found.positions
    weight = normal(VOCABULARY, VOCABULARY).requires_grad_()
    gradients = [
        torch.autograd.grad(sum(loss(weight, batch, loss_type, slices) for batch in several), weight)[0]
        for several in (batches, compacted)
    ]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    local=st.integers(1, 6),
    processes=st.integers(1, 3),
    first=st.integers(1, 3),
    share=st.sampled_from([0.3, 0.8, 1.0]),
)
def test_decisions(seed, local, processes, first, share):
    source = torch.Generator().manual_seed(seed)
    prompts = local * processes
    rewards = (torch.rand(prompts, first, generator=source) < share).float()
    rewards[torch.rand(prompts, first, generator=source) < 0.1] = torch.nan
    stages = StagedRollouts(first=first, group=5, audit=0.1, seed=seed)
    decision = stages.decide(rewards, keys=range(prompts), processes=processes)
    assert not (~decision.expand & ~(rewards == 1).all(-1)).any()  # whoever stops has no fault
    assert torch.equal(decision.audited, decision.expand & decision.solved)
    counts = decision.expand.view(processes, local).sum(-1)
    assert (counts == counts[0]).all()  # and every process generates equally much
    if processes == 1:
        again = StagedRollouts(first=first, group=5, audit=0.0).decide(rewards, keys=range(prompts))
        assert (again.expand <= decision.expand).all()
