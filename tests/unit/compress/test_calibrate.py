import warnings

import pytest
import torch
from torch import nn

from lowdim.compress import calibrate
from lowdim.compress.calibrate import execution_groups, second_moments
from lowdim.errors import DataError, LowdimWarning

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")


class Attention(nn.Module):
    """Query and key read one input; the output layer reads another."""

    def __init__(self, n=4, vocabulary=20):
        super().__init__()
        self.table = nn.Embedding(vocabulary, n)
        self.q, self.k, self.out = nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, n)

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids)
        return self.out(torch.tanh(self.q(x) * self.k(x)))


def token_batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size, length in [(3, 5), (2, 7), (4, 2)]:
        ids = torch.randint(0, 20, (size, length), generator=generator)
        lengths = torch.randint(1, length + 1, (size,), generator=generator)
        found.append({"input_ids": ids, "attention_mask": (torch.arange(length) < lengths[:, None]).long()})
    return found


def by_hand(model, found, layer):
    """Mean of x x^T over the tokens that count, in float64, one token at a time."""
    total, count = 0, 0
    for batch in found:
        x = model.table(batch["input_ids"])
        if layer == "out":
            x = torch.tanh(model.q(x) * model.k(x))
        for row, mask in zip(x.double(), batch["attention_mask"], strict=True):
            for token, counts in zip(row, mask, strict=True):
                if counts:
                    total, count = total + torch.outer(token, token), count + 1
    return (total / count).detach()


def test_moments_equal_the_sum_by_hand_without_padding():
    torch.manual_seed(0)
    model, found = Attention(), token_batches()
    moments = second_moments(model, found, ["q", "k", "out"])
    for layer in ("q", "k", "out"):
        torch.testing.assert_close(
            moments.of(layer).double(), by_hand(model, found, layer), atol=1e-6, rtol=1e-5
        )
    assert moments.of("q").dtype == torch.float32
    assert moments.tokens == sum(int(b["attention_mask"].sum()) for b in found)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    model, found = Attention(), token_batches()
    longer = [{k: nn.functional.pad(v, (0, 3), value=0) for k, v in batch.items()} for batch in found]
    one, two = (second_moments(model, b, ["out"]).of("out") for b in (found, longer))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_a_shared_input_is_summed_and_stored_once():
    model = Attention()
    moments = second_moments(model, token_batches(), ["out", "k", "q"])
    assert moments.of("q") is moments.of("k")
    assert set(moments.matrices) == {"q", "out"}
    assert execution_groups(model, token_batches()[0], ["out", "k", "q"]) == [("q", "k"), ("out",)]


def test_layers_that_stop_sharing_are_told_apart():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.a(x) + self.b(x if x[0, 0] > 0 else 2 * x)

    model, found = Moody(), [torch.ones(4, 2), -torch.ones(4, 2)]
    moments = second_moments(model, found, ["a", "b"])
    torch.testing.assert_close(moments.of("a"), torch.ones(2, 2))
    torch.testing.assert_close(moments.of("b"), 2.5 * torch.ones(2, 2))


def test_a_layer_used_twice_sees_both_inputs():
    layer = nn.Linear(2, 2, bias=False)
    nn.init.eye_(layer.weight)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    expected = (x.T @ x + x.tanh().T @ x.tanh()) / 32
    torch.testing.assert_close(second_moments(model, [x], ["0"]).of("0"), expected)


def test_conv1d_linear_and_other_inputs():
    transformers = pytest.importorskip("transformers")
    model = nn.Sequential(transformers.pytorch_utils.Conv1D(6, 3), nn.Linear(6, 2))
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    moments = second_moments(model, [(x,)], ["0", "1"])
    flat = x.reshape(-1, 3)
    torch.testing.assert_close(moments.of("0"), flat.T @ flat / 20)
    assert moments.of("1").shape == (6, 6)
    again = second_moments(model, [{"input": x}], ["0", "1"])
    torch.testing.assert_close(again.of("1"), moments.of("1"))


def test_activations_flattened_to_tokens_follow_the_mask():
    class Flat(Attention):
        def forward(self, input_ids, attention_mask):
            return self.out(self.table(input_ids).reshape(-1, 4))

    torch.manual_seed(0)
    model, found = Flat(), token_batches()
    plain = by_hand(model, found, "q")
    torch.testing.assert_close(
        second_moments(model, found, ["out"]).of("out").double(), plain, atol=1e-6, rtol=1e-5
    )


