"""Encoders in the formats of other libraries give the same vectors there."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.test_sharing import hub as hub
from tests.model.conftest import empty_hub as empty_hub
from tests.model.hub_server import Hub
from vitrieve import ArtifactError, ConfigError, export_as, load_encoder, push_encoder
from vitrieve.cli.main import main
from vitrieve.data.preprocess import build_preprocessing, preprocess
from vitrieve.model.preprocessor import describe_preprocessing, read_preprocessor

torch = pytest.importorskip("torch", reason="exporting needs vitrieve[train]")
timm = pytest.importorskip("timm")


@dataclasses.dataclass(frozen=True)
class Case:
    """An encoder to export."""

    backbone: str = "test_vit"
    image_size: int = 32
    pooling: str = "cls"
    head_norm: bool = False
    head_dim: int | None = None
    reduction: int | None = None
    framing: str = "crop"
    gem_learnable: bool = False
    needs_code: bool = False


CASES = {
    "cls": Case(),
    "average": Case(pooling="average"),
    "max": Case(pooling="max"),
    "head": Case(head_norm=True, head_dim=24),
    "reduction": Case(reduction=8, framing="square"),
    "head and reduction": Case(pooling="average", head_norm=True, head_dim=24, reduction=8),
    "convnet": Case("test_resnet", 64, "average"),
    "native": Case("test_resnet", 64, "native"),
    "gem": Case(pooling="gem", gem_learnable=True, head_dim=24, reduction=8, needs_code=True),
    "gem of a convnet": Case("test_resnet", 64, "gem", needs_code=True),
    "channels last": Case("test_convnext", 64, "gem", needs_code=True),
    "rmac": Case("test_resnet", 64, "rmac", needs_code=True),
}


def write_encoder(case: Case, folder: Path) -> Path:
    """Write an encoder with random weights; its reduction is random too."""
    from vitrieve.config import ModelConfig
    from vitrieve.model.encoder import add_reduction, build_encoder, save_encoder
    from vitrieve.model.reduction import Pca

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings: dict[str, Any] = dataclasses.asdict(case)
        size, _ = settings.pop("reduction"), settings.pop("needs_code")
        encoder = build_encoder(ModelConfig(**settings, drop_path_rate=0.0), is_pretrained=False).eval()
        for name, parameter in encoder.named_parameters():
            if name == "gem_p":
                parameter.data.fill_(4.5)
        if size is not None:
            generator = np.random.default_rng(0)
            width = encoder.spec.embedding_dim
            components = generator.standard_normal((size, width), dtype=np.float32)
            mean = generator.standard_normal(width, dtype=np.float32)
            encoder = add_reduction(
                encoder, Pca(mean=mean, components=components, variances=np.ones(size), fitted_on="x")
            )
    save_encoder(encoder, folder)
    return folder


def write_pictures(folder: Path) -> list[Path]:
    """Write pictures of several shapes, among them one that is gray."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    paths = []
    for number, (width, height) in enumerate([(90, 61), (40, 133), (64, 64), (301, 77)]):
        small = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height))
        paths.append(folder / f"{number}.png")
        (small.convert("L") if number == 2 else small).save(paths[-1])
    return paths


def compute_by_timm(folder: Path, pictures: list[Path]) -> np.ndarray:
    """Compute the embeddings as the folder says, by timm and torch alone."""
    from safetensors.torch import load_file

    home = folder / json.loads((folder / "modules.json").read_text())[0]["path"]
    config = json.loads((home / "config.json").read_text())
    model = timm.create_model(f"local-dir:{home}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(config["pretrained_cfg"]))
    with torch.inference_mode():
        values = torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures])
        values = model(values)
        for module in json.loads((folder / "modules.json").read_text())[1:]:
            kind, path = module["type"].rpartition(".")[2], folder / module["path"] / "model.safetensors"
            states = load_file(path) if path.exists() else {}
            if kind == "LayerNorm":
                values = torch.nn.functional.layer_norm(values, values.shape[1:], states["norm.weight"])
            elif kind == "Dense":
                values = values @ states["linear.weight"].T + states["linear.bias"]
            else:
                assert kind == "Normalize"
                values = values / values.norm(dim=1, keepdim=True)
        return values.numpy()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.needs_code])
