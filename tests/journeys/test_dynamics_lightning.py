"""A Monitor in the Trainer of Lightning."""

import warnings

import pytest
import torch
from torch import nn

from lowdim.dynamics.monitor import Monitor
from lowdim.dynamics.sinks import Memory

lightning = pytest.importorskip("lightning.pytorch")


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 100)]


class Logger(lightning.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, dict(metrics)))


def loss(module, batch):
    return (module(batch[0]) - batch[1]).square().mean()


def fit(*, watch, accumulate=1, **options):
    lightning.seed_everything(0)
    generator = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(
        torch.randn(64, 6, generator=generator), torch.randn(64, 2, generator=generator)
    )
    module, memory, logger = Net(), Memory(), Logger()
    callbacks = []
    if watch:
        monitor = Monitor(module, every=4, sink=memory, strict=True)
        callbacks.append(monitor.as_lightning_callback(**options))
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))
    return module, memory, logger


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_trains_the_same(accumulate):
    module, memory, logger = fit(watch=True, accumulate=accumulate, loss=loss)
    plain, _, other = fit(watch=False, accumulate=accumulate)
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    steps = [4, 8, 12, 16] if accumulate == 1 else [4, 8]
    assert [step for step, _ in memory.reports] == steps
    assert [step for step, metrics in logger.logged if "dyn/sharpness" in metrics] == steps
    # What the user logs is logged as before.
    own = [(step, m["train_loss"]) for step, m in logger.logged if "train_loss" in m]
    assert own == [(step, m["train_loss"]) for step, m in other.logged if "train_loss" in m]
    report = memory.reports[0][1]
    assert report["dyn/threshold"] == pytest.approx(3.8 / 0.05)
    assert "dyn/erank/net.0.weight" in report
    if accumulate == 1:
        assert report["dyn/loss"] == pytest.approx(sum(value for _, value in own[:4]) / 4, rel=1e-5)


def test_without_a_loss_there_is_no_sharpness():
    _, memory, _ = fit(watch=True)
    assert "dyn/sharpness" not in memory.reports[0][1]
    assert "dyn/alternation" in memory.reports[0][1]
