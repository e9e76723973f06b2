"""Linear attention and the transformer: what they compute, see, and refuse; adapters by peft."""

import pytest
import torch

from lowdim.errors import DataError, RankError, ShapeError
from lowdim.incontext import LinearAttention, PromptTransformer, SubspaceTasks, sample_moments

TASKS = SubspaceTasks(4, r=1, noise=0.1, seed=0, dtype=torch.float32)
PROMPT = TASKS.sample(3, n=6, seed=0)


def small(**options):
    return PromptTransformer(
        4, **{"n_positions": 8, "n_layer": 2, "n_head": 2, "n_embd": 8, "seed": 0, **options}
    )


def test_merged_attention_is_a_bilinear_form_of_the_moment():
    model = LinearAttention(4)
    model.W.data.normal_(generator=torch.Generator().manual_seed(0))
    moment = torch.einsum("bnd,bn->bd", PROMPT.X, PROMPT.y) / 6
    wanted = torch.einsum("bd,de,be->b", PROMPT.xq, model.W, moment)
    torch.testing.assert_close(model(PROMPT.X, PROMPT.y, PROMPT.xq), wanted)
    torch.testing.assert_close(model.loss(PROMPT), (wanted - PROMPT.yq).square().mean())
    assert torch.equal(model.errors(PROMPT), (wanted - PROMPT.yq).square()[:, None])


def test_attention_in_parts_is_the_attention_of_its_definition():
    model = LinearAttention(4, merged=False, seed=0)
    Z = torch.cat([PROMPT.X, PROMPT.y[..., None]], -1)
    query = torch.cat([PROMPT.xq, torch.zeros(3, 1)], -1)
    wanted = []
    for z, q in zip(Z, query, strict=True):
        scores = (z @ model.W_K.T) @ (model.W_Q @ q)
        wanted.append(model.p @ ((z @ model.W_V.T).T @ scores) / 6)
    torch.testing.assert_close(model(PROMPT.X, PROMPT.y, PROMPT.xq), torch.stack(wanted))


def test_effective_weights_are_the_part_that_couples_inputs_with_labels():
    model = LinearAttention(4, merged=False, seed=1)
    # Of a prompt and its mirror (labels with the other sign) the difference is twice what is odd in y.
    plus, minus = (model(PROMPT.X, sign * PROMPT.y, PROMPT.xq) for sign in (1, -1))
    moment = torch.einsum("bnd,bn->bd", PROMPT.X, PROMPT.y) / 6
    torch.testing.assert_close((plus - minus) / 2, model.predict(moment, PROMPT.xq))


def test_parts_start_small_and_merged_weights_at_zero():
    assert not LinearAttention(3).W.any()
    parts = LinearAttention(3, merged=False, seed=0)
    assert all(0 < weight.abs().max() < 2 for weight in parts.parameters())
    again = LinearAttention(3, merged=False, seed=0)
    assert all(map(torch.equal, parts.parameters(), again.parameters()))


def test_attention_refuses():
    with pytest.raises(DataError, match="d=0"):
        LinearAttention(0)
    with pytest.raises(DataError, match="saddle"):
        LinearAttention(2, merged=False, scale=0)
    with pytest.raises(ShapeError, match="do not fit"):
        LinearAttention(5)(PROMPT.X, PROMPT.y, PROMPT.xq)
    with pytest.raises(DataError, match="merged=False"):
        LinearAttention(4, merged=False, seed=0).loss(sample_moments(TASKS, 2, n=3, seed=0))


@pytest.mark.parametrize("tokens", ["alternating", "paired"])
def test_the_transformer_sees_no_label_before_it_predicts_it(tokens):
    model = small(tokens=tokens)
    before = model(PROMPT.X, PROMPT.y)
    assert before.shape == (3, 6)
    X, y = PROMPT.X.clone(), PROMPT.y.clone()
    y[:, 3] += 1.0
    X[:, 4:] += 1.0
    after = model(X, y)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert float((after[:, 4] - before[:, 4]).detach().abs().min()) > 1e-6
    # The last label has no influence at all.
    y = PROMPT.y.clone()
    y[:, -1] = 9.0
    assert torch.equal(model(PROMPT.X, y), before)


