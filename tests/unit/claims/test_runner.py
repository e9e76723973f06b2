"""The runner on tiny claims: statuses, merging, resuming."""

import json

import pytest

from lowdim.claims import Claim, Measurement, Unavailable, find, markdown, run
from lowdim.claims.runner import load
from lowdim.errors import DataError, MissingExtra, RunError


def make(name="fake.value", measure=lambda trial: 0.5, **options):
    return Claim(name, "A value is small.", "nobody", "none at all.", measure, **options)


def only(claim, **options):
    (result,) = run([claim], **options)
    return result


def test_the_mean_over_the_seeds_decides_and_the_spread_is_told():
    result = only(make(measure=lambda trial: float(trial.seed), seeds=(1, 2, 6), at_most=3.0))
    assert (result.status, result.value, result.values) == ("pass", 3.0, (1.0, 2.0, 6.0))
    assert result.spread == pytest.approx(7**0.5)
    assert only(make(measure=lambda trial: float(trial.seed), seeds=(1, 2, 6), at_most=2.9)).status == "short"


@pytest.mark.parametrize(
    ("options", "value", "status"),
    [
        ({"at_least": 1.0}, 1.0, "pass"),
        ({"at_least": 1.0}, 0.99, "short"),
        ({"at_most": 1.0}, 1.01, "short"),
        ({"at_least": 1.0}, float("nan"), "short"),
        ({"at_most": 1.0}, float("-inf"), "short"),
        ({}, 7.0, "reported"),
        ({}, float("nan"), "short"),
    ],
)
def test_status(options, value, status):
    assert only(make(measure=lambda trial: value, **options)).status == status


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("needs stsb/dev.csv: set LOWDIM_DATA"),
        MissingExtra("transformers", extra="transformers", purpose="x"),
    ],
)
def test_a_claim_that_cannot_be_measured_is_skipped_with_the_reason(error):
    def measure(trial):
        raise error

    result = only(make(measure=measure, at_most=1.0))
    assert (result.status, result.value, result.reason) == ("skipped", None, str(error))


def test_a_broken_claim_is_short_and_the_others_go_on():
    def measure(trial):
        return 1 / 0

    broken, whole = run([make("fake.broken", measure), make("fake.whole", at_most=1.0)])
    assert broken.status == "short"
    assert "ZeroDivisionError" in broken.reason
    assert whole.status == "pass"


def test_infinite_figures_and_details_are_stored_and_told(tmp_path):
    infinite = make("fake.infinite", lambda trial: Measurement(float("inf"), {"noise": float("inf")}))
    finite = make("fake.finite", lambda trial: Measurement(0.5, {"noise": [float("nan"), 1.0]}))
    run([infinite, finite], results=tmp_path)
    found = load(tmp_path)
    assert found["fake.infinite"].value is None
    assert found["fake.infinite"].reason == "measured inf: no finite figure"
    assert found["fake.finite"].details == ({"noise": [None, 1.0]},)


def test_a_claim_that_breaks_at_its_second_seed_has_no_value():
    def measure(trial):
        return 0.1 if trial.seed == 0 else 1 / 0

    result = only(make(measure=measure, seeds=(0, 1), at_most=1.0))
    assert (result.status, result.value, result.values) == ("short", None, (0.1,))


def test_an_interruption_is_not_swallowed(tmp_path):
    def interrupt(trial):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([make("fake.done"), make("fake.stopped", interrupt)], results=tmp_path)
    assert set(load(tmp_path)) == {"fake.done"}


def test_quick_takes_the_first_seed_and_tells_the_measurement():
    seen = []

    def measure(trial):
        seen.append((trial.seed, trial.quick))
        return 0.0

    assert only(make(measure=measure, seeds=(4, 5)), quick=True).seeds == (4,)
    assert seen == [(4, True)]


def test_resume_measures_only_what_is_missing(tmp_path):
    calls = []

    def measure(trial):
        calls.append(trial.seed)
        return 0.25

    claims = [make("fake.one", measure, seeds=(0, 1)), make("fake.two", measure)]
    run(claims[:1], results=tmp_path)
    first = (tmp_path / "fake.one.json").read_bytes()
    results = run(claims, results=tmp_path, resume=True)
    assert calls == [0, 1, 0]
    assert [result.value for result in results] == [0.25, 0.25]
    assert (tmp_path / "fake.one.json").read_bytes() == first


@pytest.mark.parametrize("change", [{"quick": True}, {"seeds": (0, 1)}, {"at_most": 0.1}])
def test_resume_measures_anew_what_was_declared_differently(tmp_path, change):
    calls = []

    def measure(trial):
        calls.append(trial.seed)
        return 0.25

    run([make(measure=measure)], results=tmp_path)
    quick = change.pop("quick", False)
    run([make(measure=measure, **change)], results=tmp_path, resume=True, quick=quick)
    assert len(calls) > 1


def test_resume_tries_again_what_was_skipped_or_broke(tmp_path):
    outcomes = iter([Unavailable("not yet"), ZeroDivisionError("oops"), None])

    def measure(trial):
        if (error := next(outcomes)) is not None:
            raise error
        return 0.0

    claim = make(measure=measure)
    statuses = [only(claim, results=tmp_path, resume=True).status for _ in range(3)]
    assert statuses == ["skipped", "short", "reported"]


