"""A Monitor in a loop with accelerate: accumulation, trackers, wrapped optimizers."""

import pytest
import torch
from torch import nn

from lowdim.dynamics.monitor import Monitor
from lowdim.errors import DataError

accelerate = pytest.importorskip("accelerate")
tracking = pytest.importorskip("accelerate.tracking")


class Tracker(tracking.GeneralTracker):
    name = "list"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.logged = []

    @property
    def tracker(self):
        return self.logged

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, values))


def train(*, watch, precision="no"):
    torch.manual_seed(0)
    tracker = Tracker()
    accelerator = accelerate.Accelerator(
        gradient_accumulation_steps=2, log_with=tracker, cpu=True, mixed_precision=precision
    )
    accelerator.init_trackers("run")
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = torch.utils.data.TensorDataset(torch.randn(96, 6), torch.randn(96, 2))
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    )
    x, y = (part[:4].clone() for part in data.tensors)
    loss_fn = lambda: (model(x).float() - y).square().mean()  # noqa: E731
    if watch:
        monitor = Monitor(model, loss_fn, optimizer=optimizer, every=2, strict=True)
        monitor.as_accelerate_logger(accelerator)
    for batch, target in loader:
        with accelerator.accumulate(model):
            loss = (model(batch) - target).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if watch:
                monitor.step(loss=loss)
    accelerate.state.AcceleratorState._reset_state(True)
    return [p.detach().clone() for p in model.parameters()], tracker.logged


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_trains_the_same(precision):
    watched, logged = train(watch=True, precision=precision)
    plain, _ = train(watch=False, precision=precision)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
    # 12 batches are 6 optimizer steps.
    assert [step for step, _ in logged] == [2, 4, 6]
    assert logged[0][1]["dyn/threshold"] == pytest.approx(3800, rel=1e-3)
    assert logged[0][1]["dyn/sharpness"] > 0


def test_something_else_is_refused():
    with pytest.raises(DataError, match=r"expected the accelerate\.Accelerator"):
        Monitor(nn.Linear(2, 2)).as_accelerate_logger(3)
