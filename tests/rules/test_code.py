"""What the library's code may not do: unpickle, print, change global settings."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "lowdim"
FILES = sorted(SOURCE.rglob("*.py"))
name_of = lambda path: str(path.relative_to(SOURCE))  # noqa: E731

PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def constant(call, keyword):
    """The literal value of a keyword of a call, or None."""
    for given in call.keywords:
        if given.arg == keyword and isinstance(given.value, ast.Constant):
            return given.value.value
    return None


def pickles(tree):
    """Yield every line that writes or reads pickles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and {alias.name.split(".")[0] for alias in node.names} & PICKLES:
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            yield node.lineno
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        if called == "torch.load" and constant(node, "weights_only") is not True:
            yield node.lineno
        if called == "torch.save" or node.func.attr in ("read_pickle", "to_pickle"):
            yield node.lineno
        if called in ("np.load", "numpy.load") and constant(node, "allow_pickle"):
            yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_pickled(path):
    assert not list(pickles(ast.parse(path.read_text())))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.save(x, f)",
        "np.load(f, allow_pickle=True)",
        "pd.read_pickle(f)",
    ],
)
def test_the_pickle_rule_can_fail(code):
    assert list(pickles(ast.parse(code)))


def test_the_pickle_rule_lets_safe_loads_pass():
    assert not list(pickles(ast.parse("torch.load(f, weights_only=True); np.load(f); safetensors.load(f)")))


@pytest.mark.parametrize("path", [path for path in FILES if "cli" not in path.parts], ids=name_of)
def test_the_library_never_prints(path):
    lines = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not lines


# Global state of other libraries that an import or a call of ours would change under the user's feet.
SETTERS = {
    *("torch.set_default_dtype", "torch.set_default_device", "torch.set_num_threads", "torch.seed"),
    *("torch.set_float32_matmul_precision", "torch.use_deterministic_algorithms", "np.random.seed"),
    *("numpy.random.seed", "random.seed", "warnings.simplefilter", "warnings.filterwarnings"),
}


def inside_with(tree):
    """Nodes under a with statement, which puts back what it changed."""
    return {id(node) for block in ast.walk(tree) if isinstance(block, ast.With) for node in ast.walk(block)}


@pytest.mark.parametrize("path", [path for path in FILES if "cli" not in path.parts], ids=name_of)
def test_global_settings_of_other_libraries_are_left_alone(path):
    tree = ast.parse(path.read_text())
    excused = inside_with(tree)
    lines = [
        f"{node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in SETTERS and id(node) not in excused
    ]
    assert not lines
