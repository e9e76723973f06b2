"""`lowdim doctor`: it says what is there, what is missing, and what that would bring."""

import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import lowdim
from lowdim import cli
from lowdim.cli import doctor

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def answer(capsys, *words):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["doctor", *words])
    assert exit_.value.code == 0
    return capsys.readouterr()


def test_json(capsys):
    found = json.loads(answer(capsys, "--json").out)
    assert found["versions"]["lowdim"] == lowdim.__version__
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["device"]["cpu_cores"] >= 1
    assert found["unfit"] == []
    assert {extra["name"] for extra in found["extras"]} == {extra.name for extra in doctor.EXTRAS}


def test_every_extra_of_the_package_is_explained():
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert {extra.name for extra in doctor.EXTRAS} == set(declared) - {"all"}
    assert all(extra.brings for extra in doctor.EXTRAS)


def test_a_missing_package_is_named_with_what_to_type(monkeypatch, capsys):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "peft" else real(name))
    found = doctor.examine()
    extra = next(extra for extra in found["extras"] if extra["name"] == "transformers")
    assert extra["status"] == "missing"
    assert extra["missing"] == ["peft (not installed)"]
    shown = " ".join(answer(capsys).out.split())
    assert "peft (not installed)" in shown
    assert "pip install 'lowdim[transformers]'" in shown


def test_a_package_that_is_too_old_is_named(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: "0.1" if name in ("torch", "torchao") else real(name)
    )
    found = doctor.examine()
    assert found["unfit"] == ["torch (0.1, needs >=2.9)"]
    extra = next(extra for extra in found["extras"] if extra["name"] == "compress")
    assert any(text.startswith("torchao (0.1, needs >=") for text in extra["missing"])


def test_tools_say_what_they_serve(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    tools = {tool["name"]: tool for tool in doctor.examine()["tools"]}
    assert tools["C++ compiler"]["found"] is None
    assert tools["Chromium"]["found"] is None
    assert "inductor" in tools["C++ compiler"]["serves"]
