import copy

import pytest
import torch
from torch import nn

from lowdim.compress import distill
from lowdim.compress.distill import Distillation
from lowdim.compress.recover import recover, schedule
from lowdim.errors import DataError, Diverged, RunError


def small_bert(kind="BertModel"):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def small_gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.3
    )
    return transformers.GPT2LMHeadModel(config)


def damaged(model, scale=0.3):
    """Return a copy whose linear weights are off, as after a coarse factorization."""
    student = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for name, p in student.named_parameters():
        if p.dim() == 2 and "embedding" not in name and "wte" not in name and "wpe" not in name:
            p.data += scale * p.data.std() * torch.randn(p.shape, generator=generator)
    return student


def token_batches(count=4):
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(count):
        ids = torch.randint(0, 40, (8, 10), generator=generator)
        lengths = torch.randint(2, 11, (8,), generator=generator)
        found.append({"input_ids": ids, "attention_mask": (torch.arange(10) < lengths[:, None]).long()})
    return found


@pytest.mark.parametrize(
    ("task", "build"),
    [
        ("embedding", small_bert),
        ("masked", lambda: small_bert("BertForMaskedLM")),
        ("classifier", lambda: small_bert("BertForSequenceClassification")),
        ("causal", small_gpt2),
    ],
)
def test_every_task_comes_closer_to_the_original(task, build):
    teacher = build()
    student, found = damaged(teacher), token_batches()
    rule = Distillation(task)

    def gap(model):
        model.eval()
        with torch.no_grad():
            return sum(float(rule.loss(model, b, rule.targets(teacher.eval(), b))[0]) for b in found)

    before = gap(student)
    history = recover(student, teacher, found, steps=40, lr=3e-3, task=task)
    assert gap(student) < 0.5 * before
    assert gap(teacher) == pytest.approx(0, abs=1e-5)
    assert len(history.objective) == len(history.residual) == 41
    assert history.steps == 40


def test_generic_modules_and_tuples_of_inputs():
    torch.manual_seed(0)
    teacher, student = nn.Bilinear(3, 3, 2), nn.Bilinear(3, 3, 2)
    found = [(torch.randn(32, 3), torch.randn(32, 3)) for _ in range(4)]
    history = recover(student, teacher, found, steps=150, lr=0.05, task="generic")
    assert history.residual[-1] < 0.1 * history.residual[0]


def test_padding_has_no_say_in_loss_or_gradient():
    teacher = small_bert().eval()
    student, batch = damaged(teacher).eval(), token_batches(1)[0]
    longer = {k: nn.functional.pad(v, (0, 4)) for k, v in batch.items()}
    rule = Distillation("embedding")
    one, _ = rule.loss(student, batch, rule.targets(teacher, batch))
    two, _ = rule.loss(student, longer, rule.targets(teacher, longer))
    assert float(one.detach()) == pytest.approx(float(two.detach()), rel=1e-5)


def test_embedding_tables_and_frozen_parameters_stay_and_mode_is_kept():
    teacher = small_bert()
    student = damaged(teacher)
    frozen = student.encoder.layer[0].output.dense.weight.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    student.train()
    recover(student, teacher, token_batches(), steps=3)
    after = dict(student.named_parameters())
    assert torch.equal(frozen, before["encoder.layer.0.output.dense.weight"])
    assert torch.equal(
        after["embeddings.word_embeddings.weight"], before["embeddings.word_embeddings.weight"]
    )
    assert not torch.equal(
        after["encoder.layer.1.output.dense.weight"], before["encoder.layer.1.output.dense.weight"]
    )
    assert student.training
    assert all(p.grad is None for p in student.parameters())