def test_timm_opens_the_folder_and_computes_the_same(name: str, tmp_path: Path) -> None:
    encoder = write_encoder(CASES[name], tmp_path / "encoder")
    pictures = write_pictures(tmp_path / "pictures")
    made = export_as(encoder, tmp_path / "out", "sentence-transformers")
    with load_encoder(encoder, engine="torch", precision="fp32", device="cpu") as ours:
        expected = ours.encode(pictures)
        assert (made.fingerprint, made.embedding_dim) == (ours.fingerprint, ours.embedding_dim)
    assert not made.needs_code
    assert made.cosine is not None
    assert made.cosine > 0.9999
    found = compute_by_timm(tmp_path / "out", pictures)
    assert (found * expected).sum(axis=1).min() > 0.99999
    assert set(made.files) == {str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.needs_code])
def test_the_code_of_a_pooling_stands_in_the_folder(name: str, tmp_path: Path) -> None:
    encoder = write_encoder(CASES[name], tmp_path / "encoder")
    made = export_as(encoder, tmp_path / "out", "sentence-transformers")
    assert made.needs_code
    code = (tmp_path / "out" / "modeling_vitrieve.py").read_text()
    compile(code, "modeling_vitrieve.py", "exec")
    assert "import vitrieve" not in code
    assert "from vitrieve" not in code
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "vitrieve"
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text()


def test_transformers_and_sentence_transformers_compute_the_same(tmp_path: Path) -> None:
    """Run the code blocks of each card; one process for all, because the libraries take long to load."""
    pytest.importorskip("sentence_transformers", minversion="5.4")
    pytest.importorskip("transformers")
    pictures = write_pictures(tmp_path / "pictures")[1:3]
    for number, case in enumerate(CASES.values()):
        export_as(
            write_encoder(case, tmp_path / f"encoder{number}"), tmp_path / f"out{number}", "sentence-transformers"
        )
        with load_encoder(tmp_path / f"encoder{number}", engine="torch", precision="fp32", device="cpu") as ours:
            np.save(tmp_path / f"out{number}.npy", ours.encode(pictures))
    script = f"""
import re, sys, numpy as np
from pathlib import Path
for out in sorted(Path({str(tmp_path)!r}).glob("out*.npy")):
    folder, expected = out.with_suffix(""), np.load(out)
    card = (folder / "README.md").read_text()
    blocks = re.findall("```python\\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2, card
    for block in blocks:
        worst = 1.0
        for number, picture in enumerate({[str(path) for path in pictures]!r}):
            names = {{}}
            exec(block.replace("FOLDER", str(folder)).replace("picture.jpg", picture), names)
            worst = min(worst, float((np.asarray(names["vectors"])[0] * expected[number]).sum()))
        print(folder.name, block.split()[1], worst)
        assert worst > 0.99999, (folder.name, block)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.split("\n")) == 2 * len(CASES) + 1


@pytest.mark.parametrize("name", ["cls", "head", "head and reduction", "gem"])
def test_a_pushed_encoder_is_opened_by_others_too(name: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs vitrieve[hub]")
    encoder, out = write_encoder(CASES[name], tmp_path / "encoder"), tmp_path / "out"
    plain = push_encoder(encoder, "owner/name", dry_run=tmp_path / "plain")
    pushed = push_encoder(encoder, "owner/name", also="sentence-transformers", dry_run=out)
    added = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - set(plain.files)
    assert set(pushed.files) == added | set(plain.files), "what is written is sent"
    assert ("modeling_vitrieve.py" in added) == CASES[name].needs_code
    assert 'SentenceTransformer("owner/name"' in pushed.card
    assert "sentence-transformers" not in plain.card
    pictures = write_pictures(tmp_path / "pictures")
    with load_encoder(out, engine="torch", precision="fp32", device="cpu") as ours:
        assert ours.fingerprint == plain.fingerprint
        expected = ours.encode(pictures)
    if not CASES[name].needs_code:
        assert (compute_by_timm(out, pictures) * expected).sum(axis=1).min() > 0.99999


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client, as in test_sharing.py
def test_transformers_and_sentence_transformers_open_a_repository(tmp_path: Path, hub: Hub) -> None:
    """Run both code blocks of the cards of two repositories of a hub on this machine: with code, and with two steps."""
    pytest.importorskip("sentence_transformers", minversion="5.4")
    pytest.importorskip("transformers")
    picture = write_pictures(tmp_path / "pictures")[1]
    names = {"owner/gem": "gem", "owner/steps": "head and reduction"}
    for number, (name, case) in enumerate(names.items()):
        encoder = write_encoder(CASES[case], tmp_path / f"encoder{number}")
        push_encoder(encoder, name, also="sentence-transformers")
        with load_encoder(encoder, engine="torch", precision="fp32", device="cpu") as ours:
            np.save(tmp_path / f"{number}.npy", ours.encode([picture]))
        (tmp_path / f"{number}.md").write_bytes(hub.repositories[name].files["README.md"])
    script = f"""
