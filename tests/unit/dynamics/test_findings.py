"""What a watched training tells: where it stands, and the sentences with the numbers they rest on."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from lowdim.dynamics.findings import findings
from lowdim.dynamics.record import COLUMNS, POINTS, record
from lowdim.dynamics.runfile import DynamicsRun
from lowdim.dynamics.standing import crossing, flip, state

HEADER = {"optimizer": "SGD", "lr": 0.2, "label": "sharpness", "threshold_rule": "2 / lr"}


def run_of(every=100, headers=(HEADER,), lost=False, **metrics):
    """A run with the given values of metrics, None where one was not measured."""
    columns = {f"dyn/{name.replace('__', '/')}": values for name, values in metrics.items()}
    count = len(next(iter(columns.values()))) if columns else 0
    steps = pd.Index(range(every, every * count + 1, every), name="step")
    table = pd.DataFrame(columns, index=steps, dtype=float)
    table.insert(0, "time", np.arange(1.0, count + 1))
    return DynamicsRun("run.jsonl", tuple(headers), table, lost=lost)


def told(run, topic):
    return [finding for finding in findings(run) if finding.topic == topic]


@pytest.mark.parametrize(
    ("metrics", "name", "sentence"),
    [
        ({}, "waiting", "No report yet."),
        ({"loss": [1.0]}, "unknown", "Neither sharpness nor alternation was measured"),
        ({"sharpness_ratio": [0.5]}, "below", "Below the edge: the sharpness is 0.5 of what"),
        ({"sharpness_ratio": [0.5], "alternation": [-0.9]}, "below", "and steps point the same way."),
        ({"sharpness_ratio": [0.5], "alternation": [0.1]}, "below", "can bear."),
        ({"sharpness_ratio": [0.85]}, "near", "Near the edge: the sharpness is 0.85"),
        ({"sharpness_ratio": [0.95]}, "edge", "At the edge: the sharpness is 0.95 of its threshold."),
        ({"sharpness_ratio": [1.4]}, "above", "Above the edge: the sharpness is 1.4 times"),
        (
            {"sharpness_ratio": [1.02], "period": [2], "osc_rank": [1]},
            "oscillating",
            "At the edge: oscillates with period 2 in 1 direction; sharpness 1.02 of the threshold.",
        ),
        (
            {"sharpness_ratio": [1.2], "period": [4], "osc_rank": [3]},
            "oscillating",
            "Above the edge: oscillates with period 4 in 3 directions",
        ),
        (
            {"sharpness_ratio": [0.95], "alternation": [0.97], "period": [0], "osc_rank": [3]},
            "oscillating",
            "At the edge: successive steps undo each other in 3 directions (alternation +0.97)",
        ),
        ({"sharpness_ratio": [0.4], "period": [2]}, "below", "can bear; oscillates with period 2."),
        ({"alternation": [0.9]}, "oscillating", "At or beyond the edge, as far as steps tell"),
        ({"alternation": [-0.9]}, "below", "Nothing alternates: below the edge, as far as steps tell."),
        ({"sharpness_ratio": [0.6, None], "loss": [1.0, 0.9]}, "below", "the sharpness is 0.6"),
        (
            {"sharpness_ratio": [1.6, None], "loss": [1.0, None], "alternation": [0, 0.9], "lost": True},
            "diverged",
            "Diverged: the loss is not finite any more after step 100.",
        ),
        ({"loss": [None], "erank__a": [None], "lost": True}, "diverged", "any more in the first report."),
        # The loss of a step that a GradScaler skips, or one that was not handed over, is no divergence.
        ({"sharpness_ratio": [0.3, 0.6], "loss": [1.0, None], "lost": True}, "below", "sharpness is 0.6"),
        ({"sharpness_ratio": [0.3, None], "loss": [1.0, None]}, "below", "the sharpness is 0.3"),
    ],
)
def test_where_a_training_stands(metrics, name, sentence):
    found = state(run_of(**metrics))
    assert found.name == name
    assert sentence in found.sentence


def test_the_crossing_lies_between_two_reports():
    assert crossing(run_of(sharpness_ratio=[0.5, None, 0.99, 1.01, 0.9, 1.2])) == (300, 400)
    assert crossing(run_of(sharpness_ratio=[1.1, 0.9])) == (None, 100)
    assert crossing(run_of(sharpness_ratio=[0.5, 1.0])) is None
    assert crossing(run_of(loss=[1.0])) is None


def test_the_flip_lies_between_going_on_and_undoing():
    assert flip(run_of(alternation=[-1, -0.9, -0.1, 0.3, 0.9, -0.2, 0.9])) == (300, 500)
    assert flip(run_of(alternation=[0.2, 0.9])) == (None, 200)
    assert flip(run_of(alternation=[-0.3, 0.5])) is None


def test_a_sharpness_that_hovers_is_told_with_its_numbers():
    ratio = [0.5, 0.8, 1.05, 1.14, *[1.0, 1.02] * 6]
    first, then = told(run_of(sharpness_ratio=ratio, threshold=[10.0] * 16), "Sharpness")
    assert (
        first.sentence == "The sharpness first passes its threshold (2 / lr = 10) between steps 200 and 300."
    )
    assert first.numbers["crossed_at"] == 300
    assert "hovers at the edge: 1.010 of the threshold on average in the last 10 reports" in then.sentence
    assert "(1.000 to 1.020), 1.140 at most" in then.sentence
    assert then.numbers["mean"] == pytest.approx(1.01)
    assert then.numbers["hovers"] is True


@pytest.mark.parametrize(
    ("level", "words"), [(0.5, "come down from the edge"), (1.3, "stays above the edge")]
)
def test_a_sharpness_that_does_not_hover_is_told_so(level, words):
    _, then = told(run_of(sharpness_ratio=[0.9, 1.1, *[level] * 10]), "Sharpness")
    assert words in then.sentence
    assert then.numbers["hovers"] is False


def test_a_sharpness_that_never_arrives():
    (finding,) = told(run_of(sharpness_ratio=[0.59, 0.77, 0.766], threshold=[10, 20, 30]), "Sharpness")
    assert finding.sentence == (
        "The sharpness never passes its threshold (2 / lr): it starts at 0.59 of it, reaches 0.77 at most "
        "(step 200) and ends at 0.766."
    )
    assert finding.numbers["crossed_at"] is None


def test_the_sharpness_is_called_what_the_header_calls_it():
    header = {"label": "preconditioned sharpness", "threshold_rule": "38 / lr"}
    (finding,) = told(run_of(headers=(HEADER, header), sharpness_ratio=[1.5, 1.2]), "Sharpness")
    assert finding.sentence.startswith(
        "The preconditioned sharpness is above its threshold (38 / lr) from the"
    )
    assert told(run_of(headers=(), sharpness_ratio=[0.5]), "Sharpness")


def test_negative_curvature_is_a_bound():
    finding = told(run_of(sharpness_ratio=[0.5, 0.6], lowest_curvature=[-0.1, -0.4]), "Sharpness")[-1]
    assert "most negative curvature seen is -0.4, at step 200" in finding.sentence
    assert finding.numbers == {"lowest": -0.4, "at": 200}
    assert len(told(run_of(sharpness_ratio=[0.5], lowest_curvature=[0.1]), "Sharpness")) == 1


def test_an_alarm_far_below_the_edge_is_none_of_the_edge():
    far = run_of(alternation=[-0.6, -0.6], sharpness_ratio=[0.15, 0.17], edge=[0, 1])
    assert "0.17 of its threshold there, so this is not the edge" in told(far, "Oscillation")[-1].sentence
    near = run_of(alternation=[-0.6, 0.9], sharpness_ratio=[0.8, 0.98], edge=[0, 1])
    assert "not the edge" not in told(near, "Oscillation")[-1].sentence


def test_alternation_and_sharpness_are_compared():
    run = run_of(
        alternation=[-1, -1, -0.5, 0.9, 1], sharpness_ratio=[0.5, 0.9, 1.1, 1.0, 1.0], edge=[0, 0, 0, 1, 1]
    )
    begins, after, alarm = told(run, "Oscillation")
    assert "undo each other between steps 300 and 400" in begins.sentence
    assert "-0.83 on average before, +0.95 after" in begins.sentence
    assert begins.numbers["flipped_at"] == 400
    assert after.sentence == "That is 100 steps after the sharpness is first seen above its threshold."
    assert after.numbers == {"steps_after_crossing": 100}
    assert alarm.numbers == {"alarm_at": 400}
    early = run_of(alternation=[-1, 0.9, 1, 1], sharpness_ratio=[0.5, 0.9, 1.1, 1.0])
    assert "100 steps before" in told(early, "Oscillation")[1].sentence
    same = run_of(alternation=[-1, 0.9], sharpness_ratio=[0.5, 1.1])
    assert "In the same report" in told(same, "Oscillation")[1].sentence


def test_no_oscillation_and_one_from_the_start():
    (finding,) = told(run_of(alternation=[-0.9, -0.2]), "Oscillation")
    assert finding.sentence == "Successive steps do not undo each other (alternation score -0.20 at most)."
    (finding,) = told(run_of(alternation=[-0.9, 0.13], sharpness_ratio=[0.9, 1.01]), "Oscillation")
    assert finding.sentence.endswith("at most); with momentum they may oscillate all the same.")
    (finding,) = told(run_of(alternation=[0.9, 0.8]), "Oscillation")
    assert "from the start (alternation score +0.90)" in finding.sentence


@pytest.mark.parametrize(
    ("period", "rank", "words", "numbers"),
    [
        (
            [2] * 9 + [0],
            [2] * 10,
            "after 2 steps, in 9 of the last 10 reports, and move in 2 directions.",
            (2, 0.9, 2),
        ),
        ([0] * 12, [0] * 12, "no earlier state in 10 of the last 10 reports: they move on, or", (0, 1.0, 0)),
        ([0] * 9, [0] * 4 + [3] * 5, "they move on while they oscillate in 3 directions.", (0, 1.0, 3)),
        ([1, 1], [0, 0], "stand still in 2 of the last 2", (1, 1.0, 0)),
        ([4], None, "after 4 steps, in 1 of the last 1 reports.", (4, 1.0, None)),
    ],
)
def test_periods(period, rank, words, numbers):
    metrics = {"period": period} | ({"osc_rank": rank} if rank else {})
    (finding,) = told(run_of(**metrics), "Oscillation")
    assert words in finding.sentence
    assert tuple(finding.numbers[key] for key in ("period", "share", "osc_rank")) == numbers


def test_the_loss_and_the_learning_rate():
    falls, rate = told(run_of(loss=[2.0, 1.0, 1.5, 0.5, 0.8], lr=[0.1, 0.1, 0.05, 0.05, 0.0]), "Loss")
    assert falls.sentence == (
        "The loss went from 2 to 0.8 in 400 steps, and was 0.5 at step 400; it rose in 2 of the 4 intervals "
        "between reports."
    )
    assert rate.sentence == "The learning rate went from 0.1 to 0, and the threshold with it."
    (only,) = told(run_of(loss=[2.0, 1.0], lr=[0.1, 0.1]), "Loss")
    assert only.sentence == "The loss went from 2 to 1 in 100 steps."
    assert told(run_of(loss=[2.0]), "Loss") == []


def test_layers_are_ranked_by_what_they_lost_and_how_far_they_turned():
    ranks = {f"erank__l{i}": [10.0, 10.0 - i] for i in range(5)}
    lost, turned = told(run_of(**ranks, **{f"drift_deg__l{i}": [0.0, 9.0 * i] for i in range(5)}), "Layers")
    assert lost.sentence == (
        "Most effective rank was lost by l4 (10 to 6), l3 (10 to 7) and l2 (10 to 8); the median layer lost "
        "20 %."
    )
    assert list(lost.numbers["most"]) == ["l4", "l3", "l2"]
    assert lost.numbers["most"]["l4"] == pytest.approx(-0.4)
    assert "turned most in l4 (36.0), l3 (27.0) and l2 (18.0), in degrees" in turned.sentence
    assert turned.sentence.endswith("the median layer by 18.0.")
    (kept,) = told(run_of(erank__a=[10.0, 9.9]), "Layers")
    assert kept.sentence == "No layer lost more than 2 % of the effective rank of its weights."


def test_a_layer_that_appears_late_is_compared_with_its_own_first_value():
    (lost,) = told(run_of(erank__a=[None, 8.0, 4.0], erank__b=[5.0, 5.0, None]), "Layers")
    assert lost.numbers["most"] == {"a": pytest.approx(-0.5)}


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ([2.4, 0.1], "shrinks from 2.4 to 0.1, by a factor of 24"),
        ([2.4, 0.0], "shrinks from 2.4 to 0."),
        ([2.4, 2.41], "is kept, as gradient flow would: 2.41"),
        ([0.4, 2.0], "grows from 0.4 to 2"),
    ],
)
def test_balancing_gaps(gap, words):
    (finding,) = told(run_of(balance_gap__mlp=gap), "Balance")
    assert f"The balancing gap of mlp {words}" in finding.sentence


def test_many_chains_are_not_all_told():
    gaps = {f"balance_gap__c{i}": [2.0, 1.0] for i in range(5)}
    sentences = [finding.sentence for finding in told(run_of(**gaps), "Balance")]
    assert len(sentences) == 4
    assert sentences[-1] == "2 more chains are in the figure."


def test_what_the_probes_took():
    (finding,) = told(run_of(seconds=[0.1, 0.1], hvps=[3, 4]), "Probes")
    assert finding.sentence == (
        "The probes took 0.2 s of 2 s (10 %); a report took 3.5 Hessian products on average."
    )
    assert finding.numbers["products"] == 7
    assert finding.numbers["share"] == pytest.approx(0.1)
    (finding,) = told(run_of(seconds=[0.4, 0.4]), "Probes")
    assert finding.sentence.startswith("The probes took 0.8 s of 2 s (40 %); fewer reports (a larger every")
    (finding,) = told(run_of(seconds=[100, 25.0]), "Probes")
    assert finding.sentence == "The probes took 2 min 5 s."


def test_nothing_is_told_of_what_was_not_measured():
    assert findings(run_of()) == []
    assert findings(run_of(lr=[0.1, 0.1])) == []


def test_the_record_is_json_and_thinned():
    count = POINTS + 1000
    run = run_of(
        loss=[math.nan, *np.geomspace(1, 0.1, count - 1)],
        period=[2.0] * count,
        erank__a=np.linspace(9, 8, count),
        drift_deg__a=np.linspace(0, 40, count),
        balance_gap__c=[1.0] * count,
    )
    found = json.loads(json.dumps(record(run), allow_nan=False))
    assert found["reports"] == count
    assert len(found["series"]["step"]) == len(found["series"]["loss"]) == POINTS
    assert found["series"]["step"][0] == 100
    assert found["series"]["step"][-1] == 100 * count
    assert found["series"]["loss"][0] is None
    assert "sharpness" not in found["series"]
    family = found["families"]["erank"]
    assert family["names"] == ["a"]
    assert len(family["steps"]) == len(family["values"][0]) == COLUMNS
    assert set(found["families"]) == {"erank", "drift_deg", "balance_gap"}
    assert found["layers"] == [{"layer": "a", "erank_first": 9.0, "erank_last": 8.0, "drift_deg_last": 40.0}]
    assert found["last"]["loss"] == {"value": pytest.approx(0.1), "step": 100 * count}


def test_the_record_of_a_run_without_reports():
    found = record(run_of())
    assert found["state"]["name"] == "waiting"
    assert found["series"] == {"step": [], "time": []}
    assert found["families"] == {}