def test_same_seed_same_bits_and_the_cache_changes_nothing():
    teacher, found = small_bert(), token_batches()
    results = []
    for seed, cache in [(0, 2**30), (0, 0), (1, 2**30)]:
        student = damaged(teacher)
        recover(student, teacher, found, steps=10, seed=seed, cache_bytes=cache)
        results.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_teacher_is_asked_once_per_batch(monkeypatch):
    asked = []
    targets = Distillation.targets
    monkeypatch.setattr(Distillation, "targets", lambda self, *args: asked.append(1) or targets(self, *args))
    teacher = small_bert()
    recover(damaged(teacher), teacher, token_batches(), steps=12)
    assert len(asked) == 4


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 7, 10, 13])
def test_resumed_recovery_is_the_same_to_the_bit(tmp_path, stop):
    teacher, found = small_bert(), token_batches()
    undisturbed = damaged(teacher)
    whole = recover(undisturbed, teacher, found, steps=14)

    def interrupt(step, loss):
        if step == stop:
            raise StoppedError

    path = tmp_path / "recover.safetensors"
    with pytest.raises(StoppedError):
        recover(damaged(teacher), teacher, found, steps=14, checkpoint=path, every=5, callback=interrupt)
    assert path.exists() == (stop >= 5)
    student, seen = damaged(teacher), []
    parts = recover(
        student,
        teacher,
        found,
        steps=14,
        checkpoint=path,
        every=5,
        progress=lambda done, total: seen.append(done),
    )
    assert seen[0] == (stop // 5) * 5 + 1
    assert parts.objective == whole.objective
    for one, two in zip(undisturbed.parameters(), student.parameters(), strict=True):
        assert torch.equal(one, two)
    finished = recover(damaged(teacher), teacher, found, steps=14, checkpoint=path, every=5)
    assert finished.objective == whole.objective


def test_checkpoint_of_other_options_or_damaged_is_refused(tmp_path):
    teacher, found = small_bert(), token_batches()
    path = tmp_path / "recover.safetensors"
    recover(damaged(teacher), teacher, found, steps=4, checkpoint=path)
    with pytest.raises(RunError, match=r"another recovery \(steps 4 -> 6\)"):
        recover(damaged(teacher), teacher, found, steps=6, checkpoint=path)
    content = bytearray(path.read_bytes())
    content[-8] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(RunError, match=r"recover\.safetensors"):
        recover(damaged(teacher), teacher, found, steps=4, checkpoint=path)


def test_half_precision_is_trained_in_float32_and_rounded():
    teacher = small_bert().to(torch.bfloat16)
    student, found = damaged(teacher), token_batches()
    before = student.encoder.layer[0].output.dense.weight.detach().clone()
    recover(student, teacher, found, steps=20, lr=1e-4)
    weight = student.encoder.layer[0].output.dense.weight
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert not torch.equal(weight, before)


def test_divergence_names_step_and_last_loss():
    teacher = nn.Linear(2, 2)
    student = copy.deepcopy(teacher)
    student.weight.data += 0.1
    found = [torch.ones(2, 2)]

    def poison(step, loss):
        if step == 3:
            found[0].fill_(float("inf"))

    with pytest.raises(Diverged, match="not finite at step 4") as caught:
        recover(student, teacher, found, steps=6, task="generic", callback=poison)
    assert caught.value.step == 4
    assert caught.value.last is not None
    assert torch.isfinite(student.weight).all()


def test_schedule_rises_then_falls():
    rates = [schedule(step, 400, 0.1) for step in range(400)]
    assert max(rates) == 1
    assert rates.index(1) == 39
    assert rates[:40] == sorted(rates[:40])
    assert rates[40:] == sorted(rates[40:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=1e-3)
    assert max(schedule(step, 3, 0.1) for step in range(3)) == 0.15  # too few steps to learn: gentle ones


def test_relation_term_sees_only_the_angles_between_texts():
    rule = Distillation("embedding", hidden=0, cosine=0, relation=1)
    generator = torch.Generator().manual_seed(0)
    target = nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=-1)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    assert float(rule._embedding(target @ rotation, target)) == pytest.approx(0, abs=1e-10)
    assert float(rule._embedding(target.flip(0), target)) > 1e-3


def test_divergence_is_the_kullback_leibler_distance():
    logits, target = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])
    expected = 0.25 * torch.log(torch.tensor(0.5)) + 0.75 * torch.log(torch.tensor(1.5))
    assert float(distill.divergence(logits, target, None)) == pytest.approx(float(expected), rel=1e-6)


def test_bad_options_are_refused_at_the_door():
    net, found = nn.Linear(2, 2), [torch.ones(1, 2)]
    with pytest.raises(DataError, match="no batch to learn from"):
        recover(net, net, [], steps=1, task="generic")
    for option in ({"steps": -1}, {"steps": 1, "lr": 0}, {"steps": 1, "every": 0}):
        with pytest.raises(DataError, match=f"{list(option)[-1]}=.* too small"):
            recover(net, net, found, task="generic", **option)
    with pytest.raises(DataError, match="task='poetry' is unknown"):
        recover(net, net, found, steps=1, task="poetry")
    with pytest.raises(DataError, match="no trainable parameters"):
        recover(copy.deepcopy(net).requires_grad_(False), net, found, steps=1, task="generic")
    with pytest.raises(DataError, match=r"needs batches that are dictionaries"):
        recover(small_bert(), small_bert(), found, steps=1)
    assert recover(net, net, found, steps=0, task="generic").steps == 0