import re, numpy as np
from pathlib import Path
for number in range({len(names)}):
    expected = np.load(Path({str(tmp_path)!r}) / f"{{number}}.npy")
    blocks = re.findall("```python\\n(.*?)```", (Path({str(tmp_path)!r}) / f"{{number}}.md").read_text(), re.DOTALL)
    for block in [block for block in blocks if "transformers" in block]:
        found = {{}}
        exec(block.replace("picture.jpg", {str(picture)!r}), found)
        print(number, float((np.asarray(found["vectors"])[0] * expected[0]).sum()))
"""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "theirs"), "PYTHONPATH": ""}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + repr(hub.requests[-12:])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [number for number, _ in lines] == ["0", "0", "1", "1"]
    assert min(float(cosine) for _, cosine in lines) > 0.99999


def test_what_others_cannot_open_is_not_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrieve.model.encoder import read_encoder, save_encoder

    encoder = write_encoder(CASES["average"], tmp_path / "encoder")
    with pytest.raises(ConfigError, match=r"nothing to add for 'onnx'; expected sentence-transformers"):
        push_encoder(encoder, "owner/name", also="onnx", dry_run=tmp_path / "out")  # type: ignore[arg-type]
    monkeypatch.setattr("vitrieve.evaluation.sharing.is_torch_installed", lambda: False)
    with pytest.raises(ConfigError, match="needs torch"):
        push_encoder(encoder, "owner/name", also="sentence-transformers", dry_run=tmp_path / "out")
    monkeypatch.undo()
    scaled = tmp_path / "scaled"
    save_encoder(read_encoder(write_encoder(CASES["convnet"], tmp_path / "convnet"), scales=(1.0, 0.5)), scaled)
    with pytest.raises(ConfigError, match="several scales"):
        push_encoder(scaled, "owner/name", also="sentence-transformers", dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def run_card(folder: Path, pictures: list[Path]) -> np.ndarray:
    """Run the code of a card on each picture."""
    (block,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    rows = []
    for picture in pictures:
        names: dict[str, Any] = {}
        exec(block.replace("FOLDER", str(folder)).replace("picture.jpg", str(picture)), names)
        rows.append(np.asarray(names["vectors"].detach() if torch.is_tensor(names["vectors"]) else names["vectors"]))
    return np.concatenate(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gem"])
def test_a_program_of_torch_export_computes_the_same(name: str, tmp_path: Path) -> None:
    encoder = write_encoder(CASES[name], tmp_path / "encoder")
    pictures = write_pictures(tmp_path / "pictures")
    made = export_as(encoder, tmp_path / "out", "torch-export")
    assert made.cosine is not None
    assert made.cosine > 0.9999
    with load_encoder(encoder, engine="torch", precision="fp32", device="cpu") as ours:
        expected = ours.encode(pictures)
        told = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        assert read_preprocessor(told) == ours.preprocessing
    found = run_card(tmp_path / "out", pictures)
    assert (found * expected).sum(axis=1).min() > 0.99999


FIXED_SIZE = dataclasses.replace(CASES["gem"], backbone="vit_tiny_patch16_224")
"""A transformer whose positions timm does not resize in every pass: for that LiteRT has no operator."""


@pytest.mark.parametrize("case", [FIXED_SIZE, CASES["rmac"]])
def test_a_graph_of_litert_computes_the_same(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs litert-torch, which is no extra of vitrieve")
    encoder = write_encoder(case, tmp_path / "encoder")
    pictures = write_pictures(tmp_path / "pictures")
    made = export_as(encoder, tmp_path / "out", "tflite")
    assert made.cosine is not None
    assert made.cosine > 0.9999
    with load_encoder(encoder, engine="torch", precision="fp32", device="cpu") as ours:
        expected = ours.encode(pictures)
    assert (run_card(tmp_path / "out", pictures) * expected).sum(axis=1).min() > 0.99999


def test_what_a_converter_cannot_do_is_said_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs litert-torch, which is no extra of vitrieve")
    encoder = write_encoder(CASES["cls"], tmp_path / "encoder")
    with pytest.raises(ConfigError, match=r"litert-torch cannot convert test_vit .*_upsample_bicubic2d_aa.*as onnx"):
        export_as(encoder, tmp_path / "out", "tflite")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gem", "rmac"])
def test_a_program_of_core_ml_has_input_and_output(name: str, tmp_path: Path) -> None:
    """It does not run on Linux; that it computes the same is not shown here."""
    tools = pytest.importorskip("coremltools", reason="needs coremltools, which is no extra of vitrieve")
    case = CASES[name]
    made = export_as(write_encoder(case, tmp_path / "encoder"), tmp_path / "out", "coreml")
    assert made.cosine is None
    told = tools.utils.load_spec(str(tmp_path / "out" / "encoder.mlpackage")).description
    assert [one.name for one in told.input] == ["pixels"]
    assert list(told.input[0].type.multiArrayType.shape) == [1, 3, case.image_size, case.image_size]
    assert [one.name for one in told.output] == ["embedding"]
    assert "compare it with the encoder" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("format", "package"), [("coreml", "coremltools"), ("tflite", "litert_torch")])
def test_a_missing_converter_is_named(format: Any, package: str, tmp_path: Path) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    encoder = write_encoder(CASES["cls"], tmp_path / "encoder")
    with pytest.raises(ConfigError, match=f"pip install {package.replace('_', '-')}"):
        export_as(encoder, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_the_preparation_that_is_told_is_read_again() -> None:
    for framing in ("crop", "square"):
        for size in (32, 112, 224, 518):
            for filter in ("bilinear", "bicubic"):
                given = build_preprocessing(size, interpolation=filter, mean=(0.5, 0.4, 0.3), framing=framing)
                assert read_preprocessor(describe_preprocessing(given)) == given


@pytest.mark.parametrize("size", [32, 64, 98, 112, 196, 224, 378, 518])
def test_timm_prepares_pictures_bit_for_bit(size: int) -> None:
    from vitrieve.model.hugging_face import find_crop_share

    preprocessing = build_preprocessing(size)
    transform = timm.data.create_transform(
        (3, size, size), interpolation="bicubic", crop_pct=find_crop_share(preprocessing), crop_mode="center"
    )
    generator = np.random.default_rng(size)
    for width, height in [(640, 427), (333, 500), (size, size + 1)]:
        picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        np.testing.assert_allclose(transform(picture).numpy(), preprocess(picture, preprocessing), atol=1e-6)


def test_export_as_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, out = write_encoder(CASES["gem"], tmp_path / "encoder"), tmp_path / "out"
    command = ["export", "--encoder", str(encoder), "--format", "sentence-transformers"]
    assert main(command) == 2
    assert "name it with --out" in capsys.readouterr().err
    assert main([*command, "--out", str(out), "--delta-rank", "2"]) == 2
    assert "a difference" in capsys.readouterr().err
    assert main([*command, "--out", str(out)]) == 0
    assert "trust_remote_code=True" in capsys.readouterr().out
    assert main([*command, "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--out", str(out), "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "sentence-transformers"
    assert (told["needs_code"], told["embedding_dim"]) == (True, 8)
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: sentence-transformers" in card
    assert "load_encoder" not in card
    assert main(["export", "--encoder", str(out), "--format", "sentence-transformers", "--out", str(out)]) == 2


def test_what_has_no_place_in_a_format_is_refused(tmp_path: Path) -> None:
    from vitrieve.config import ModelConfig, PromptConfig
    from vitrieve.model.encoder import build_encoder, save_encoder

    convnet = write_encoder(CASES["convnet"], tmp_path / "convnet")
    with pytest.raises(ConfigError, match="have no several scales"):
        export_as(convnet, tmp_path / "out", "sentence-transformers", scales=(1.0, 0.5))
    with torch.random.fork_rng(devices=[]):
        config = ModelConfig(backbone="test_vit", image_size=32, prompts=PromptConfig(num_tokens=2))
        save_encoder(build_encoder(config, is_pretrained=False), tmp_path / "prompts")
    with pytest.raises(ConfigError, match="have no tokens of prompt tuning"):
        export_as(tmp_path / "prompts", tmp_path / "out", "sentence-transformers")
    with pytest.raises(ConfigError, match="there is no format 'pickle'"):
        export_as(convnet, tmp_path / "out", "pickle")  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="holds the encoder itself"):
        export_as(convnet, tmp_path, "sentence-transformers")
    with pytest.raises(ArtifactError):
        export_as(tmp_path / "nothing", tmp_path / "out", "sentence-transformers")
    assert not (tmp_path / "out").exists()
