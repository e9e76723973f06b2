"""Rows without advantage leave a batch; what is left weighs what it weighed."""

import pytest
import torch

from lowdim.errors import DataError, ShapeError
from lowdim.policy.compaction import compact, obstacle


def batch(advantages, *, prompts, completions, width=6):
    """Rows with prompts and completions of the given lengths, padded to `width` on their sides."""
    place = torch.arange(width)
    prompt_mask = (place >= width - torch.tensor(prompts)[:, None]).long()
    completion_mask = (place < torch.tensor(completions)[:, None]).long()
    rows = torch.arange(len(prompts))[:, None]
    return {
        "prompt_ids": 100 * (rows + 1) + place,
        "prompt_mask": prompt_mask,
        "completion_ids": 1000 * (rows + 1) + place,
        "completion_mask": completion_mask,
        "old_per_token_logps": rows + 0.1 * place,
        "advantages": torch.tensor(advantages),
        "rows": rows.flatten(),
        "num_items_in_batch": torch.tensor(99),
        "nothing": None,
    }


def test_rows_leave_and_padding_goes():
    given = batch([0.0, 2.0, 1e-7, -4.0], prompts=[6, 2, 5, 3], completions=[6, 3, 5, 2])
    (kept,), found = compact([given], loss_type="dapo")
    assert kept["rows"].tolist() == [1, 3]  # of equal length, in their order
    assert kept["prompt_ids"].tolist() == [[203, 204, 205], [403, 404, 405]]
    assert kept["prompt_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert kept["completion_ids"].tolist() == [[2000, 2001, 2002], [4000, 4001, 4002]]
    assert kept["old_per_token_logps"].shape == (2, 3)
    assert kept["advantages"].tolist() == [2.0, -4.0]
    assert kept["num_items_in_batch"] == 99
    assert kept["nothing"] is None
    assert (found.rows, found.kept, found.positions, found.kept_positions) == (4, 2, 48, 12)
    assert found.share == 0.5


def test_prompts_keep_their_padding_where_positions_are_absolute():
    given = batch([1.0, 0.0], prompts=[2, 6], completions=[3, 6])
    (kept,), _ = compact([given], loss_type="dapo", trim_prompts=False)
    assert kept["prompt_ids"].shape == (1, 6)
    assert kept["completion_ids"].shape == (1, 3)


@pytest.mark.parametrize(
    ("loss_type", "factor"), [("grpo", 2 / 4), ("dr_grpo", 2 / 4), ("luspo", 2 / 4), ("bnpo", 5 / 16)]
)
def test_the_old_weight_is_in_the_advantage(loss_type, factor):
    given = batch([0.0, 2.0, 0.0, -4.0], prompts=[6, 2, 5, 3], completions=[6, 3, 5, 2])
    (kept,), _ = compact([given], loss_type=loss_type)
    assert kept["advantages"].tolist() == pytest.approx([2.0 * factor, -4.0 * factor])


def test_rollouts_that_were_not_made_weigh_as_if_they_were():
    given = batch([1.0, 0.0], prompts=[2, 2], completions=[3, 0])
    given["nominal_tokens"] = torch.tensor([3.0, 3.0])
    (kept,), _ = compact([given], loss_type="bnpo")
    assert kept["advantages"].tolist() == [0.5]


def test_a_window_sorts_by_length_and_deals_evenly():
    first = batch([1.0, 1.0, 0.0], prompts=[6, 1, 3], completions=[6, 1, 3])
    second = batch([0.0, 1.0, 1.0], prompts=[6, 2, 5], completions=[6, 2, 5])
    second["rows"] = second["rows"] + 3
    batches, _ = compact([first, second], loss_type="grpo", window=2)
    assert [each["rows"].tolist() for each in batches] == [[1, 4], [5, 0]]
    assert [each["prompt_ids"].shape[1] for each in batches] == [2, 6]
    apart, _ = compact([first, second], loss_type="grpo", window=1)
    assert [each["rows"].tolist() for each in apart] == [[1, 0], [4, 5]]


def test_an_empty_micro_batch_gets_the_shortest_row_without_advantage():
    given = batch([0.0, 1e-7, 0.0], prompts=[6, 2, 1], completions=[6, 2, 0])
    (kept,), found = compact([given], loss_type="grpo")
    assert kept["rows"].tolist() == [1]  # the shorter one has no token to compute with
    assert kept["advantages"].tolist() == [0.0]
    assert found.kept == 0


def test_processes_agree_on_rows():
    given = batch([0.0, 2.0, 0.0, -4.0], prompts=[6, 2, 5, 3], completions=[6, 3, 5, 2])
    (kept,), found = compact([given], loss_type="grpo", agree=lambda sizes: [size + 1 for size in sizes])
    assert kept["rows"].tolist() == [1, 3, 2]
    assert kept["advantages"].tolist() == [1.5, -3.0, 0.0]
    assert found.kept == 2


def test_truncated_rows_without_counted_tokens_leave_too():
    given = batch([1.0, 1.0], prompts=[2, 2], completions=[3, 0])
    (kept,), _ = compact([given], loss_type="grpo")
    assert kept["rows"].tolist() == [0]


def test_advantages_by_token():
    given = batch([0.0, 0.0], prompts=[2, 2], completions=[3, 2])
    given["advantages"] = torch.zeros(2, 6)
    given["advantages"][1, 1] = 3.0
    given["advantages"][0, 4] = 3.0  # beyond its completion
    (kept,), _ = compact([given], loss_type="grpo")
    assert kept["advantages"].tolist() == [[0.0, 1.5]]


def test_refusals():
    given = batch([1.0], prompts=[2], completions=[3])
    with pytest.raises(DataError, match="loss_type='ppo'"):
        compact([given], loss_type="ppo")
    with pytest.raises(ShapeError, match="no windows of 2"):
        compact([given], loss_type="grpo", window=2)
    with pytest.raises(ShapeError, match="'pixel_values'"):
        compact([given | {"pixel_values": torch.ones(5, 3)}], loss_type="grpo")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"beta": 0.1}, "beta=0.1"),
        ({"entropy_bonus": True}, "entropy bonus"),
        ({"auxiliary_loss": True}, "experts"),
        ({"entropy_quantile": 0.2}, "top_entropy_quantile=0.2"),
        ({"images": True}, "images"),
    ],
)
def test_what_stands_in_the_way_is_named(setting, said):
    assert said in obstacle(**setting)
