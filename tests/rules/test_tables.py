"""Every class and function of a kind stands in the table whose laws its kind must obey."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from pathlib import Path

from sklearn.base import BaseEstimator

import lowdim.algebra
from lowdim import regress, track
from lowdim.algebra import Operator, solve
from lowdim.claims import find, registered
from lowdim.track import StreamingSubspace

LAWS = Path(__file__).parents[1] / "laws"


def table(file, name, monkeypatch):
    monkeypatch.syspath_prepend(str(LAWS))
    spec = importlib.util.spec_from_file_location(f"rules_{file}", LAWS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and type hints of the module look it up there.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return getattr(module, name)


def public_operators():
    for module in pkgutil.walk_packages(lowdim.algebra.__path__, "lowdim.algebra."):
        if "triton" not in module.name:
            importlib.import_module(module.name)
    found, stack = set(), [Operator]
    while stack:
        for subclass in stack.pop().__subclasses__():
            stack.append(subclass)
            own = subclass.__module__.startswith("lowdim.algebra") and not subclass.__name__.startswith("_")
            if own and not inspect.isabstract(subclass):
                found.add(subclass)
    return found


def test_every_operator_obeys_the_laws(monkeypatch):
    entries = table("operators_table", "OPERATORS", monkeypatch)
    covered = {type(build()) for build in entries.values()}
    operators = public_operators()
    assert len(operators) >= 5
    missing = {operator.__name__ for operator in operators - covered}
    assert not missing, f"not in tests/laws/operators_table.py: {sorted(missing)}"


def test_every_operator_is_offered_by_its_room():
    hidden = {operator.__name__ for operator in public_operators()} - set(lowdim.algebra.__all__)
    assert not hidden


def test_every_solver_obeys_the_laws(monkeypatch):
    entries = table("test_solvers", "SOLVERS", monkeypatch)
    solvers = {name for name in solve.__all__ if inspect.isfunction(getattr(solve, name))}
    assert solvers
    assert solvers == {solver.__name__ for _, solver in entries.values()}


def test_make_claims_measures_every_claim_once():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    recipes = re.findall(r"^\t\$\(CLAIMS\) (.+)$", makefile, flags=re.MULTILINE)
    measured = [claim.id for recipe in recipes for claim in find(re.findall(r"'([^']+)'", recipe))]
    assert sorted(measured) == sorted(claim.id for claim in registered())


def test_every_streaming_tracker_obeys_the_laws(monkeypatch):
    entries = table("test_trackers", "TRACKERS", monkeypatch)
    covered = {type(make(1)) for make, *_ in entries.values()}
    offered = {getattr(track, name) for name in track.__all__}
    trackers = {
        thing for thing in offered if inspect.isclass(thing) and issubclass(thing, StreamingSubspace)
    } - {StreamingSubspace}
    assert len(trackers) >= 4
    assert trackers == covered


def test_every_tensor_estimator_obeys_the_laws(monkeypatch):
    entries = table("test_regress", "ESTIMATORS", monkeypatch)
    covered = {type(estimator) for estimator, *_ in entries.values()}
    offered = {getattr(regress, name) for name in regress.__all__}
    estimators = {thing for thing in offered if inspect.isclass(thing) and issubclass(thing, BaseEstimator)}
    assert len(estimators) >= 4
    assert estimators == covered
