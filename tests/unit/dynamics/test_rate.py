"""The recommended learning rate: known optima, cost, what is left untouched, what is refused."""

import math

import pytest
import torch
from torch import nn

from lowdim.dynamics import recommend_rate
from lowdim.dynamics.rate import _Ladder
from lowdim.dynamics.trials import Trials
from lowdim.errors import DataError


def quadratic(curvatures=(1.0, 8.0)):
    """0.5 * sum of curvature * (w - 1)^2."""
    layer = nn.Linear(len(curvatures), 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
    h = torch.tensor(curvatures)
    return layer, lambda: 0.5 * (h * (layer.weight[0] - 1).square()).sum()


def noisy(seed=0, features=20, size=32, scale=1.0, dropout=0.0):
    """Linear regression with noise in its targets, in batches."""
    source = torch.Generator().manual_seed(seed)
    truth = torch.randn(features, generator=source)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, 1), nn.BatchNorm1d(1))
    batches = []
    for _ in range(40):
        x = torch.randn(size, features, generator=source)
        batches.append((x, x @ truth + scale * torch.randn(size, generator=source)))
    return model, lambda batch: (model(batch[0])[:, 0] - batch[1]).square().mean(), batches


@pytest.mark.parametrize("begin", [1e-5, 0.1, 30.0])
def test_full_batches_are_bound_by_the_sharpness(begin):
    # Largest curvature 8: just stable at 1/4; a quadratic does not escape to flatter places beyond.
    model, loss = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=begin)
    advice = recommend_rate(model, loss, optimizer=optimizer, steps=2_000)
    assert advice.sharpness == pytest.approx(8.0, rel=0.01)
    assert advice.threshold == pytest.approx(0.25, rel=0.01)
    assert advice.lr == pytest.approx(0.25 / math.sqrt(2), rel=0.01)
    assert list(advice.trials["loss"] < 4.5) == [False, True]
    assert advice.noise == 0.0


def test_momentum_bears_more():
    model, loss = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    advice = recommend_rate(model, loss, optimizer=optimizer, steps=2_000)
    assert advice.threshold == pytest.approx(3.8 / 8, rel=0.01)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop", "Adagrad"])
@pytest.mark.parametrize("steps", [300, 900])
def test_the_budget_is_kept(kind, steps):
    model, loss, batches = noisy()
    make = getattr(torch.optim, kind)
    rows = []
    advice = recommend_rate(
        model,
        loss,
        optimizer=lambda lr: make(model.parameters(), lr=lr),
        lr=0.01,
        steps=steps,
        batches=batches,
        callback=rows.append,
    )
    assert 0 < advice.cost <= 0.05 * steps + 1e-6
    assert rows == advice.trials.to_dict("records")
    assert set(advice.trials) == {"lr", "steps", "loss", "cost"}
    assert f"{advice.lr:.2g}" in advice.sentence
    assert 1e-4 < advice.lr < 10


def test_noise_is_measured():
    # Gradient of a batch: the mean of its samples plus a constant, the signal.
    features, size = 50, 8
    source = torch.Generator().manual_seed(0)
    for scale, expected in ((0.0, 0.0), (1e3, 1.0)):
        model = nn.Linear(features, 1, bias=False)
        drift = torch.ones(features)
        batches = [torch.randn(size, features, generator=source) * scale for _ in range(50)]
        trials = Trials(
            model,
            lambda x, m=model, d=drift: (m.weight[0] * (x.mean(0) + d)).sum(),
            torch.optim.SGD(model.parameters(), lr=0.1),
            batches=batches,
            schedule=lambda progress: 1.0,
            share=1.0,
            seed=0,
        )
        with trials.untraced():
            for relative in (True, False):
                assert trials.noise(rounds=20, relative=relative) == pytest.approx(expected, abs=0.05)
        assert trials.cost == 40


