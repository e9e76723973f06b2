"""`study` measures, saves, loads, goes on where it was stopped, and refuses before work is spent."""

import json

import pandas as pd
import pytest
import torch

from lowdim.errors import DataError, RankError, RunError
from lowdim.incontext import StudyResult, SubspaceTasks, pipeline, risk, study
from lowdim.incontext.words import sentence

TINY = {
    **{"d": 4, "r": 1, "n": 5, "angles_deg": [0, 90], "prompts": 20, "baselines": ["zero"], "steps": 30},
    "batch": 8,
}
SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 8}
OPTIMAL = {"d": 6, "r": 2, "n": 30, "angles_deg": [0, 45, 90], "prompts": 50, "noise": 0.1}


def lasting(report):
    return {key: value for key, value in report.items() if key not in ("created", "seconds")}


def test_the_best_linear_attention_stands_beside_theory_and_baselines():
    result = study("optimal", **OPTIMAL, ranks=[0, 2, 4], adapt_steps=60, context_lengths=[10, 30])
    theory = result.risks[(result.risks["predictor"] == "theory") & (result.risks["n"] == 30)]
    tasks, W = SubspaceTasks(6, r=2, noise=0.1, seed=0), result.model().W.detach()
    wanted = [risk(W, covariance=tasks.rotated(t).covariance, n=30, noise=0.1) for t in (0, 45, 90)]
    assert theory["risk"].tolist() == pytest.approx(wanted)
    assert set(result.risks["predictor"]) == {"model", "theory", "zero", "ridge", "oracle"}
    assert torch.equal(result.weights["0/bases"], tasks.bases)
    closed = result.adapters[result.adapters["method"] == "closed form"]
    assert closed["risk"].tolist()[0] == pytest.approx(wanted[1])
    trained = result.adapters[result.adapters["method"] == "trained"]
    assert (trained["risk"].values >= closed["risk"].values - 1e-9).all()
    assert result.summary() == result.report["sentence"]
    assert f"{wanted[0] / 2:.1%}" in result.summary()
    assert f"{wanted[2] / 2:.1%} at 90 degrees" in result.summary()


