from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

import lowdim.cli
from lowdim.runs import Run

pytestmark = pytest.mark.filterwarnings("ignore")


def call(*words: object, code: int = 0):
    """Run a command line in this process; return its outcome."""
    result = CliRunner().invoke(lowdim.cli.build(), ["compress", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def told(result) -> str:
    """The text of a panel, without its frame and line breaks."""
    return " ".join(result.stderr.translate(str.maketrans("", "", "│╭╮╰╯─")).split())


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> tuple[Path, Path]:
    return tiny.write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def done(tiny_folder, texts, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("done") / "out"
    calibration, heldout = texts
    result = call(
        tiny_folder, "-o", out, "--keep", 0.5, "--calib", calibration, "--eval", heldout, "--sweeps", 3,
        "--recover-steps", 4,
    )  # fmt: skip
    return out, result.stdout


def test_it_writes_model_report_page_and_card(done):
    out, shown = done
    names = {path.name for path in out.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "report.json",
        "report.html",
        "README.md",
    } <= names
    assert {"manifest.json"} <= names
    assert not {".work", ".writing"} & names
    report = json.loads((out / "report.json").read_text())
    for key in ("model", "method", "keep", "calibration", "versions", "seed", "quality", "layers", "seconds"):
        assert key in report
    assert set(report["parameters"]) == {"before", "after", "compressible_before", "compressible_after"}
    assert report["bytes"]["after"] == (out / "model.safetensors").stat().st_size < report["bytes"]["before"]
    assert set(report["speed"]) == {"1", "32"}
    assert {"before_ms", "after_ms", "ratio"} <= set(report["speed"]["1"])
    assert {"name", "shape", "structure", "rank", "kept", "weight_error", "output_error"} <= set(
        report["layers"][0]
    )
    assert set(report["seconds"]) == {"plan", "calibrate", "factorize", "recover", "evaluate", "write"}
    assert all(value > 0 for value in report["seconds"].values())
    assert report["quality"]["before_recovery"]["cosine"] > 0
    assert report["calibration"]["text"] == "64 paragraphs of calibration.txt"
    assert report["recovery"]["steps"] == 4
    assert "bert" in (out / "report.html").read_text()
    assert "AutoModel" in (out / "README.md").read_text() or "BertModel" in (out / "README.md").read_text()
    assert "encoder.layer.0" in shown.replace("\n", "")
    assert "Summary" in shown


def test_a_fresh_process_loads_it_and_gets_the_same_numbers(done):
    out, _ = done
    code = (
        "import sys, torch, lowdim; from transformers import AutoModel, AutoTokenizer\n"
        "from lowdim.compress import CompressResult\n"
        "a = AutoModel.from_pretrained(sys.argv[1]); b = CompressResult.load(sys.argv[1]).model\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "x = t(['ba ben fi', 'mor'], padding=True, return_tensors='pt')\n"
        "y = [m(**x).last_hidden_state for m in (a, b)]\n"
        "assert torch.equal(*y) and y[0].shape == (2, 5, 32)\n"
    )
    subprocess.run([sys.executable, "-c", code, out], check=True, capture_output=True)


def test_it_is_not_repeated_but_can_be_resumed_or_restarted(done, tiny_folder, texts):
    out, _ = done
    calibration, heldout = texts
    words = [tiny_folder, "-o", out, "--calib", calibration, "--eval", heldout, "--sweeps", 3]
    again = call(*words, "--recover-steps", 4, code=2)
    assert "already holds a finished run" in told(again)
    assert "--resume" in told(again)
    other = call(*words, "--recover-steps", 4, "--keep", 0.3, "--resume", code=2)
    assert "keep was 0.5 and is now 0.3" in told(other)
    before = (out / "model.safetensors").stat().st_mtime_ns
    call(*words, "--recover-steps", 4, "--resume")
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_gates_set_the_exit_code(done, tiny_folder, texts):
    out, _ = done
    calibration, heldout = texts
    words = [tiny_folder, "-o", out, "--calib", calibration, "--eval", heldout, "--sweeps", 3]
    words += ["--recover-steps", 4, "--resume"]
    failed = call(*words, "--min-cosine", 0.99999, code=1)
    assert "FAILED" in failed.stdout
    assert json.loads((out / "report.json").read_text())["gates"][0]["passed"] is False
    passed = call(*words, "--min-cosine", -1)
    assert "passed" in passed.stdout
    wrong = call(*words, "--max-perplexity-increase", "10%", code=2)
    assert "is for language models" in told(wrong)


def test_json_is_the_report(tiny_causal_folder, texts, tmp_path):
    calibration, heldout = texts
    words = [tiny_causal_folder, "-o", tmp_path / "out", "--calib", calibration, "--eval", heldout, "--json"]
    result = call(*words, "--method", "lowrank", "--max-perplexity-increase", "100000%")
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert report["task"] == "causal"
    assert report["gates"][0] == {
        "name": "max-perplexity-increase",
        "threshold": 1000.0,
        "value": report["quality"]["perplexity_increase"],
        "passed": True,
    }
    words += ["--method", "lowrank", "--resume"]
    wrong = call(*words, "--max-perplexity-increase", "-5", code=2)
    assert "must not be negative" in told(wrong)


def test_dry_run_shows_the_plan_and_touches_nothing(tiny_folder, tmp_path):
    result = call(tiny_folder, "-o", tmp_path / "out", "--dry-run", "--exclude", "query")
    assert "excluded by 'query'" in result.stdout.replace("\n", " ")
    assert not (tmp_path / "out").exists()
    found = json.loads(call(tiny_folder, "--dry-run", "--json", "--method", "monarch").stdout)
    assert len(found["layers"]) == 12
    assert found["layers"][0]["structure"] == "monarch"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "where to? Add -o OUT"),
        (("-o", "OUT", "--keep", "0"), "keep=0.0 must be in (0, 1]"),
        (("-o", "OUT", "--keep", "2"), "keep=2.0 must be in (0, 1]"),
        (("-o", "OUT", "--keep", "0.001"), "keep=0.001 of a 32x32 matrix"),
        (("-o", "OUT", "--blocks", "0"), "--blocks 0: expected auto"),
        (("-o", "OUT", "--blocks", "7"), "out_features=32 cannot be cut into 7 blocks"),
        (("-o", "OUT", "--exclude", "quary"), "exclude: 'quary' matches no linear layer"),
        (("-o", "OUT", "--exclude", "*"), "no layer is left to compress"),
        (("-o", "OUT", "--calib", "no.txt"), "there is no file no.txt"),
        (("-o", "OUT", "--calib", "TEXT:column"), "is plain text and has no column 'column'"),
        (("-o", "OUT", "--calib-tokens", "0"), "calibration_tokens=0 must be a positive"),
        (("-o", "OUT", "--device", "cuda:99"), "device='cuda:99' cannot be used here"),
        (("-o", "OUT", "--dtype", "int7"), "dtype='int7' is unknown"),
        (("-o", "OUT", "--max-perplexity-increase", "much"), "expected a fraction such as 10% or 0.1"),
        (("-o", "OUT", "--resume", "--restart"), "Give only one"),
    ],
)
def test_bad_input_is_one_panel_and_leaves_nothing(tiny_folder, texts, tmp_path, words, text):
    out = tmp_path / "out"
    given = [str(word).replace("OUT", str(out)).replace("TEXT", str(texts[0])) for word in words]
    assert text in told(call(tiny_folder, *given, code=2))
    assert not out.exists()


