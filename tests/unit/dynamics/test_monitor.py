"""The Monitor: what it reports, when, and that nothing wrong inside stops a training."""

import math
import warnings

import pytest
import torch
from torch import nn

from lowdim.dynamics.frozen import freeze
from lowdim.dynamics.monitor import Monitor
from lowdim.dynamics.oscillation import EdgeDetector
from lowdim.dynamics.sinks import Memory
from lowdim.dynamics.tracker import sharpness
from lowdim.errors import DataError, LowdimWarning, ShapeError


def setting(*, lr=0.1, optimizer=torch.optim.SGD, seed=0, **options):
    torch.manual_seed(seed)
    x, y = torch.randn(64, 8), torch.randn(64, 2)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    return model, optimizer(model.parameters(), lr=lr, **options), lambda: (model(x) - y).square().mean()


def train(model, optimizer, loss_fn, monitor, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_fn()
        loss.backward()
        optimizer.step()
        monitor.step(loss=loss)


def watched(steps=40, *, every=20, setting_options=None, **options):
    model, optimizer, loss_fn = setting(**(setting_options or {}))
    memory = Memory()
    monitor = Monitor(
        model, loss_fn, optimizer=optimizer, every=every, sink=memory, **{"strict": True, **options}
    )
    train(model, optimizer, loss_fn, monitor, steps)
    return monitor, memory


def test_reports_all_metrics_as_floats():
    _, memory = watched(rank_of=("weight", "gradient", "update"))
    assert [step for step, _ in memory.reports] == [20, 40]
    report = memory.reports[1][1]
    assert all(type(value) is float for value in report.values())
    names = {"sharpness", "sharpness_ratio", "threshold", "lowest_curvature", "alternation", "edge", "period"}
    names |= {"sharpness_residual", "osc_rank", "hvps", "seconds", "loss", "lr", "balance_gap/0-2"}
    for layer in ("0.weight", "2.weight"):
        names |= {f"{kind}/{layer}" for kind in ("erank", "srank", "drift_deg")}
        names |= {f"{kind}_{of}/{layer}" for kind in ("erank", "srank") for of in ("grad", "update")}
    assert set(report) == {f"dyn/{name}" for name in names}
    assert report["dyn/threshold"] == pytest.approx(20)
    assert report["dyn/sharpness_ratio"] == pytest.approx(report["dyn/sharpness"] / 20)
    assert report["dyn/erank_update/2.weight"] == pytest.approx(report["dyn/erank_grad/2.weight"], rel=1e-3)
    assert memory.header["optimizer"] == "SGD"
    assert memory.header["parameters"] == 178
    assert memory.header["threshold_rule"] == "2 / lr"
    assert memory.header["probes"] == ["sharpness", "oscillation", "rank", "drift", "balance"]


def test_the_loss_is_the_mean_since_the_last_report():
    model, _, _ = setting()
    memory = Memory()
    monitor = Monitor(model, every=2, probes="balance", sink=memory)
    for loss in (1.0, 2.0, torch.tensor(5.0), 7.0):
        monitor.step(loss=loss)
    assert memory.series("dyn/loss") == [1.5, 6.0]


@pytest.mark.parametrize(("lr", "edge"), [(0.02, 0.0), (0.4, 1.0)])
def test_alternation_tells_the_edge_without_a_hessian(lr, edge):
    torch.manual_seed(0)
    # A quadratic with curvatures 6, 1, 0.5 ...: stable below lr = 1/3; the valley has a bound at last (tanh).
    model = nn.Linear(4, 1, bias=False)
    scales = torch.diag(torch.tensor([6.0, 1.0, 0.5, 0.2]).sqrt())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss_fn = lambda: model(scales).tanh().square().sum() / 2  # noqa: E731
    monitor = Monitor(model, optimizer=optimizer, every=30, probes=["oscillation"], strict=True)
    train(model, optimizer, loss_fn, monitor, 60)
    assert monitor.last["dyn/edge"] == edge
    assert (monitor.crossed_at is not None) == bool(edge)
    assert len(monitor.alternation) == 58
    assert [step for step, _ in monitor.alternation] == list(range(3, 61))
    if edge:
        assert monitor.last["dyn/period"] == 2
        assert monitor.last["dyn/osc_rank"] >= 1
        assert 7 <= monitor.crossed_at <= 60  # four states to begin with, four scores in a row


def test_the_detector_is_that_of_the_user():
    monitor, _ = watched(probes="oscillation", detector=EdgeDetector(window=4, threshold=-0.99, level=-0.99))
    assert monitor.crossed_at is None or monitor.crossed_at > 5


def test_a_gap_in_the_steps_starts_the_oscillation_anew():
    model, optimizer, loss_fn = setting()
    monitor = Monitor(model, optimizer=optimizer, probes="oscillation", strict=True)
    for step in (1, 2, 3, 4, 50, 51, 52, 53):
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
        monitor.step(step)
    assert [step for step, _ in monitor.alternation] == [3, 4, 52, 53]


def test_without_a_loss_the_rest_is_measured():
    model, optimizer, loss_fn = setting()
    monitor = Monitor(model, optimizer=optimizer, every=5, strict=True)
    with pytest.warns(LowdimWarning, match="loss_fn") as caught:
        train(model, optimizer, loss_fn, monitor, 10)
    assert len(caught) == 1
    assert "dyn/sharpness" not in monitor.last
    assert "dyn/alternation" in monitor.last
    assert "dyn/erank/0.weight" in monitor.last


def test_an_error_warns_once_per_kind_and_training_goes_on():
    calls = []

    def broken():
        calls.append(1)
        raise ZeroDivisionError("of the user")

    def full(step, metrics):
        raise OSError("disk full")

    model, optimizer, loss_fn = setting()
    memory = Memory()
    monitor = Monitor(model, broken, optimizer=optimizer, every=5, sink=[full, memory])
    with pytest.warns(LowdimWarning) as caught:
        train(model, optimizer, loss_fn, monitor, 15)
    texts = [str(w.message) for w in caught]
    assert len(texts) == 2
    assert "of the user" in texts[0]
    assert "disk full" in texts[1]
    assert len(memory.reports) == 3  # the other sink has all
    assert "dyn/alternation" in memory.reports[2][1]
    strict = Monitor(model, broken, optimizer=optimizer, every=1, strict=True)
    with pytest.raises(ZeroDivisionError):
        train(model, optimizer, loss_fn, strict, 1)


def test_a_diverged_training_is_reported_as_far_as_it_goes():
    model, optimizer, loss_fn = setting(lr=1e4)
    memory = Memory()
    monitor = Monitor(model, loss_fn, optimizer=optimizer, every=40, sink=memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowdimWarning)
        train(model, optimizer, loss_fn, monitor, 40)
    report = memory.reports[0][1]
    assert not math.isfinite(report["dyn/loss"])
    assert report["dyn/edge"] in (0.0, 1.0)


def test_an_unknown_optimizer_costs_the_threshold_only():
    class Foreign(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self):
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p -= self.param_groups[0]["lr"] * p.grad.sign()

    model, _, loss_fn = setting()
    optimizer = Foreign(model.parameters(), lr=1e-3)
    memory = Memory()
    monitor = Monitor(model, loss_fn, optimizer=optimizer, every=5, sink=memory)
    with pytest.warns(LowdimWarning, match="without a threshold"):
        train(model, optimizer, loss_fn, monitor, 5)
    assert "dyn/sharpness" in memory.reports[0][1]
    assert "dyn/threshold" not in memory.reports[0][1]
    assert memory.header["threshold_rule"] is None


def test_an_adaptive_optimizer_is_told_after_its_first_step():
    monitor, memory = watched(setting_options={"optimizer": torch.optim.Adam, "lr": 1e-3})
    assert memory.header["label"] == "preconditioned sharpness"
    assert memory.reports[0][1]["dyn/threshold"] == pytest.approx(38 / 1e-3)
    monitor.close()
    with pytest.warns(LowdimWarning, match="closed"):
        assert monitor.step() is None
    assert len(memory.reports) == 2


def test_frozen_and_integer_parameters_are_left_out():
    model, _, loss_fn = setting()
    model[0].requires_grad_(False)
    model.register_parameter("codes", nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False))
    memory = Memory()
    with pytest.warns(LowdimWarning, match="codes"):
        monitor = Monitor(model, loss_fn, every=1, sink=memory, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowdimWarning)
        monitor.step()
    assert memory.header["parameters"] == 34
    assert "dyn/erank/0.weight" not in memory.reports[0][1]
    model[2].requires_grad_(False)
    model.codes = None
    with pytest.raises(DataError, match="no parameter"):
        Monitor(model)


