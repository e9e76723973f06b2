"""regress: regression and classification with tensor-structured coefficients.

Problem: few samples, each an image, a volume or another array, and a number
or a class for each. One coefficient per place is too many. Equation: ``score
= b + <W, X>`` with ``W = sum_r w1_r o ... o wd_r`` (CP) or ``W = G x1 F1 ...
xd Fd`` (Tucker): R (n1 + ... + nd) numbers in place of n1 n2 ... nd. Input: X
(N, n1, ..., nd) and y. Output: scikit-learn estimators whose ``coef_`` is the
tensor W.

`regress` does it all, from files to a report. `TensorRegressor` and
`TensorClassifier` fit one model, `TensorRegressorCV` and `TensorClassifierCV`
choose rank and penalty.

Sources: Kwon, Sarwate, "Learning Predictors from Multidimensional Data with
Tensor Factorizations", Aresty Rutgers Undergraduate Research Journal 1(3),
2021; Zhou, Li, Zhu, "Tensor regression with applications in neuroimaging data
analysis", JASA 108, 2013.

Examples
--------
>>> import numpy as np
>>> from lowdim.regress import TensorRegressor
>>> X = np.random.default_rng(0).normal(size=(60, 8, 8))
>>> TensorRegressor(rank=1).fit(X, X[:, 2, 3]).coef_.shape
(8, 8)
"""

from lowdim.regress.classifier import TensorClassifier
from lowdim.regress.files import Collection, read_collection
from lowdim.regress.pipeline import regress
from lowdim.regress.regressor import TensorRegressor
from lowdim.regress.result import RegressResult
from lowdim.regress.search import TensorClassifierCV, TensorRegressorCV

__all__ = [
    "Collection",
    "RegressResult",
    "TensorClassifier",
    "TensorClassifierCV",
    "TensorRegressor",
    "TensorRegressorCV",
    "read_collection",
    "regress",
]