def test_longer_trainings_with_noise_bear_less():
    def advised(steps):
        model, loss, batches = noisy(scale=3.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        # The same trials: only the length differs.
        return recommend_rate(
            model, loss, optimizer=optimizer, steps=steps, batches=batches, budget=40 / steps
        )

    short, long = advised(800), advised(80_000)
    assert short.noise > 0.5
    assert list(short.trials["loss"]) == list(long.trials["loss"])
    assert short.lr / long.lr == pytest.approx(10.0, rel=1e-3)


def test_nothing_is_changed():
    model, loss, batches = noisy(dropout=0.5)
    optimizer = torch.optim.AdamW(
        [{"params": model[1].parameters(), "lr": 0.02}, {"params": model[2].parameters(), "lr": 0.002}]
    )
    for batch in batches[:3]:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
    fired = []
    optimizer.register_step_post_hook(lambda *_: fired.append(1))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    state = {p: {k: v.clone() for k, v in values.items()} for p, values in optimizer.state.items()}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    random = torch.get_rng_state()
    model[0].eval()
    advice = recommend_rate(model, loss, optimizer=optimizer, steps=400, batches=batches)
    assert not model[0].training
    assert model[1].training
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert not fired
    for parameter, values in state.items():
        assert all(torch.equal(optimizer.state[parameter][k], v) for k, v in values.items())
    assert groups == [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    again = recommend_rate(model, loss, optimizer=optimizer, steps=400, batches=batches)
    assert again.lr == advice.lr
    assert again.trials.equals(advice.trials)


def test_everything_is_put_back_after_a_failure():
    model, loss, batches = noisy()
    weights = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []

    def breaks(batch):
        calls.append(1)
        if len(calls) > 12:
            raise RuntimeError("the loss broke")
        return loss(batch)

    with pytest.raises(RuntimeError, match="the loss broke"):
        recommend_rate(model, breaks, optimizer=optimizer, steps=400, batches=batches)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_batches_that_run_out_are_taken_again():
    model, loss, batches = noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    few = recommend_rate(model, loss, optimizer=optimizer, steps=800, batches=batches[:3])
    again = recommend_rate(
        model, loss, optimizer=optimizer, steps=800, batches=[batches[0], *batches[1:3] * 60]
    )
    assert few.lr == again.lr


def test_optimizers_that_evaluate_more_than_once_pay_for_it():
    model, loss = quadratic()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3, max_eval=3)
    trials = Trials(model, loss, optimizer, batches=None, schedule=lambda progress: 1.0, share=1.0, seed=0)
    with trials.untraced():
        assert trials.run(0.5, steps=2) < 0.5  # 4.5 at the start
    assert 3 < trials.cost <= 6 + 1 / 3 + 1e-9
    assert not optimizer.state


def test_the_schedule_scales_the_rate():
    model, loss = quadratic()
    trials = {}
    for name, schedule in (("constant", lambda progress: 1.0), ("half", lambda progress: 0.5)):
        trials[name] = Trials(
            model,
            loss,
            torch.optim.SGD(model.parameters(), lr=0.1),
            batches=None,
            schedule=schedule,
            share=1.0,
            seed=0,
        )
    with trials["constant"].untraced():
        plain = trials["constant"].run(0.05, steps=5)
    with trials["half"].untraced():
        assert trials["half"].run(0.1, steps=5) == pytest.approx(plain)
    # (1 - 0.05)^10 and (1 - 0.4)^10 of 1/2 and 8/2
    assert plain == pytest.approx(0.5 * 0.95**10 + 4 * 0.6**10, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"steps": 100}, "too few"),
        ({"budget": 0.0}, "budget=0.0"),
        ({"budget": 2}, "budget=2"),
        ({"share": 1.5}, "share=1.5"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"batches": []}, "batches is empty"),
        ({"optimizer": lambda lr: None, "lr": 0.1}, "NoneType"),
        ({"optimizer": lambda lr: None}, "lr= is missing"),
        ({"optimizer": "Adam"}, "str"),
        ({"loss_fn": 3}, "loss_fn is a int"),
        ({"loss_fn": lambda batch: batch[0]}, "expected a real scalar"),
        ({"loss_fn": lambda batch: torch.tensor(1.0)}, "no graph"),
    ],
)
def test_refusals(change, text):
    model, loss, batches = noisy()
    arguments = {
        "loss_fn": loss,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "steps": 1_000,
        "batches": batches,
        **change,
    }
    with pytest.raises(DataError, match=text):
        recommend_rate(model, arguments.pop("loss_fn"), **arguments)


def test_a_loss_that_nothing_lowers_is_told():
    model, _ = quadratic()
    with pytest.raises(DataError, match="no trial"):
        recommend_rate(
            model,
            lambda: model.weight.sum() * 0 + 1,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            steps=1_000,
        )


class Curve:
    """Trials whose loss is known: 1 + slope lr + bend lr^2."""

    share, full = 0.25, False

    def __init__(self, slope, bend, *, full=False):
        self.slope, self.bend, self.full, self.cost = slope, bend, full, 0.0

    def start(self, *, steps):
        return 1.0

    def run(self, lr, *, steps):
        self.cost += 1
        return 1.0 + self.slope * lr + self.bend * lr**2


@pytest.mark.parametrize("begin", [1e-6, 1e-3, 1.0])
def test_a_rise_in_proportion_to_the_rate_is_that_of_the_samples(begin):
    # The parts are equal at a rate of 1e-3. The last one whose rise over half of it is nearer to the first
    # power, 2 ** 1.75, is below three times that.
    ladder = _Ladder(Curve(1.0, 1e3), callback=None)
    found = ladder.search(begin, factor=2.0, steps=4, until=40, pull=1.0)
    assert 1e-3 < found < 5e-3
    assert ladder.advised(4, pull=1.0, of=16) == pytest.approx(found / 2)


def test_full_batches_have_no_samples_to_blame():
    ladder = _Ladder(Curve(1.0, 1e3, full=True), callback=None)
    ladder.search(1e-3, factor=2.0, steps=4, until=12, pull=0.0)
    with pytest.raises(DataError, match="no trial of 4 steps lowered"):
        ladder.advised(4, pull=0.0, of=16)


def test_a_decrease_is_taken_before_a_harmless_rate():
    ladder = _Ladder(Curve(-1.0, 1e3), callback=None)
    assert ladder.search(1.0, factor=2.0, steps=4, until=40) == pytest.approx(5e-4, rel=0.3)
