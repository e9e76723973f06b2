"""The page of `lowdim policy` as a reader opens it: headless Chromium, no network."""

import copy

import pytest

from lowdim.report import policy_page

pytestmark = [pytest.mark.browser]

HOSTILE = "</script><script>document.title='run'</script>"


def report(method="hybrid"):
    """What a run of twelve steps leaves."""
    pair = method == "hybrid"
    models = ("small", "large") if pair else ("small",)
    rows = [
        {
            **{"phase": "train", "step": step, "model": model, "accuracy": 0.1 + 0.02 * step, "error": 0.01},
            **{"greedy": 0.4, "best_of": 0.6, "truncated": 0.0, "length": 3.2, "samples": 4},
        }
        for step in (0, 6, 12)
        for model in models
    ]
    logged = {
        "reward": 0.4,
        "entropy": 0.9,
        "hybrid/frac_groups_flat": 0.2,
        "hybrid/frac_groups_all_zero": 0.1,
    }
    if pair:
        rows.append({**rows[-1], "phase": "continue", "step": 4, "accuracy": 0.6})
        logged |= {"hybrid/ess": 0.7, "large/ratio/max": 9.0, "large/ratio/mean": 1.0, "large/ratio/p99": 2.0}
        logged |= {"large/clip_ratio/low_mean": 0.1, "large/clip_ratio/high_mean": 0.2, "large/entropy": 0.8}
    work = ("generate", "score_small", "score_large", "update_small", "update_large")
    cost = {"part": "train", "share": 0.2, "tokens": 1000, "completion_tokens": 400, "flops": 2e9}
    sample = {"row": 0, "prompt": "12+30=", "answer": "42", "reward": 0.0, "completion": HOSTILE}
    return {
        "settings": {"method": method, "small": HOSTILE, "rewards": ["exact"], "seed": 0},
        "sentence": "A finding.",
        "steps": {"train": 12, "continue": 4} if pair else {"train": 12},
        "prompts": {"train": 90, "evaluate": 10},
        "evaluations": rows,
        "metrics": [{"phase": "train", "step": step, **logged} for step in range(1, 13)],
        "ledger": [{**cost, "phase": name, "seconds": 1.0} for name in (work if pair else work[:1])],
        "samples": [
            {**sample, "model": model, "when": when, "sample": kind}
            for model in models
            for when in ("before", "after")
            for kind in (0, "greedy")
        ],
        "notes": ["answers were found"],
        "output": "RUN",
        "command": "lowdim policy train ...",
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    stopped = {**copy.deepcopy(report("grpo")), "stopped": "it fell", "evaluations": [], "samples": []}
    return {
        "pair": policy_page(report(), against=report("grpo")).write(folder / "pair.html"),
        "alone": policy_page(stopped).write(folder / "alone.html"),
    }


def test_a_reader_sees_learning_cost_distance_and_completions(opened, pages):
    page = opened(pages["pair"])
    assert page.title().startswith("Hybrid-GRPO of language models")
    assert page.locator(".plot figcaption").all_inner_texts() == [
        "Accuracy over the steps of training",
        "Reward of the rollouts that were trained on",
        "Seconds by kind of work",
        "Floating-point work by kind",
        "Effective sample size, and tokens whose ratio was clipped",
        "Ratios of the large to the small model's probability of a token",
        "Prompts without anything to compare",
        "Entropy of the models on the rollouts",
    ]
    # Small, large, and the run beside: three lines of points; one bar of each work, two runs.
    assert page.locator(".plot").first.locator(".scatterlayer .trace").count() == 3
    assert page.get_by_text("The paper calls this CoDistill-GRPO").count() == 1
    assert page.locator("td", has_text="</script>").count() >= 4, "a completion is shown, not run"
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"


def test_a_run_of_one_model_that_was_stopped(opened, pages):
    page = opened(pages["alone"])
    assert page.title().startswith("GRPO of language models")
    assert page.get_by_text("The run was stopped: it fell.").count() == 1
    assert "Accuracy over the steps of training" not in page.locator(".plot figcaption").all_inner_texts()


@pytest.mark.parametrize("name", ["pair", "alone"])
def test_a_phone_shows_the_page_without_sideways_scrolling(opened, pages, name):
    page = opened(pages[name], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