def test_tokens_are_what_they_are_said_to_be():
    X, y = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[5.0, 6.0]])
    build = lambda tokens: PromptTransformer(2, n_positions=2, n_layer=1, n_head=1, n_embd=4, tokens=tokens)  # noqa: E731
    assert build("alternating")._sequence(X, y).tolist() == [[[1, 2], [5, 0], [3, 4]]]
    assert build("paired")._sequence(X, y).tolist() == [[[1, 2, 0], [1, 2, 5], [3, 4, 0]]]


def test_errors_are_against_labels_without_noise_at_every_length():
    model = small()
    errors = model.errors(PROMPT)
    assert errors.shape == (3, 7)
    torch.testing.assert_close(model.loss(PROMPT), errors.mean())
    # Without noise in what is left of the prompt, and the query in place of the next input.
    short = PROMPT.first(2)
    torch.testing.assert_close(model.errors(short)[:, :2], errors[:, :2])
    torch.testing.assert_close(errors[:, 0], (model(PROMPT.X, PROMPT.y)[:, 0] - PROMPT.clean[:, 0]).square())


def test_a_seed_is_a_start_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second, other = small(), small(), small(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert not torch.equal(first.read_in.weight, other.read_in.weight)


def test_weights_start_as_large_as_those_of_gpt2_for_the_width():
    # 0.02 at width 768, so four times that at a sixteenth of it.
    scaled, small_ones = small(n_embd=48), small(n_embd=48, initializer_range=0.02)
    for name, weight in small_ones.trunk.named_parameters():
        if weight.ndim == 2 and "wte" not in name:
            torch.testing.assert_close(scaled.trunk.get_parameter(name), 4 * weight)
    block = scaled.trunk.h[0]
    assert float(block.mlp.c_fc.weight.detach().std()) == pytest.approx(0.08, rel=0.03)
    assert float(block.mlp.c_proj.weight.detach().std()) == pytest.approx(0.08 / 4**0.5, rel=0.03)
    assert torch.equal(scaled.read_in.weight, small_ones.read_in.weight)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_layer": 0}, "n_layer=0"),
        ({"n_positions": 0}, "n_positions=0"),
        ({"n_embd": 9}, "n_embd=9 is not divisible by n_head=2"),
        ({"tokens": "letters"}, "tokens='letters' is unknown"),
        ({"initializer_range": 0.0}, "initializer_range=0.0 must be a positive number"),
        ({"initializer_range": float("nan")}, "initializer_range=nan"),
    ],
)
def test_the_transformer_refuses_sizes(options, text):
    with pytest.raises(DataError, match=text):
        small(**options)


def test_a_context_beyond_its_positions_names_both_numbers():
    with pytest.raises(DataError, match=r"7 inputs .* exceed n_positions=6"):
        small(n_positions=6).errors(PROMPT)
    with pytest.raises(ShapeError, match="do not fit"):
        small()(PROMPT.X[..., :3], PROMPT.y)


def test_adapters_train_few_numbers_and_start_where_the_model_is():
    pytest.importorskip("peft", reason="peft is not installed")
    from lowdim.incontext.peft import add_adapters, merge_adapters

    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = add_adapters(model, rank=2, seed=0)
    torch.testing.assert_close(adapted(PROMPT.X, PROMPT.y), model(PROMPT.X, PROMPT.y))
    names = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert len(names) == 4
    assert all("lora" in name for name in names)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(generator=torch.Generator().manual_seed(1))
    changed = adapted(PROMPT.X, PROMPT.y)
    assert float((changed - model(PROMPT.X, PROMPT.y)).detach().abs().max()) > 1e-4
    merged = merge_adapters(adapted)
    torch.testing.assert_close(merged(PROMPT.X, PROMPT.y), changed, atol=1e-5, rtol=1e-4)
    assert set(merged.state_dict()) == set(before)
    gap = merged.state_dict()["trunk.h.0.attn.c_attn.weight"] - before["trunk.h.0.attn.c_attn.weight"]
    assert int(torch.linalg.matrix_rank(gap, rtol=1e-4)) == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_adapters_refuse():
    pytest.importorskip("peft", reason="peft is not installed")
    from lowdim.incontext.peft import add_adapters, merge_adapters

    with pytest.raises(RankError, match="rank=0 must be an integer from 1 to 8"):
        add_adapters(small(), rank=0)
    with pytest.raises(RankError, match="rank=9"):
        add_adapters(small(), rank=9)
    with pytest.raises(DataError, match="no matrix q_proj"):
        add_adapters(small(), rank=1, targets=["q_proj"])
    with pytest.raises(DataError, match="has no adapters"):
        merge_adapters(small())