def test_several_passes_give_the_same_numbers():
    torch.manual_seed(0)
    model, found, calls = Attention(), token_batches(), []
    whole = second_moments(model, found, ["q", "k", "out"])
    parts = second_moments(
        model, found, ["q", "k", "out"], max_bytes=8 * 16, progress=lambda *done: calls.append(done)
    )
    assert calls == [(i, 6) for i in range(1, 7)]
    for layer in ("q", "k", "out"):
        assert torch.equal(whole.of(layer), parts.of(layer))


def test_many_batches_lose_no_digits():
    # In float32 alone a running sum of 1e8 stops growing by ones.
    model = nn.Linear(1, 1)
    found = [torch.full((1, 1), 1e4), *[torch.ones(1, 1)] * 1000]
    H = second_moments(model, found, [""]).of("")
    assert float(H) == pytest.approx((1e8 + 1000) / 1001, rel=1e-7)


def test_modes_and_hooks_are_left_as_found():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    model[2].eval()
    model.train(True)
    model[2].training = False
    one = second_moments(model, [torch.ones(4, 2)], ["2"]).of("2")
    two = second_moments(model, [torch.ones(4, 2)], ["2"]).of("2")
    assert torch.equal(one, two)  # no dropout
    assert model[1].training
    assert not model[2].training
    assert not model[0]._forward_pre_hooks


def test_half_precision_models_are_summed_in_float32():
    model = nn.Linear(2, 2).to(torch.bfloat16)
    x = torch.tensor([[1.0, 2.0]]).to(torch.bfloat16).repeat(300, 1)
    H = second_moments(model, [x], [""]).of("")
    torch.testing.assert_close(H, torch.tensor([[1.0, 2.0], [2.0, 4.0]]))


def test_cross_moments_lead_to_the_best_matrix_for_the_changed_inputs():
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False))
    changed = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False))
    changed[0].weight.data = original[0].weight + 0.3 * torch.randn(6, 6)
    found = [torch.randn(50, 6) for _ in range(4)]
    A = original[1].weight.detach()
    moments = second_moments(changed, found, ["1"], original=original)
    best = moments.target("1", A, ridge=1e-9)
    x = torch.cat([changed[0](f) for f in found]).detach()
    y = torch.cat([original(f) for f in found]).detach()
    expected = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(best, expected, atol=1e-4, rtol=1e-4)
    same = second_moments(original, found, ["1"], original=original)
    torch.testing.assert_close(same.target("1", A), A, atol=1e-5, rtol=1e-5)
    with pytest.raises(DataError, match=r"no cross moments of '1'"):
        second_moments(original, found, ["1"]).target("1", A)


def test_few_tokens_warn_with_the_number_needed():
    with pytest.warns(LowdimWarning, match=r"3 tokens for '' with 4 inputs.*at least 8 tokens"):
        second_moments(nn.Linear(4, 2), [torch.ones(3, 4)], [""])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second_moments(nn.Linear(4, 2), [torch.ones(8, 4)], [""])


def test_bad_input_is_named():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(DataError, match="there is no batch"):
        second_moments(Skips(), [], ["used"])
    with pytest.raises(DataError, match=r"layer 'idle' does not run.*exclude="):
        second_moments(Skips(), [torch.ones(1, 2)], ["used", "idle"])
    with pytest.raises(DataError, match="no layer 'absent'"):
        second_moments(Skips(), [torch.ones(1, 2)], ["absent"])
    with pytest.raises(DataError, match="input of layer 'used' is not finite"):
        second_moments(Skips(), [torch.full((1, 2), float("nan"))], ["used"])
    moments = second_moments(Skips(), [torch.ones(4, 2)], ["used"])
    with pytest.raises(DataError, match="'idle' was not calibrated"):
        moments.of("idle")


@pytest.mark.parametrize("capacity", [1, 7, 1000])
def test_tokens_are_gathered_without_a_trace(capacity, monkeypatch):
    monkeypatch.setattr(calibrate, "_GATHERED", capacity)
    monkeypatch.setattr(calibrate, "_STRIP", 16)
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(90, 300, generator=generator, dtype=torch.float64) for _ in range(2))
    total = calibrate._Sum(300)
    for start, stop in ((0, 1), (1, 1), (1, 60), (60, 90)):
        total.add(x[start:stop], z[start:stop])
    total.close()
    torch.testing.assert_close(total.H, x.T @ x)
    torch.testing.assert_close(total.C, z.T @ x)
    assert total.count == 90