def test_select_and_names_of_wrappers():
    model, _, _ = setting()
    wrapped = nn.Module()
    wrapped.module = model
    monitor = Monitor(wrapped, every=1, probes=["rank"], select=r"2\.weight")
    monitor.step()
    assert "dyn/erank/2.weight" in monitor.last
    assert "dyn/erank/0.weight" not in monitor.last


def test_gradients_that_are_gone_are_said_once():
    model, optimizer, loss_fn = setting()
    monitor = Monitor(model, every=1, probes="rank", rank_of=("gradient",))

    def train_and_clear():
        for _ in range(2):
            loss_fn().backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.step()

    with pytest.warns(LowdimWarning, match="zero_grad") as caught:
        train_and_clear()
    assert len(caught) == 1


def test_large_matrices_are_said_once():
    model, _, _ = setting()
    monitor = Monitor(model, every=1, probes=("rank", "drift"), rank_limit=1)
    with pytest.warns(LowdimWarning, match="rank_limit"):
        monitor.step()
    assert "dyn/erank/0.weight" not in monitor.last
    assert monitor.last["dyn/srank/0.weight"] > 1
    assert monitor.last["dyn/drift_deg/0.weight"] < 0.1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 2.5}, "every=2.5"),
        ({"average": 0}, "average"),
        ({"probes": ("sharpnes",)}, "'sharpnes' is unknown"),
        ({"probes": ()}, "there is none"),
        ({"rank_of": "weights"}, "'weights' is unknown"),
        ({"sink": 3}, "sink is a int"),
        ({"chains": [["0", "1"]]}, "no linear layer"),
        ({"loss_fn": 3.0}, "loss_fn is a float"),
        ({"select": "("}, "regular expression"),
    ],
)
def test_options_are_checked_at_the_door(options, text):
    with pytest.raises(DataError, match=text):
        Monitor(setting()[0], **options)


