"""Where claims look for data, and the paired bootstrap."""

import sys

import numpy as np
import pytest

import lowdim
from lowdim.claims import Trial, Unavailable, data_folder, paired_bootstrap
from lowdim.claims.store import Store
from lowdim.errors import DataError, ShapeError


@pytest.fixture
def trial():
    return Trial(seed=0, quick=False, store=Store())


def test_the_environment_names_the_data_folder(monkeypatch, tmp_path, trial):
    monkeypatch.setenv("LOWDIM_DATA", str(tmp_path))
    (tmp_path / "here.txt").write_text("x")
    assert data_folder() == tmp_path
    assert trial.data("here.txt") == tmp_path / "here.txt"
    with pytest.raises(Unavailable, match=r"absent\.txt, which is not in the data folder"):
        trial.data("absent.txt")


def test_a_wrong_folder_is_an_error_and_not_a_skip(monkeypatch, tmp_path):
    monkeypatch.setenv("LOWDIM_DATA", str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="LOWDIM_DATA"):
        data_folder()


def test_a_checkout_finds_the_folder_beside_it_and_an_installed_package_none(monkeypatch, tmp_path, trial):
    monkeypatch.delenv("LOWDIM_DATA", raising=False)
    checkout = tmp_path / "checkout"
    monkeypatch.setattr(lowdim, "__file__", str(checkout / "src" / "lowdim" / "__init__.py"))
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert data_folder() is None  # no pyproject.toml: this is no checkout
    with pytest.raises(Unavailable, match="set LOWDIM_DATA"):
        trial.data("stsb/dev.csv")
    checkout.mkdir()
    (checkout / "pyproject.toml").write_text("")
    assert data_folder() == tmp_path / "shared" / "data"


def test_a_clear_gap_is_told_from_an_unclear_one():
    generator = np.random.default_rng(0)
    common = generator.normal(size=400)
    noise = 0.01 * generator.normal(size=400)
    better = paired_bootstrap(common + 0.01 + noise, other=common, draws=500)
    assert better.low < better.value < better.high
    assert better.clear
    assert better.value == pytest.approx(0.01, abs=0.002)
    assert not paired_bootstrap(common + noise - noise.mean(), other=common, draws=500).clear


def test_the_statistic_may_need_whole_rows():
    rows = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.5]])

    def correlation(sample):
        return float(np.corrcoef(sample.T + 1e-9 * np.arange(len(sample)))[0, 1])

    gap = paired_bootstrap(rows, other=rows * [1.0, -1.0], statistic=correlation, draws=50)
    assert gap.value == pytest.approx(2 * correlation(rows), abs=1e-6)


def test_the_bootstrap_is_repeatable_and_checks_its_input():
    a, b = np.arange(10.0), np.arange(10.0)[::-1]
    assert paired_bootstrap(a, other=b, seed=3) == paired_bootstrap(a, other=b, seed=3)
    with pytest.raises(ShapeError):
        paired_bootstrap(a, other=b[:5])
    with pytest.raises(DataError):
        paired_bootstrap(a, other=b, level=1.0)


def test_a_key_that_is_no_file_name_is_refused():
    with pytest.raises(DataError, match="key"):
        Store().get("../escape", lambda: 1)


def test_listing_the_claims_does_not_import_torch():
    import subprocess

    code = "import sys, lowdim.claims as c; c.registered(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