def test_without_resume_a_claim_is_measured_again_and_others_stay(tmp_path):
    values = iter([1.0, 2.0])
    one, two = make("fake.one", lambda trial: next(values)), make("fake.two")
    run([one], results=tmp_path)
    run([two], results=tmp_path)
    run([one], results=tmp_path)
    stored = load(tmp_path)
    assert stored["fake.one"].value == 2.0
    assert stored["fake.two"].value == 0.5


def test_shared_experiments_run_once_per_run_and_survive_for_resume(tmp_path):
    calls = []

    def experiment():
        calls.append(1)
        return {"cosine": 0.9, "all": (1, 2)}

    def cosine(trial):
        return trial.share("experiment", experiment)["cosine"]

    def length(trial):
        return len(trial.share("experiment", experiment)["all"])

    claims = [make("fake.cosine", cosine), make("fake.length", length)]
    run(claims, results=tmp_path)
    assert len(calls) == 1
    (tmp_path / "fake.length.json").unlink()
    assert run(claims, results=tmp_path, resume=True)[1].value == 2
    assert len(calls) == 1
    run(claims, results=tmp_path)
    assert len(calls) == 2
    run(claims[:1], results=tmp_path, quick=True, resume=True)
    assert len(calls) == 3


def test_shared_experiments_differ_between_seeds_unless_told():
    def measure(trial):
        own = trial.share("own", lambda: trial.seed)
        common = trial.share("common", lambda: trial.seed, seeded=False)
        return 10 * own + common

    assert only(make(measure=measure, seeds=(1, 2))).values == (11.0, 21.0)


def test_resume_without_a_folder_is_refused():
    with pytest.raises(RunError, match="--resume needs"):
        run([make()], resume=True)


@pytest.mark.parametrize("content", ["{", '{"format": 99}', '{"format": 1, "id": "fake.value"}'])
def test_a_damaged_result_is_named(tmp_path, content):
    (tmp_path / "fake.value.json").write_text(content)
    with pytest.raises(RunError, match=r"fake\.value\.json"):
        load(tmp_path)


def test_the_stored_result_says_what_where_and_how(tmp_path):
    def measure(trial):
        return Measurement(0.5, {"rank": 8})

    only(make(measure=measure, paper="0.4", at_most=0.6, seeds=(0, 1)), results=tmp_path)
    stored = json.loads((tmp_path / "fake.value.json").read_text())
    assert stored["threshold"] == "<= 0.6"
    assert stored["paper"] == "0.4"
    assert stored["details"] == [{"rank": 8}, {"rank": 8}]
    assert stored["machine"]["cores"] >= 1
    assert "torch" in stored["machine"]["versions"]


def test_the_table_shows_every_claim_and_counts_them(tmp_path):
    def missing(trial):
        raise Unavailable("no data here")

    claims = [
        make("fake.good", lambda trial: 0.25 + trial.seed / 100, at_most=1.0, seeds=(0, 1), paper="a|b"),
        make("fake.bad", at_most=0.1),
        make("fake.absent", missing, at_most=1.0),
        make("other.never"),
    ]
    run(claims[:3], results=tmp_path)
    page = markdown(claims, results=load(tmp_path))
    assert "| `fake.good` | A value is small. | pass | 0.255 ± 0.0071 | <= 1 | a\\|b |" in page
    assert "| `fake.bad` | A value is small. | short | 0.5 | <= 0.1 | none |" in page
    assert "**skipped**: no data here." in page
    assert "1 pass, 1 short, 0 reported, 1 skipped, 1 not measured" in page
    assert "## other" in page
    assert "no evidence" not in page
    run(claims[:1], results=tmp_path, quick=True)
    assert "pass (quick)" in markdown(claims, results=load(tmp_path))


def test_an_experiment_cut_down_by_quick_is_reported_and_not_judged():
    def measure(trial):
        return Measurement(2.0, judged=not trial.quick)

    claim = make(measure=measure, at_most=1.0)
    assert only(claim).status == "short"
    assert only(claim, quick=True).status == "reported"
    broken = make(measure=lambda trial: Measurement(float("nan"), judged=False), at_most=1.0)
    assert only(broken).status == "short"


def test_find_selects_and_refuses():
    claims = [make("fake.one"), make("fake.two"), make("other.one")]
    assert [claim.id for claim in find(["other.one", "fake.two"], among=claims)] == ["fake.two", "other.one"]
    assert [claim.id for claim in find(system="fake", among=claims)] == ["fake.one", "fake.two"]
    assert [claim.id for claim in find(["*.one"], among=claims)] == ["fake.one", "other.one"]
    with pytest.raises(DataError, match=r"fake\.three"):
        find(["fake.three"], among=claims)
    with pytest.raises(DataError, match="no system 'radar'"):
        find(system="radar", among=claims)
    with pytest.raises(DataError, match="none of the named"):
        find(["fake.one"], system="other", among=claims)


@pytest.mark.parametrize(
    "options",
    [{"name": "no-system"}, {"name": "Fake.value"}, {"at_least": 1.0, "at_most": 2.0}, {"seeds": ()}],
)
def test_a_malformed_declaration_is_refused(options):
    with pytest.raises(DataError):
        make(**options)
