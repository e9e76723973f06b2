"""scikit-learn's own checks of the estimators of this room: all pass."""

import pytest
from sklearn.utils.estimator_checks import check_estimator

from lowdim.regress import TensorClassifier, TensorClassifierCV, TensorRegressor, TensorRegressorCV

ESTIMATORS = [
    TensorRegressor(),
    TensorRegressor(decomposition="tucker"),
    TensorRegressorCV(),
    TensorClassifier(),
    TensorClassifier(loss="squared_hinge"),
    TensorClassifierCV(),
    # Weighted and repeated samples shall agree to seven digits, so the search must go that far.
    TensorClassifierCV(loss="squared_hinge", tol=1e-10),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_contract(estimator):
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    assert {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"} == {}
    assert sum(r["status"] == "passed" for r in results) > 50
