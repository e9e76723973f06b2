"""Every public name says what it is, takes, gives and raises; every example runs.

What a room offers, and the modules that users import from directly, have all sections. The inner modules
of a room need a docstring on every public name, and a section that is there must be right.
"""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest
from numpydoc.docscrape import NumpyDocString

import lowdim

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lowdim.__path__, "lowdim.")
    if not any(part.startswith("_") for part in module.name.split("."))
)
ROOMS = [
    "lowdim.algebra",
    "lowdim.compress",
    "lowdim.dynamics",
    "lowdim.dynamics.dln",
    "lowdim.dynamics.flatness",
    "lowdim.incontext",
    "lowdim.inverse",
    "lowdim.phase",
    "lowdim.policy",
    "lowdim.policy.arithmetic",
    "lowdim.regress",
    "lowdim.track",
    "lowdim.report",
    "lowdim.claims",
]
DIRECT = {
    *(
        "lowdim.errors",
        "lowdim.runs",
        "lowdim.algebra.action",
        "lowdim.algebra.krylov",
        "lowdim.algebra.rank",
    ),
    *("lowdim.algebra.seeds", "lowdim.algebra.solve", "lowdim.algebra.spectrum", "lowdim.algebra.subspace"),
    "lowdim.algebra.tensors",
}


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} needs {error.name or error}")


def public(module):
    """Functions and classes that a module defines itself and offers."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name in vars(module) if not name.startswith("_")]
    for name in names:
        thing = getattr(module, name)
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == module.__name__:
            yield name, thing


def offered():
    """What the rooms offer, by identity."""
    return {id(getattr(room, name)) for room in map(importlib.import_module, ROOMS) for name in room.__all__}


def parameters(function):
    """Names of the parameters that a caller gives."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return []
    # Settings that a dataclass inherits from another library's are described there.
    bases = function.__mro__[1:] if inspect.isclass(function) else ()
    foreign = {
        name
        for base in bases
        if not base.__module__.startswith("lowdim")
        for name in getattr(base, "__dataclass_fields__", ())
    }
    return [name for name in signature.parameters if name not in {"self", "cls", *foreign}]


def documented(section):
    """Names of a numpydoc section; `a, b : int` documents two."""
    return [name.strip().lstrip("*") for entry in section for name in entry.name.split(",")]


def raises(function):
    """Whether the function raises in its own body (not in functions inside it)."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    stack = list(tree.body[0].body) if hasattr(tree.body[0], "body") else []
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            stack.extend(ast.iter_child_nodes(node))
    return False


def faults_of(name, thing, *, full, method=False):
    """What is missing in one docstring; `full` asks for all sections, or of a method a word on each name."""
    text = (
        inspect.getdoc(thing)
        if not inspect.isclass(thing)
        else thing.__doc__ and inspect.cleandoc(thing.__doc__)
    )
    if not text or len(text.split()) < (2 if method else 3):
        return [f"{name}: no docstring"]
    sections = NumpyDocString(text)
    taken, told = parameters(thing), documented(sections["Parameters"])
    faults = []
    if (full and taken) or told:
        missing = [parameter for parameter in taken if parameter not in told]
        if method and not told:
            missing = [parameter for parameter in missing if not re.search(rf"\b{parameter}\b", text)]
        # A trailing **options may be described in words; a wrong name may not.
        variadic = {
            p.name
            for p in inspect.signature(thing).parameters.values()
            if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        if set(missing) - variadic:
            faults.append(f"{name}: parameters without a description: {missing}")
        unknown = [parameter for parameter in told if parameter not in taken]
        if unknown:
            faults.append(f"{name}: describes parameters that do not exist: {unknown}")
    if full and inspect.isfunction(thing):
        gives = inspect.signature(thing).return_annotation
        nothing = gives in (None, "None", inspect.Signature.empty, "NoReturn")
        said = sections["Returns"] or sections["Yields"] or text.startswith(("Return ", "Yield "))
        if not nothing and not said and not (method and len(text.splitlines()) == 1):
            faults.append(f"{name}: no Returns section")
        if raises(thing) and not sections["Raises"] and not method:
            faults.append(f"{name}: raises, and has no Raises section")
    return faults


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_described(name):
    module = load(name)
    faults = [] if module.__doc__ and len(module.__doc__.split()) >= 3 else [f"{name}: no docstring"]
    front = offered()
    for label, thing in public(module):
        full = name in DIRECT or id(thing) in front
        if inspect.isfunction(thing):
            faults += faults_of(label, thing, full=full)
            continue
        faults += faults_of(label, thing, full=full and not issubclass(thing, BaseException))
        for attribute, member in vars(thing).items():
            member = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            described = inspect.isfunction(member) or isinstance(member, property)
            if attribute.startswith("_") or not described:
                continue
            if isinstance(member, property):
                faults += [] if member.__doc__ else [f"{label}.{attribute}: no docstring"]
            else:
                # An override says again only what is different.
                inherited = any(attribute in vars(base) for base in thing.__mro__[1:])
                many = full and len(parameters(member)) >= 2 and not inherited
                faults += faults_of(f"{label}.{attribute}", member, full=many, method=True)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_offers_has_an_example(room):
    module = load(room)
    lacking = []
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)) or inspect.isabstract(thing):
            continue
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            continue
        if ">>>" not in (thing.__doc__ or ""):
            lacking.append(name)
    assert not lacking, f"{room}: no example in the docstring of {', '.join(lacking)}"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    module = load(name)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, report=True)
    assert result.failed == 0, (
        f"{result.failed} of {result.attempted} examples of {name} fail (see the output)"
    )
