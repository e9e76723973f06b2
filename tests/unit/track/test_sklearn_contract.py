"""scikit-learn's own checks of the estimators of this room, with what is meant to differ, and why."""

import pytest
from sklearn.utils.estimator_checks import check_estimator

from lowdim.track.grasta import Grasta
from lowdim.track.grouse import Grouse
from lowdim.track.petrels import Petrels
from lowdim.track.window import WindowSubspace

MEANT = {
    "check_complex_data": "complex numbers are supported, not refused",
    "check_dtype_object": "what holds no numbers is a DataError (a ValueError), not a TypeError",
}

# Estimator, and the checks that it fails on purpose: name -> reason.
ESTIMATORS = [
    (Grouse(), MEANT),
    (Petrels(), MEANT),
    (Grasta(), MEANT),
    (WindowSubspace(window=5), MEANT),
]


@pytest.mark.parametrize(
    ("estimator", "expected"), ESTIMATORS, ids=[type(estimator).__name__ for estimator, _ in ESTIMATORS]
)
def test_contract(estimator, expected):
    results = check_estimator(estimator, expected_failed_checks=expected, on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed
    # An expected failure that passes is out of date.
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(expected)
