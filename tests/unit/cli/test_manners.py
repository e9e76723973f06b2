"""Manners of every command: exit codes, panels, JSON, interruption, speed of --help."""

import json
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import lowdim
from lowdim import cli, errors
from lowdim.cli import manners


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a command line in this process, with extra commands; return exit code, stdout, stderr."""

    def main(*words, action=None, resumable=False):
        build = cli.build

        def with_action():
            app = build()
            if action is None:
                return app
            if resumable:
                group = typer.Typer()
                group.callback()(lambda: None)
                app.add_typer(group, name="jobs")

                @group.command("work")
                @app.command("work")
                def work(
                    model: str = "", resume: bool = False, restart: bool = False, json: bool = False
                ) -> None:
                    action()
            else:

                @app.command("work")
                def plain(json: bool = False) -> None:
                    action()

            return app

        monkeypatch.setattr(cli, "build", with_action)
        with pytest.raises(SystemExit) as exit_:
            cli.main(list(words))
        monkeypatch.setattr(cli, "build", build)
        out, err = capfd.readouterr()
        return exit_.value.code, out, " ".join(err.replace("│", " ").split())

    return main


def raiser(error):
    def action():
        raise error

    return action


def test_version(run):
    assert run("--version") == (0, f"lowdim {lowdim.__version__}\n", "")


def test_help_lists_the_systems_and_the_house(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in cli.commands():
        assert command in out
    assert "--debug" in out


def test_without_words_the_help_is_shown(run):
    code, out, err = run()
    assert code == 2
    assert "Usage: lowdim" in out + err


@pytest.mark.parametrize(
    "error",
    [
        errors.DataError("calibration.txt is empty. Give a text."),
        errors.ShapeError("Blast: 100 cannot be cut into 16 blocks. Use pad=True."),
        errors.BudgetError("keep=2 is outside (0, 1]."),
        errors.RankError("rank=0."),
        errors.RunError("OUT belongs to another run."),
        errors.MissingExtra("peft", extra="transformers", purpose="train adapters"),
        errors.Diverged("recover: not finite at step 3. Use a smaller --lr.", step=3),
    ],
)
def test_errors_on_purpose_are_one_panel_and_exit_2(run, error):
    code, out, err = run("work", action=raiser(error))
    assert code == 2
    assert out == ""
    assert str(error) in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback_wherever_it_stands(run):
    for words in (("--debug", "work"), ("work", "--debug")):
        code, _, err = run(*words, action=raiser(errors.DataError("bad")))
        assert code == 2
        assert "Traceback" in err
        assert "DataError: bad" in err


def test_files_that_cannot_be_read_exit_2(run):
    def action():
        Path("/nowhere/at/all.txt").read_text()

    code, _, err = run("work", action=action)
    assert code == 2
    assert "No such file or directory: /nowhere/at/all.txt" in err


def test_a_defect_of_ours_is_not_called_wrong_input(run):
    code, _, err = run("work", action=raiser(KeyError("missing")))
    assert code == 70
    assert "KeyError: 'missing'" in err
    assert "--debug" in err
    assert "Traceback" not in err


def test_a_gate_exits_1_and_says_nothing_more(run):
    assert run("work", action=raiser(typer.Exit(manners.GATE_FAILED))) == (1, "", "")


def test_an_interruption_says_how_to_go_on(run):
    code, _, err = run(
        "work", "--model", "a b", "--restart", action=raiser(KeyboardInterrupt()), resumable=True
    )
    assert code == 130
    assert "lowdim work --model 'a b' --resume" in err
    assert "--restart" not in err


def test_an_interruption_inside_a_group_says_how_to_go_on(run):
    code, _, err = run("jobs", "work", "--model", "x", action=raiser(KeyboardInterrupt()), resumable=True)
    assert code == 130
    assert "lowdim jobs work --model x --resume" in err


def test_an_interruption_of_a_command_that_cannot_resume(run):
    code, _, err = run("work", action=raiser(KeyboardInterrupt()))
    assert code == 130
    assert "--resume" not in err


def test_unknown_words_get_a_suggestion(run):
    code, _, err = run("docto")
    assert code == 2
    assert err.count("Did you mean 'doctor'?") == 1
    assert all(name in err for name in cli.commands())
    code, _, err = run("doctor", "--jsn")
    assert code == 2
    assert "--json" in err
    assert "lowdim doctor --help" in err


def test_with_json_an_error_is_json_too(run):
    code, out, err = run("work", "--json", action=raiser(errors.DataError("no text")))
    assert code == 2
    assert json.loads(out) == {"error": {"kind": "DataError", "message": "no text", "exit": 2}}
    assert "no text" in err


def test_emit_writes_one_json_document_of_plain_numbers(run):
    value = {"a": np.float32(0.5), "b": [np.int64(3), float("nan"), True, None], 4: "ä"}
    code, out, err = run("work", action=lambda: manners.emit(value))
    assert (code, err) == (0, "")
    assert json.loads(out) == {"a": 0.5, "b": [3, None, True, None], "4": "ä"}


def test_our_warnings_are_one_line_and_those_of_others_wait_for_debug(run):
    warnings.simplefilter("always")

    def action():
        warnings.warn("few tokens; give more text.", errors.LowdimWarning, stacklevel=1)
        warnings.warn("inner matters", UserWarning, stacklevel=1)

    _, _, err = run("work", action=action)
    assert err == "Warning: few tokens; give more text."
    _, _, err = run("work", "--debug", action=action)
    assert "inner matters" in err


def test_a_message_is_shown_as_it_is(run):
    _, _, err = run("work", action=raiser(errors.DataError("layer [bold]x[/bold] of [0, 1)")))
    assert "layer [bold]x[/bold] of [0, 1)" in err


def test_the_application_behaves_the_same_in_a_test_runner():
    result = CliRunner().invoke(cli.build(), ["doctor", "--nothing"])
    assert result.exit_code == 2


def test_help_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys; from lowdim import cli; cli.build(); "
        "print([name for name in ('torch', 'numpy', 'plotly') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
    # Processor time, so that a busy machine does not decide.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "lowdim", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7