def test_models_that_cannot_be_read(tiny_folder, tmp_path):
    out = tmp_path / "out"
    assert "There is no folder" in told(call(tmp_path / "none", "-o", out, code=2))
    assert "holds no config.json" in told(call(tmp_path, "-o", out, code=2))
    assert "cannot be read" in told(call("nobody/nothing", "-o", out, code=2))
    assert "is the folder of the original model" in told(call(tiny_folder, "-o", tiny_folder, code=2))
    assert not out.exists()


def test_compressed_and_quantized_models_are_refused(done, tiny_folder, tmp_path):
    out, _ = done
    assert "already compressed" in told(call(out, "-o", tmp_path / "a", code=2))
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    config = json.loads((tiny_folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (quantized / "config.json").write_text(json.dumps(config))
    assert "is already quantized (gptq)" in told(call(quantized, "-o", tmp_path / "b", code=2))


def test_an_image_model_asks_for_inputs(tmp_path):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16,
        patch_size=8,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    assert "ViTModel has no tokenizer" in told(call(tmp_path / "vit", "-o", tmp_path / "out", code=2))
    call(tmp_path / "vit", "-o", tmp_path / "out", "--method", "svd")
    assert json.loads((tmp_path / "out/report.json").read_text())["layers"][0]["weight_error"] > 0
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    (tmp_path / "photos").mkdir()
    for i in range(10):
        image.new("RGB", (20, 20), (25 * i, 99, 7)).save(tmp_path / f"photos/{i}.png")
    call(tmp_path / "vit", "-o", tmp_path / "seen", "--calib", tmp_path / "photos", "--sweeps", "2")
    report = json.loads((tmp_path / "seen/report.json").read_text())
    assert report["calibration"]["text"] == "9 images of photos"
    assert report["quality"]["text"] == "1 other image of photos"
    # The processor goes along, so that the folder can be used as it is.
    assert type(transformers.AutoImageProcessor.from_pretrained(tmp_path / "seen")).__name__.startswith("ViT")


def test_a_folder_in_use_is_refused(tiny_folder, tmp_path):
    out = tmp_path / "out"
    with Run.open(out, command="compress", arguments={}, seed=0):
        assert "is in use by another lowdim process" in told(call(tiny_folder, "-o", out, "--resume", code=2))


def test_the_last_run_wins_and_foreign_folders_are_safe(tiny_folder, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    assert "is not empty" in told(call(tiny_folder, "-o", tmp_path, "--restart", code=2))
    assert (tmp_path / "letter.txt").read_text() == "mine"
