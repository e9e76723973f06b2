"""Streaming: what all trackers share that see one frame after another and keep one basis."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from lowdim.errors import DataError, Diverged, RankError, ShapeError
from lowdim.store import read_model, write_model
from lowdim.track.coefficients import fill, fit_rows, orthonormal, usable_ridge
from lowdim.track.panel import check_frames, check_rank, numbers

__all__ = ["StreamingSubspace", "Trail"]

Rows = tuple[np.ndarray, np.ndarray | None]

_REFRESH = 50
"""A tracker tidies its numbers after so many frames."""


@dataclass(frozen=True, eq=False)
class Trail:
    """What a tracker knew after every frame.

    Parameters
    ----------
    bases : ndarray of shape (T, d, k)
        The orthonormal basis after frame i was seen.
    imputed : ndarray of shape (T, d)
        Frame i with its gaps filled from that basis.

    Examples
    --------
    >>> from lowdim.track.grouse import Grouse
    >>> trail = Grouse(1, random_state=0).track(np.ones((3, 2)))
    >>> trail.bases.shape, trail.imputed.shape
    ((3, 2, 1), (3, 2))
    """

    bases: np.ndarray
    imputed: np.ndarray


class StreamingSubspace(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, ABC):
    """A k-dimensional subspace that is corrected by every frame of a stream.

    The model of a frame is ``x = U w + noise``, of which some entries are
    seen. A method (a subclass) says how one frame corrects its state; the
    rest is common to all: rows in order of time, NaN or ``mask=False`` for
    gaps, real or complex numbers, float32 or float64. A frame of which
    nothing is seen changes nothing.

    Parameters
    ----------
    n_components : int
        Dimension k of the subspace.
    ridge : float
        Share of the mean diagonal that is added to the k x k systems for the coefficients. Frames with fewer
        than about 3 k seen entries call for more, such as 1e-2.
    init : array-like of shape (d, k), optional
        Spans the subspace to start from. A random one without it.
    random_state : int, RandomState or None
        For the random start, which is real also for complex data.

    Attributes
    ----------
    basis_ : ndarray of shape (d, k)
        Orthonormal columns, as of the last frame.
    n_features_in_ : int
        d.
    n_seen_ : int
        Number of frames of which something was seen.

    Examples
    --------
    >>> from lowdim.track.petrels import Petrels
    >>> issubclass(Petrels, StreamingSubspace)
    True
    """

    # Attributes with arrays that make up the state; the first has the dtype of the stream.
    _state: ClassVar[tuple[str, ...]] = ("_U",)

    n_features_in_: int
    n_seen_: int
    feature_names_in_: np.ndarray

    def __init__(
        self,
        n_components: int = 1,
        *,
        ridge: float = 1e-8,
        init: Any = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.ridge = ridge
        self.init = init
        self.random_state = random_state

    # What a method says.

    @abstractmethod
    def _start(self, U: np.ndarray) -> None:
        """Begin with an orthonormal basis (d, k)."""

    @abstractmethod
    def _step(self, x: np.ndarray, places: np.ndarray | None) -> None:
        """Correct the state by a frame (d,) that is zero in its gaps; `places` are the seen entries."""

    def _basis(self) -> np.ndarray:
        """Return the orthonormal basis; the caller does not keep it."""
        return getattr(self, self._state[0])

    def _refresh(self) -> None:
        """Tidy rounding errors; must not change what is known of the subspace."""

    def _check_options(self) -> None:
        """Refuse options that cannot be used."""
        if not 0 < self.ridge < np.inf:
            raise DataError(
                f"{self._name}: ridge={self.ridge!r} must be a positive number. The default is 1e-8."
            )

    # What users call.

    @property
    def basis_(self) -> np.ndarray:
        """Orthonormal basis (d, k) as of the last frame."""
        check_is_fitted(self, "n_seen_")
        return self._basis().copy()

    def fit(self, X: Any, y: Any = None, *, mask: Any = None) -> Self:
        """Forget what was learned, then see the rows once, in order.

        Parameters
        ----------
        X : array-like of shape (T, d)
            Rows in order of time; NaN where nothing is seen.
        y : None
            Ignored.
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.

        Returns
        -------
        self

        Raises
        ------
        ShapeError, DataError, RankError
            If the rows or the options cannot be used.
        Diverged
            If the state leaves the finite numbers.
        """
        rows, seen = check_frames(X, mask, where=self._name)
        self._prepare(X, rows, reset=True)
        return self._learn_all(rows, seen)

    def partial_fit(self, X: Any, y: Any = None, *, mask: Any = None) -> Self:
        """See more rows.

        Parameters
        ----------
        X : array-like of shape (T, d)
            Rows in order of time; NaN where nothing is seen.
        y : None
            Ignored.
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.

        Returns
        -------
        self

        Raises
        ------
        ShapeError, DataError, RankError
            If the rows or the options cannot be used, or do not fit to the former rows.
        Diverged
            If the state leaves the finite numbers.
        """
        rows, seen = self._admit(X, mask)
        self._prepare(X, rows, reset=not hasattr(self, "n_seen_"))
        return self._learn_all(rows, seen)

    def learn_one(self, x: Any) -> Self:
        """See one frame.

        Parameters
        ----------
        x : array-like of shape (d,), or dict of feature to number
            NaN where nothing is seen. In a dict a feature that is absent or None is not seen; the first one
            fixes the features and their order.

        Returns
        -------
        self

        Raises
        ------
        ShapeError, DataError, RankError, Diverged
            As `partial_fit`.
        """
        names = None
        if isinstance(x, Mapping):
            names = self._features(x)
            x = [np.nan if (value := x.get(name)) is None else value for name in names]
        elif np.ndim(x) != 1:
            raise ShapeError(
                f"{self._name}: learn_one takes one frame, a 1D array or a dict, got shape {np.shape(x)}. "
                "Give many rows to partial_fit."
            )
        rows, seen = self._admit(np.asarray(x)[None], None)
        first = not hasattr(self, "n_seen_")
        self._prepare(rows, rows, reset=first, named=False)
        if first and names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
        return self._learn_all(rows, seen)

    def track(self, X: Any, *, mask: Any = None) -> Trail:
        """See more rows, and keep what is known after each.

        Parameters
        ----------
        X : array-like of shape (T, d)
            Rows in order of time; NaN where nothing is seen.
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.

        Returns
        -------
        Trail

        Raises
        ------
        ShapeError, DataError, RankError, Diverged
            As `partial_fit`.
        """
        rows, seen = self._admit(X, mask)
        self._prepare(X, rows, reset=not hasattr(self, "n_seen_"))
        rows = rows.astype(self._dtype, copy=False)
        ridge = usable_ridge(self.ridge, self._dtype)
        bases = np.empty((len(rows), self.n_features_in_, self.n_components), dtype=self._dtype)
        imputed = np.empty_like(rows)
        for i, (x, places) in enumerate(_frames(rows, seen)):
            self._learn(x, places)
            bases[i] = U = self._basis()
            imputed[i] = fill(U, x, places, ridge=ridge)
        self._check_finite()
        return Trail(bases, imputed)

    def transform(self, X: Any, *, mask: Any = None) -> np.ndarray:
        """Return the coefficients of frames in the basis of now.

        Parameters
        ----------
        X : array-like of shape (T, d)
            NaN where nothing is seen.
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.

        Returns
        -------
        ndarray of shape (T, k)
            The regression of what is seen on the basis; zeros for a frame of which nothing is seen.

        Raises
        ------
        ShapeError, DataError
            If the rows cannot be used.
        """
        U, rows, seen = self._apply_to(X, mask)
        return fit_rows(U, rows, seen, ridge=usable_ridge(self.ridge, U.dtype))

    def fit_transform(self, X: Any, y: Any = None, *, mask: Any = None) -> np.ndarray:
        """Fit, then return the coefficients of the same frames in the last basis.

        Parameters
        ----------
        X : array-like of shape (T, d)
            Rows in order of time; NaN where nothing is seen.
        y : None
            Ignored.
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.

        Returns
        -------
        ndarray of shape (T, k)
        """
        return self.fit(X, mask=mask).transform(X, mask=mask)

    def impute(self, X: Any, *, mask: Any = None) -> np.ndarray:
        """Return frames with their gaps filled from the basis of now.

        Parameters
        ----------
        X : array-like of shape (T, d)
            NaN where nothing is seen.
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.

        Returns
        -------
        ndarray of shape (T, d)
            What is seen stays as it is.

        Raises
        ------
        ShapeError, DataError
            If the rows cannot be used.
        """
        U, rows, seen = self._apply_to(X, mask)
        if seen is None:
            return rows.copy()
        w = fit_rows(U, rows, seen, ridge=usable_ridge(self.ridge, U.dtype))
        return np.where(seen, rows, w @ U.T)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the tracker into a folder, from which the stream can go on.

        Parameters
        ----------
        directory : path
            Made if it is missing; a tracker that it holds is replaced.

        Raises
        ------
        RunError
            If the folder cannot be written.

        Notes
        -----
        A RandomState as random_state is left out; the stream goes on without it.
        """
        check_is_fitted(self, "n_seen_")
        arrays = {name: getattr(self, name) for name in self._state}
        # Beside the state, so that it never belongs to another one.
        arrays["n_seen"] = np.array([self.n_seen_])
        if self.init is not None:
            arrays["init"] = np.asarray(self.init)
        names = getattr(self, "feature_names_in_", None)
        facts = {
            "feature_names_in": None if names is None else list(names),
            "random_state": self.random_state if isinstance(self.random_state, int) else None,
        }
        plain = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        write_model(type(self)(**(plain | {"init": None})), Path(directory), arrays, facts)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Read a tracker that `save` wrote.

        Parameters
        ----------
        directory : path

        Returns
        -------
        StreamingSubspace
            Of this class, as it was.

        Raises
        ------
        RunError
            If the folder holds no tracker, one of another class, a damaged one, or an unknown format.
        """
        tracker, arrays, facts = read_model(cls, Path(directory))
        tracker.init, tracker.random_state = arrays.get("init"), facts["random_state"]
        # Copies: what comes from a file may not be writable.
        for name in cls._state:
            setattr(tracker, name, arrays[name].copy())
        tracker.n_seen_ = int(arrays["n_seen"][0])
        tracker.n_features_in_ = len(tracker._basis())
        if facts["feature_names_in"] is not None:
            tracker.feature_names_in_ = np.array(facts["feature_names_in"], dtype=object)
        return tracker

    # The inner works.

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _dtype(self) -> np.dtype:
        return getattr(self, self._state[0]).dtype

    @property
    def _n_features_out(self) -> int:
        return self.n_components

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "complex128", "complex64"]
        return tags

    def _admit(self, X: Any, mask: Any) -> Rows:
        """Check rows as `check_frames` does, but let a stream pause: all may be missing."""
        return check_frames(X, mask, where=self._name, empty=True)

    def _prepare(self, X: Any, rows: np.ndarray, *, reset: bool, named: bool = True) -> None:
        """Begin, or see whether the rows go on with what has begun."""
        self._check_options()
        d = rows.shape[1]
        if not reset:
            self._check_width(d)
            k = self._basis().shape[1]
            if self.n_components != k:
                raise RankError(
                    f"{self._name}: n_components={self.n_components}, but the stream began with {k}. Call "
                    "fit to begin anew."
                )
            if np.iscomplexobj(rows) and self._dtype.kind != "c":
                raise DataError(
                    f"{self._name}: complex rows after real ones. Begin the stream with complex ones: X + 0j."
                )
        k = check_rank(self.n_components, largest=d, where=self._name, why=f"the rows have {d} features")
        if named:
            validate_data(self, X, reset=reset, skip_check_array=True)
        if reset:
            if not named and hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
            self.n_features_in_ = d
            self._start(self._first_basis(d, k, rows.dtype))
            self.n_seen_ = 0

    def _first_basis(self, d: int, k: int, dtype: np.dtype) -> np.ndarray:
        if self.init is None:
            # Real, and rounded only in the end: the same start for every kind of number.
            draw = check_random_state(self.random_state).standard_normal((d, k))
            return orthonormal(draw)[0].astype(dtype)
        given = numbers(self.init, where=self._name)
        if given.shape != (d, k):
            raise ShapeError(
                f"{self._name}: init has shape {given.shape}, expected {(d, k)}: features, n_components."
            )
        if not np.isfinite(given).all() or np.linalg.matrix_rank(given) < k:
            raise DataError(
                f"{self._name}: the columns of init are not {k} independent finite vectors. Leave init out "
                "for a random start."
            )
        if np.iscomplexobj(given) and dtype.kind != "c":
            raise DataError(f"{self._name}: init is complex and the rows are real. Give X + 0j.")
        return orthonormal(given)[0].astype(dtype)

    def _learn_all(self, rows: np.ndarray, seen: np.ndarray | None) -> Self:
        for x, places in _frames(rows.astype(self._dtype, copy=False), seen):
            self._learn(x, places)
        self._check_finite()
        return self

    def _learn(self, x: np.ndarray, places: np.ndarray | None) -> None:
        if places is not None and not len(places):
            return
        self._step(x, places)
        self.n_seen_ += 1
        if self.n_seen_ % _REFRESH == 0:
            self._refresh()

    def _check_finite(self) -> None:
        if not np.isfinite(getattr(self, self._state[0])).all():
            raise Diverged(
                f"{self._name}: the basis left the finite numbers after {self.n_seen_} frames. Scale the "
                "data down, or use a larger ridge (1e-2), and call fit to begin anew.",
                step=self.n_seen_,
            )

    def _apply_to(self, X: Any, mask: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the basis and checked rows of one dtype."""
        check_is_fitted(self, "n_seen_")
        rows, seen = self._admit(X, mask)
        self._check_width(rows.shape[1])
        validate_data(self, X, reset=False, skip_check_array=True)
        U = self._basis()
        if np.iscomplexobj(rows) and U.dtype.kind != "c":
            U = U.astype(np.result_type(U, np.complex64))
        return U, rows.astype(U.dtype, copy=False), seen

    def _check_width(self, d: int) -> None:
        if d != self.n_features_in_:
            raise ShapeError(
                f"{self._name}: X has {d} features, but {self._name} is expecting {self.n_features_in_} "
                "features as input. Give the same columns as before."
            )

    def _features(self, x: Mapping[Any, Any]) -> list[Any]:
        """Return the features in their order: the known ones, or at the start those of this frame."""
        if not hasattr(self, "n_seen_"):
            if not all(isinstance(name, (str, int)) for name in x):
                raise DataError(
                    f"{self._name}: features must be named by strings or integers, got {list(x)}."
                )
            return list(x)
        if not hasattr(self, "feature_names_in_"):
            raise DataError(
                f"{self._name}: got a dict, but the stream began without names of features. Give an array."
            )
        names = list(self.feature_names_in_)
        if unknown := [name for name in x if name not in names]:
            raise DataError(
                f"{self._name}: unknown feature {unknown[0]!r}; the first frame had {names[:5]}. Leave it "
                "out, or begin anew with it."
            )
        return names


def _frames(rows: np.ndarray, seen: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield every row and where it is seen: None for all of it."""
    if seen is None:
        for x in rows:
            yield x, None
        return
    whole = np.all(seen, axis=1)
    for x, here, complete in zip(rows, seen, whole, strict=True):
        yield x, None if complete else here.nonzero()[0]


def _plain(value: Any) -> Any:
    """Return numbers and strings of NumPy as those of Python."""
    return value.item() if isinstance(value, np.generic) else value