def test_other_refusals():
    with pytest.raises(DataError, match="expected a torch"):
        Monitor(lambda x: x)
    with pytest.raises(ShapeError, match="does not feed"):
        Monitor(nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 3)}), chains=[["a", "b"]])


def test_freeze_takes_a_copy_of_the_first_samples():
    x = torch.arange(10.0)
    batch = {"x": x, "pair": (x[:, None], [torch.ones(3)]), "n": 4, "one": torch.tensor(1.0)}
    found = freeze(batch, share=0.25)
    x += 100
    assert found["x"].tolist() == [0, 1, 2]
    assert found["pair"][0].shape == (3, 1)
    assert found["pair"][1][0].shape == (3,)  # not the length of the batch: whole
    assert (found["n"], found["one"].item()) == (4, 1.0)
    with pytest.raises(DataError, match="share"):
        freeze(batch, share=0)
    with pytest.raises(DataError, match="no batch"):
        freeze("text")


def test_layers_that_are_thawed_are_watched_from_then_on():
    model, _, loss_fn = setting()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)
    memory = Memory()
    monitor = Monitor(
        *(model, loss_fn),
        optimizer=optimizer,
        every=20,
        sink=memory,
        rank_of=("weight", "update"),
        curvature={"tol": 1e-5},
        strict=True,
    )
    train(model, optimizer, loss_fn, monitor, 20)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.2})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, loss_fn, monitor, 40)
    head, thawed, later = (report for _, report in memory.reports)
    assert "dyn/erank/0.weight" not in head
    assert thawed["dyn/drift_deg/0.weight"] < 1e-3 < later["dyn/drift_deg/0.weight"]
    assert later["dyn/erank_update/0.weight"] > 0
    assert later["dyn/threshold"] == pytest.approx(10)
    assert "dyn/period" not in thawed  # states of other parameters are no states of these
    assert later["dyn/alternation"] < -0.5
    assert later["dyn/sharpness_ratio"] == pytest.approx(
        sharpness(model, loss_fn, optimizer=optimizer, tol=1e-5).ratio, rel=1e-2
    )


def test_a_sharpness_that_is_no_number_is_explained():
    model, optimizer, loss_fn = setting()
    scale = [1.0]
    monitor = Monitor(model, lambda: scale[0] * loss_fn(), optimizer=optimizer, every=1)
    monitor.step()
    scale[0] = math.inf
    with pytest.warns(LowdimWarning, match="sharpness at step 2 is not a number"):
        assert math.isnan(monitor.step()["dyn/sharpness"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "sgd"}, "optimizer is a str"),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)}, "in the optimizer"),
        ({"curvature": {"metod": "reuse"}}, "'metod'"),
        ({"curvature": {"batches": []}}, "'batches'"),
    ],
)
def test_what_cannot_work_is_refused_at_the_door(options, told):
    model, _, loss_fn = setting()
    with pytest.raises(DataError, match=told):
        Monitor(model, loss_fn, **options)
