"""A Monitor in the Trainer of transformers: switched on in one line, and the training stays the same."""

import json

import pytest
import torch

from lowdim.dynamics.monitor import Monitor
from lowdim.dynamics.sinks import Memory

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def sentences(n=48):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(64, (n, 16), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def quiet(tmp_path, **options):
    return transformers.TrainingArguments(
        output_dir=str(tmp_path), report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **options
    )


def train(tmp_path, model, *, monitor=None, through_log=False, steps=10, **options):
    arguments = quiet(tmp_path, max_steps=steps, learning_rate=1e-2, logging_steps=2, seed=0, **options)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=sentences())
    if monitor is not None:
        trainer.add_callback(monitor.as_trainer_callback(trainer if through_log else None))
    trainer.train()
    return trainer


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"bf16": True, "gradient_checkpointing": True}],
    ids=["plain", "accumulation", "bf16 and checkpointing"],
)
def test_the_trainer_trains_the_same(tmp_path, options):
    watched, memory = gpt2(), Memory()
    monitor = Monitor(watched, every=4, sink=[memory, tmp_path / "run.jsonl"], strict=True)
    trainer = train(tmp_path, watched, monitor=monitor, **options)
    plain = gpt2()
    train(tmp_path, plain, **options)
    assert all(torch.equal(a, b) for a, b in zip(weights(watched), weights(plain), strict=True))

    assert [step for step, _ in memory.reports] == [4, 8]
    report = memory.reports[1][1]
    assert report["dyn/sharpness"] > 0
    assert report["dyn/sharpness_ratio"] == pytest.approx(report["dyn/sharpness"] / report["dyn/threshold"])
    assert memory.header["optimizer"] == "AdamW"
    assert memory.header["label"] == "preconditioned sharpness"
    assert "dyn/erank/transformer.h.0.mlp.c_fc.weight" in report
    assert report["dyn/loss"] > 0
    logged = [entry for entry in trainer.state.log_history if "dyn/sharpness" in entry]
    assert [entry["step"] for entry in logged] == [4, 8]
    assert not watched._forward_pre_hooks  # the hook that copied the batch has gone
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 4, 8]


def test_reports_go_through_the_log_of_the_trainer(tmp_path):
    seen = []

    class Logger(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, dict(logs)))

    model = gpt2()
    monitor = Monitor(model, every=4, probes=("oscillation", "sharpness"), strict=True)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=sentences(), callbacks=[Logger()]
    )
    trainer.add_callback(monitor.as_trainer_callback(trainer))
    trainer.train()
    assert [(step, "dyn/sharpness" in logs) for step, logs in seen if "dyn/hvps" in logs] == [(4, True)]


def test_of_a_lora_model_the_adapters_are_watched(tmp_path):
    model = peft.get_peft_model(gpt2(), peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    memory = Memory()
    monitor = Monitor(model, every=5, sink=memory, strict=True)
    train(tmp_path, model, monitor=monitor, steps=5)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.header["parameters"] == trainable
    names = [name for name in memory.reports[0][1] if name.startswith("dyn/erank/")]
    assert len(names) == 4
    assert all("lora" in name for name in names)
    assert memory.reports[0][1]["dyn/sharpness"] == memory.reports[0][1]["dyn/sharpness"]


def test_a_custom_loss_is_used(tmp_path):
    model, memory = gpt2(), Memory()
    monitor = Monitor(model, every=3, probes="sharpness", sink=memory, strict=True)
    shapes = []

    def loss(model, batch):
        shapes.append(tuple(batch["input_ids"].shape))
        return 2 * model(**batch).loss

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=sentences())
    trainer.add_callback(monitor.as_trainer_callback(loss=loss, share=0.5))
    trainer.train()
    assert set(shapes) == {(4, 16)}  # half of the batch of 8
    assert memory.series("dyn/sharpness")
