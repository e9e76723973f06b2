import subprocess
import sys

import pytest

from lowdim import plugin


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_import_lowdim_loads_nothing_heavy():
    heavy = "('torch', 'transformers', 'peft', 'numpy', 'pandas')"
    assert run(f"import sys, lowdim; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_transformers_imported_first_registers_too():
    code = (
        "import transformers.modeling_utils, lowdim; from transformers.quantizers import auto; "
        "print('lowdim' in auto.AUTO_QUANTIZER_MAPPING and 'lowdim' in auto.AUTO_QUANTIZATION_CONFIG_MAPPING)"
    )
    assert run(code) == "True"


def test_without_transformers_the_import_works_and_the_error_names_the_extra():
    code = """
import sys
sys.modules["transformers"] = None
import lowdim
try:
    import lowdim.compress.transformers
except ImportError as error:
    print(type(error).__name__, "pip install 'lowdim[transformers]'" in str(error))
"""
    assert run(code) == "MissingExtra True"


def test_action_runs_once_after_the_import(tmp_path, monkeypatch):
    (tmp_path / "late_module_of_the_test.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    plugin.after_import(
        "late_module_of_the_test", lambda: seen.append(sys.modules["late_module_of_the_test"].value)
    )
    assert seen == []
    import late_module_of_the_test  # noqa: F401
    import late_module_of_the_test as again  # noqa: F401

    assert seen == [1]


def test_failed_import_is_tried_again(tmp_path, monkeypatch):
    path = tmp_path / "failing_module_of_the_test.py"
    path.write_text("raise RuntimeError('not yet')\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    plugin.after_import("failing_module_of_the_test", lambda: seen.append(1))
    with pytest.raises(RuntimeError, match="not yet"):
        __import__("failing_module_of_the_test")
    assert seen == []
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path.write_text("value = 2  # another length, so that no cached bytecode is taken\n")
    __import__("failing_module_of_the_test")
    assert seen == [1]


def test_unknown_module_is_simply_never_served():
    plugin.after_import("no_such_module_of_the_test", lambda: pytest.fail("must not run"))
    with pytest.raises(ModuleNotFoundError):
        __import__("no_such_module_of_the_test")
