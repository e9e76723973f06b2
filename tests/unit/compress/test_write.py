import json
import os
import subprocess
import sys

import architectures
import pytest
import torch

from lowdim.algebra import LowRank, StructuredLinear
from lowdim.compress import CompressResult, compress, write
from lowdim.compress.modules import FORMAT_VERSION, structured_modules
from lowdim.compress.record import library_of
from lowdim.compress.write import load_weights, write_checkpoint
from lowdim.errors import RunError

REPORT = {
    "model": "somewhere/tiny",
    "method": "blast",
    "keep": 0.5,
    "parameters": {"before": 2000, "after": 1234567},
    "bytes": {"before": 8000, "after": 4000},
    "quality": {"task": "embedding", "cosine": 0.87654, "inputs": 300.0},
    "speed": {"1": {"before_ms": 2.0, "after_ms": 1.0, "ratio": 2.0}},
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return architectures.compressed(architectures.bert())


def test_report_and_model_card_carry_the_figures(model, tmp_path):
    paths = write_checkpoint(model, tmp_path / "new" / "folder", report=REPORT)
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in paths} == {"config.json", "model.safetensors", "README.md", "report.json"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    assert json.loads((folder / "report.json").read_text()) == REPORT
    card = (folder / "README.md").read_text()
    for text in ("# tiny", "1,234,567", "0.8765", "import lowdim", "BertModel.from_pretrained", "50 %"):
        assert text in card


def test_card_of_a_dense_export_needs_no_lowdim(model, tmp_path):
    write_checkpoint(model, tmp_path, dense=True)
    assert "import lowdim" not in (tmp_path / "README.md").read_text()


def test_other_files_stay_and_old_shards_go(model, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    write_checkpoint(model, tmp_path, max_shard_size=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    write_checkpoint(model, tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert (tmp_path / "manifest.json").is_file()


def test_tokenizer_goes_along(model, tmp_path):
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    write_checkpoint(model, tmp_path / "out", tokenizer=tokenizer)
    again = BertTokenizer.from_pretrained(tmp_path / "out")
    assert again("word")["input_ids"] == tokenizer("word")["input_ids"]


def test_interrupted_move_leaves_no_loadable_mixture(model, tmp_path, monkeypatch):
    write_checkpoint(model, tmp_path)
    moved = []
    move = os.replace

    def failing(source, target):
        if len(moved) == 1:
            raise OSError(5, "Input/output error")
        moved.append(target)
        move(source, target)

    monkeypatch.setattr(write.os, "replace", failing)
    with pytest.raises(RunError, match="Input/output error"):
        write_checkpoint(model, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "config.json").exists(), "without it nothing loads"
    assert not (tmp_path / ".writing").exists()
    write_checkpoint(model, tmp_path)
    assert (tmp_path / "config.json").is_file()


FULL = """
import resource, sys, signal
import architectures, torch
from lowdim.compress.write import write_checkpoint
from lowdim.errors import RunError
torch.manual_seed(0)
model = getattr(architectures, sys.argv[2])()
model = architectures.compressed(model)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_checkpoint(model, sys.argv[1])
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["DiT", "bert"])
def test_full_disk_is_told_and_leaves_nothing(tmp_path, kind):
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "out"), kind],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": os.path.dirname(architectures.__file__)},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "could not be written to" in run.stdout
    assert "MB are free" in run.stdout
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_told(model, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="could not be written"):
        write_checkpoint(model, tmp_path)


def test_file_in_the_place_of_the_folder_is_told(model, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        write_checkpoint(model, tmp_path / "out")


def test_generic_description_is_checked(tmp_path):
    dit = architectures.compressed(architectures.DiT())
    write_checkpoint(dit, tmp_path)
    path = tmp_path / "lowdim.json"
    description = json.loads(path.read_text())
    assert description["modules"] == structured_modules(dit)
    for version in (FORMAT_VERSION + 1, 0, None):
        path.write_text(json.dumps({**description, "version": version}))
        with pytest.raises(RunError, match=f"format version {version} "):
            load_weights(architectures.DiT(), tmp_path)
    path.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        load_weights(architectures.DiT(), tmp_path)


def test_generic_weights_are_checked(tmp_path):
    write_checkpoint(architectures.compressed(architectures.DiT()), tmp_path)
    weights = tmp_path / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-8])
    with pytest.raises(RunError, match=r"model\.safetensors is truncated"):
        load_weights(architectures.DiT(), tmp_path)
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RunError, match="was altered or damaged"):
        load_weights(architectures.DiT(), tmp_path)
    weights.unlink()
    with pytest.raises(RunError, match=r"model\.safetensors"):
        load_weights(architectures.DiT(), tmp_path)


def test_uncompressed_models_are_written_as_they_are(tmp_path):
    from transformers import BertModel

    model = architectures.bert().eval()
    write_checkpoint(model, tmp_path)
    again = BertModel.from_pretrained(tmp_path)
    batch = architectures.inputs(model)
    assert torch.equal(architectures.answer(again, batch), architectures.answer(model, batch))
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_whoever_may_read_the_card_may_read_the_weights(tmp_path):
    model = torch.nn.Sequential(StructuredLinear(LowRank(8, 4, rank=2)))
    write_checkpoint(model, tmp_path)
    modes = {name: (tmp_path / name).stat().st_mode for name in ("README.md", "model.safetensors")}
    assert modes["README.md"] == modes["model.safetensors"]


class Frozen(dict):
    """Stands for diffusers' FrozenDict: its entries are attributes, and nothing can be set."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        raise Exception(f"You cannot use ``__setattr__`` on a {type(self).__name__} instance.")


class ModelMixin:
    """Saves, refuses and loads as diffusers' ModelMixin and ConfigMixin do (modeling_utils.py of 0.35)."""

    @property
    def config(self):
        return Frozen(width=self.width, _class_name=type(self).__name__)

    def save_config(self, folder):
        os.makedirs(folder, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))

    @classmethod
    def load_config(cls, folder, subfolder=""):
        return json.loads((folder / subfolder / "config.json").read_text())

    @classmethod
    def from_config(cls, config):
        return cls(config["width"])

    def save_pretrained(self, folder, max_shard_size="10GB"):
        if getattr(self, "hf_quantizer", None) is not None:  # never a DiffusersQuantizer here
            raise ValueError("The model is quantized with lowdim and is not serializable - check out the ...")
        from safetensors.torch import save_file

        self.save_config(folder)
        save_file(self.state_dict(), folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


ModelMixin.__module__ = "diffusers.models.modeling_utils"


class DiT(architectures.DiT, ModelMixin):
    def __init__(self, width=32):
        super().__init__(width)
        self.width = width


def test_a_diffusers_model_is_written_as_a_module_and_says_how_it_loads(tmp_path):
    torch.manual_seed(0)
    model = DiT(48).eval()
    batch = architectures.inputs(model)
    result = compress(model, calibration=[batch], sweeps=2, output=tmp_path / "out")
    assert result.report["library"] == library_of(model) == "diffusers"
    result.save(tmp_path / "saved")
    for folder in (tmp_path / "out", tmp_path / "saved"):
        # as the card says
        fresh = load_weights(DiT.from_config(DiT.load_config(folder, subfolder="architecture")), folder)
        assert torch.equal(architectures.answer(fresh, batch), architectures.answer(result.model, batch))
        loaded = CompressResult.load(folder, model=DiT(48)).model
        assert torch.equal(architectures.answer(loaded, batch), architectures.answer(result.model, batch))
        card = (folder / "README.md").read_text()
        assert 'DiT.load_config(FOLDER, subfolder="architecture")' in card
        assert "load_weights(DiT.from_config(config), FOLDER)" in card
        assert "transformers" not in card
        with pytest.raises(RunError, match=r"model=DiT\.from_config\(DiT\.load_config\(directory"):
            CompressResult.load(folder)


def test_a_dense_diffusers_model_is_one_of_diffusers(tmp_path):
    model = architectures.compressed(DiT())
    (tmp_path / "diffusion_pytorch_model-00001-of-00002.safetensors").write_text("of an earlier model")
    write_checkpoint(model, tmp_path, dense=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert "DiT.from_pretrained(FOLDER)" in (tmp_path / "README.md").read_text()


def test_a_module_with_a_config_of_its_own_is_no_model_of_transformers(tmp_path):
    class Own(architectures.DiT):
        config = None

        def save_pretrained(self, folder):
            raise AssertionError("not asked for")

    write_checkpoint(architectures.compressed(Own()), tmp_path)
    assert library_of(Own()) == "pytorch"
    load_weights(Own(), tmp_path)
    assert library_of(architectures.bert()) == "transformers"


def test_the_card_of_a_dense_copy_claims_no_size_and_no_speed(model, tmp_path):
    write_checkpoint(model, tmp_path, report=REPORT, dense=True)
    card = (tmp_path / "README.md").read_text()
    assert "0.8765" in card
    assert "bytes" not in card
    assert "milliseconds" not in card