@pytest.mark.parametrize("model", ["linear", "gpt2"])
def test_trained_models_are_saved_and_loaded(model, tmp_path):
    result = study(
        model,
        **TINY,
        **(SIZES if model == "gpt2" else {}),
        ranks=[1],
        adapt_steps=5,
        seeds=2,
        seed=3,
        output=tmp_path,
    )
    again = StudyResult.load(tmp_path)
    pd.testing.assert_frame_equal(again.risks, result.risks, check_dtype=False)
    pd.testing.assert_frame_equal(again.adapters, result.adapters, check_dtype=False)
    assert again.weights.keys() == result.weights.keys()
    assert all(torch.equal(again.weights[name], value) for name, value in result.weights.items())
    assert sorted(set(again.risks["seed"])) == [3, 4]
    prompt = SubspaceTasks(4, r=1, seed=3, dtype=torch.float32).sample(5, n=5, seed=0)
    first, second = result.model(seed=4), again.model(seed=4)
    assert torch.equal(first.errors(prompt), second.errors(prompt))
    assert not torch.equal(first.errors(prompt), again.model().errors(prompt))
    with pytest.raises(DataError, match=r"no seed 0. Use one of \[3, 4\]"):
        again.model(seed=0)
    assert len(result.report["losses"]["3"]) == 30
    assert {"risks.csv", "adapters.csv", "weights.safetensors", "report.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize("phase", ["measure", "adapt"])
def test_a_study_that_was_stopped_ends_with_the_same_result(phase, tmp_path, monkeypatch):
    whole = study("gpt2", **TINY, **SIZES, ranks=[1, 2], adapt_steps=5)

    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline._Job, phase, stop)
        with pytest.raises(KeyboardInterrupt):
            study("gpt2", **TINY, **SIZES, ranks=[1, 2], adapt_steps=5, output=tmp_path)
    assert not (tmp_path / "report.json").exists()
    with pytest.raises(RunError, match="unfinished run"):
        study("gpt2", **TINY, **SIZES, ranks=[1, 2], adapt_steps=5, output=tmp_path)
    told = []
    resumed = study(
        "gpt2",
        **TINY,
        **SIZES,
        ranks=[1, 2],
        adapt_steps=5,
        output=tmp_path,
        resume=True,
        progress=lambda *given: told.append(given),
    )
    assert not any(name == "train" for name, *_ in told)  # its state was kept
    assert ("measure", 1, 1, "done before") in told or phase == "measure"
    assert lasting(resumed.report) == lasting(whole.report)
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())
    finished = study("gpt2", **TINY, **SIZES, ranks=[1, 2], adapt_steps=5, output=tmp_path, resume=True)
    assert finished.report == json.loads((tmp_path / "report.json").read_text())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"model": "human"}, DataError, "model='human' is unknown. Use one of optimal, linear, gpt2"),
        ({"d": 3}, RankError, r"2 r <= d, got r=2 and d=3"),
        ({"r": 0}, DataError, "r=0"),
        ({"subspaces": 0}, DataError, "subspaces=0"),
        ({"noise": -0.1}, DataError, "noise=-0.1"),
        ({"angles_deg": [95]}, DataError, r"must lie in \[0, 90\] degrees"),
        ({"angles_deg": []}, DataError, "at least one angle"),
        ({"adapt_deg": -5}, DataError, "must lie in"),
        ({"context_lengths": []}, DataError, "at least one angle and one context length"),
        ({"context_lengths": [0]}, DataError, "context_lengths=0"),
        ({"n": 0}, DataError, "n=0"),
        ({"ranks": [7]}, RankError, "rank 7 of an adapter must be an integer from 0 to 6, d"),
        ({"model": "gpt2", "ranks": [0]}, RankError, "from 1 to 64, the width"),
        ({"model": "gpt2", "n_embd": 30}, DataError, "n_embd=30 is not divisible by n_head=4"),
        ({"model": "gpt2", "n": 8, "context_lengths": [9]}, DataError, "exceeds n_positions=9"),
        ({"model": "linear", "steps": 0}, DataError, "steps=0"),
        ({"model": "linear", "lr": -1.0}, DataError, "lr=-1.0"),
        ({"steps": 100}, DataError, "steps=100 is of a training, and model='optimal'"),
        ({"model": "linear", "tokens": "alternating"}, DataError, "tokens='alternating' is of a transformer"),
        ({"family": "relu"}, DataError, "model='optimal' is for linear functions"),
        ({"family": "deep"}, DataError, "family='deep' is unknown"),
        ({"toward": "up"}, DataError, "toward='up' is unknown"),
        ({"toward": "inside"}, RankError, "span no 2 directions"),
        ({"baselines": ["luck"]}, DataError, "baseline 'luck' is unknown"),
        ({"prompts": 0}, DataError, "prompts=0"),
        ({"seeds": 0}, DataError, "seeds=0"),
        ({"resume": True}, RunError, "need the output folder"),
    ],
)
def test_bad_options_are_refused(options, error, text, tmp_path):
    given = {"model": "optimal", "d": 6, "r": 2, **options}
    if "resume" not in options:
        given["output"] = tmp_path / "out"
    with pytest.raises(error, match=text):
        study(given.pop("model"), **given)
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_no_study_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"holds no report\.json"):
        StudyResult.load(tmp_path)
    for text in ('{"format": 9}', '{"format": 1, "risks": []}', "[]"):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(RunError, match="no report of `lowdim incontext run` in format 1"):
            StudyResult.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "rows", "wanted"),
    [
        (
            {"model": "gpt2", "subspaces": 1, "r": 1},
            [("model", 0, 0.1), ("model", 90, 1.4), ("zero", 90, 1.0)],
            "The transformer for tasks in one line leaves 5.0% of the variance of labels unexplained at 0 "
            "degrees from the first, and 70.0% at 90 degrees (9 examples).",
        ),
        (
            {"model": "optimal", "subspaces": 2, "r": 3},
            [("model", 0, 0.4), ("theory", 0, 0.2)],
            "The best linear attention for tasks in 2 subspaces of 3 dimensions each leaves 10.0% of the "
            "variance of labels unexplained (9 examples).",
        ),
    ],
)
def test_the_finding_in_a_sentence(settings, rows, wanted):
    risks = [{"predictor": p, "angle_deg": angle, "n": 9, "risk": value} for p, angle, value in rows]
    assert sentence({"settings": settings, "variance": 2.0, "risks": risks}) == wanted
