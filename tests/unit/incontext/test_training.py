"""Training: it learns, depends on its seed only, goes on where it was stopped, and refuses."""

import math

import pytest
import torch

from lowdim.errors import DataError, Diverged, RunError, ShapeError
from lowdim.incontext import LinearAttention, PromptTransformer, SubspaceTasks, optimal_weights, train

TASKS = SubspaceTasks(4, r=1, noise=0.1, seed=0)
FAST = {"steps": 60, "n": 8, "batch": 32, "lr": 1e-2}


def small():
    return PromptTransformer(4, n_positions=9, n_layer=1, n_head=1, n_embd=8, tokens="paired", seed=0)


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("explicit", [False, True])
def test_linear_attention_finds_the_best_weights(explicit):
    # In parts it is trained on prompts, merged on their moments.
    model = LinearAttention(4, merged=not explicit, scale=1.0, seed=0)
    history = train(model, TASKS, steps=1000, n=20, batch=256, lr=1e-2, schedule="cosine", clip=None)
    best = optimal_weights(TASKS.covariance, n=20, noise=0.1).float()
    assert float((model.effective_weights() - best).norm()) < 0.1 * float(best.norm())
    assert history.steps == 999
    assert history.reason == "steps"
    assert sum(history.objective[-100:]) < 0.5 * sum(history.objective[:20]) * 5


def test_a_transformer_learns():
    history = train(small(), TASKS, **{**FAST, "steps": 150})
    assert sum(history.objective[-20:]) < 0.9 * sum(history.objective[:20])
    assert history.residual == history.objective  # r = 1


def test_weights_depend_on_the_seed_only():
    first, second, other = small(), small(), small()
    train(first, TASKS, **FAST)
    torch.manual_seed(5)
    train(second, TASKS, **FAST)
    train(other, TASKS, **FAST, seed=1)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("make", [small, lambda: LinearAttention(4)], ids=["gpt2", "linear"])
def test_a_training_that_was_stopped_ends_with_the_same_weights(make, tmp_path):
    whole = make()
    told = train(whole, TASKS, **FAST)

    def stop(step, steps, loss):
        if step == 40:
            raise KeyboardInterrupt

    broken, resumed = make(), make()
    with pytest.raises(KeyboardInterrupt):
        train(broken, TASKS, **FAST, directory=tmp_path, save_every=20, callback=stop)
    # It was stopped before step 40 was kept.
    steps = []
    again = train(
        resumed,
        TASKS,
        **FAST,
        directory=tmp_path,
        save_every=20,
        callback=lambda *given: steps.append(given[0]),
    )
    assert min(steps) == 40
    assert torch.equal(weights(resumed), weights(whole))
    assert again.objective == told.objective
    done = make()
    assert train(done, TASKS, **FAST, directory=tmp_path).objective == told.objective
    assert torch.equal(weights(done), weights(whole))


def test_a_state_of_another_training_or_a_damaged_one_is_refused(tmp_path):
    train(small(), TASKS, **FAST, directory=tmp_path)
    with pytest.raises(DataError, match="holds the state of another training"):
        train(small(), TASKS, **{**FAST, "lr": 1e-3}, directory=tmp_path)
    with pytest.raises(DataError, match="another training"):
        train(small(), SubspaceTasks(4, r=1, seed=1), **FAST, directory=tmp_path)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match="damaged"):
        train(small(), TASKS, **FAST, directory=tmp_path)


def test_frozen_parameters_and_modes_stay():
    model = small().eval()
    model.read_in.requires_grad_(False)
    before = model.read_in.weight.clone()
    train(model, TASKS, **FAST)
    assert torch.equal(model.read_in.weight, before)
    assert not model.training


def test_the_rate_rises_and_falls():
    from lowdim.incontext.train import _Job

    def rates(schedule):
        model = LinearAttention(4)
        job = _Job(model, TASKS, list(model.parameters()), 8, 4, 100, 0.5, schedule, 0)
        return [job.rate(step) for step in range(100)]

    one, cosine, flat = rates("onecycle"), rates("cosine"), rates("constant")
    assert max(one) == pytest.approx(0.5, rel=0.01)
    assert one[0] < 0.06
    assert one.index(max(one)) in (9, 10)
    assert cosine == [pytest.approx(0.25 * (1 + math.cos(math.pi * step / 100))) for step in range(100)]
    assert one[-1] < 0.001
    assert set(flat) == {0.5}


def test_mixed_precision_trains_too():
    history = train(small(), TASKS, **FAST, bfloat16=True)
    assert all(map(math.isfinite, history.objective))


def test_divergence_is_told_with_its_step():
    model = small()
    model.read_out.weight.data.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"Lower lr=0\.01") as raised:
        train(model.eval(), TASKS, **FAST)
    assert raised.value.step == 1
    assert not model.training


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"steps": 0}, DataError, "steps=0"),
        ({"n": 0}, DataError, "n=0"),
        ({"batch": 0}, DataError, "batch=0"),
        ({"lr": 0.0}, DataError, "lr=0.0 must be a positive number"),
        ({"lr": math.inf}, DataError, "lr=inf"),
        ({"schedule": "linear"}, DataError, "schedule='linear'"),
        ({"clip": -1.0}, DataError, "clip=-1.0"),
        ({"seed": -1}, DataError, "seed=-1"),
        ({"n": 9}, DataError, "9 examples and the query exceeds n_positions=9 .* n <= 8, .*n_positions=10"),
    ],
)
def test_bad_options_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        train(small(), TASKS, **{**FAST, **options})


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="model has d=3, the tasks have d=4"):
        train(LinearAttention(3), TASKS, **FAST)
    with pytest.raises(DataError, match="needs a gradient"):
        train(LinearAttention(4).requires_grad_(False), TASKS, **FAST)
