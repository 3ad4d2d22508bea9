"""Where an encoder computes, with a GPU that is pretended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import vitrieve
from tests.pretend_cuda import pretend_cuda
from vitrieve.cli.main import main
from vitrieve.errors import ConfigError
from vitrieve.runtime import device as device_module
from vitrieve.runtime.encoder import load_encoder
from vitrieve.runtime.engine import CPU_BATCH_SIZE, GPU_BATCH_SIZE, choose_device
from vitrieve.runtime.torch_engine import TorchEngine


@pytest.fixture
def _driver() -> Iterator[None]:
    """A machine whose files say that it may have a GPU, which torch sees."""
    with (
        mock.patch("vitrieve.runtime.engine.may_have_cuda", return_value=True),
        mock.patch("vitrieve.runtime.device.has_cuda", return_value=True),
    ):
        yield


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where each engine of torch that is made from here on computes."""
    found: list[str] = []
    begin = TorchEngine.__init__

    def note(engine: TorchEngine, *given: Any, **options: Any) -> None:
        begin(engine, *given, **options)
        found.append(engine.device)

    monkeypatch.setattr(TorchEngine, "__init__", note)
    return found


@pytest.mark.usefixtures("_driver")
def test_auto_is_a_gpu_unless_something_for_cpus_is_asked_for() -> None:
    assert choose_device("auto", "auto", "auto") == choose_device("auto", "torch", "bf16") == "cuda"
    assert choose_device("auto", "onnx", "auto") == choose_device("auto", "auto", "int8") == "cpu"
    assert choose_device("cpu", "auto", "auto") == "cpu"
    for engine, precision, part in (("openvino", "auto", "engine 'openvino'"), ("auto", "int8", "precision 'int8'")):
        with pytest.raises(ConfigError, match=f"the {part} computes on the CPU only"):
            choose_device("cuda", engine, precision)  # type: ignore[arg-type]


def test_without_torch_or_a_gpu_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.runtime.engine.is_torch_installed", lambda: False)
        assert choose_device("auto", "auto", "auto") == "cpu"
        with pytest.raises(ConfigError, match=r"the device cuda needs the extra vitrieve\[train\]"):
            choose_device("cuda", "auto", "auto")
    monkeypatch.setattr("vitrieve.runtime.device.has_cuda", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no CUDA device here; use cpu, or auto"):
        choose_device("cuda", "auto", "auto")


@pytest.mark.parametrize(("version", "visible", "expected"), [("2.14.1+cpu", None, False), ("2.14.1", "", False)])
def test_a_gpu_is_ruled_out_without_importing_torch(
    monkeypatch: pytest.MonkeyPatch, version: str, visible: str | None, expected: bool
) -> None:
    monkeypatch.setattr(device_module.metadata, "version", lambda name: version)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_module.may_have_cuda() is expected


def test_a_driver_makes_a_gpu_possible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device_module.metadata, "version", lambda name: "2.14.1+cu130")
    monkeypatch.setattr(device_module.sys, "platform", "linux")
    monkeypatch.setattr(device_module, "_DRIVER_FILES", (str(tmp_path / "driver"),))
    assert not device_module.may_have_cuda()
    (tmp_path / "driver").touch()
    assert device_module.may_have_cuda()


def test_an_encoder_on_a_gpu_gives_the_embeddings_of_the_cpu(tiny_encoder_folder: Path, picture_folder: Path) -> None:
    pictures = sorted(picture_folder.glob("*.png"))
    on_cpu = load_encoder(tiny_encoder_folder, engine="torch", precision="fp32", device="cpu")
    assert (on_cpu.device, on_cpu.batch_size) == ("cpu", CPU_BATCH_SIZE)
    with pretend_cuda():
        on_gpu = load_encoder(tiny_encoder_folder, precision="fp32", device="cuda")
        assert (on_gpu.engine, on_gpu.device, on_gpu.batch_size) == ("torch", "cuda", GPU_BATCH_SIZE)
        assert on_gpu.fingerprint == on_cpu.fingerprint
        found = on_gpu.encode(pictures)
        tokens = on_gpu.patch_tokens(np.zeros((1, 3, 32, 32), np.float32))
    np.testing.assert_allclose(found, on_cpu.encode(pictures), atol=1e-5)
    assert tokens.shape == (1, 4, 64)


def test_a_given_batch_size_is_that_of_a_forward_pass(
    tiny_encoder_folder: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = TorchEngine.encode

    def note(engine: TorchEngine, pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        return encode(engine, pixels)

    monkeypatch.setattr(TorchEngine, "encode", note)
    records = [*vitrieve.read_collection(str(picture_folder)).records] * 4
    encoder = load_encoder(tiny_encoder_folder, engine="torch", num_threads=1, device="cpu")
    vitrieve.embed_images(encoder, records, batch_size=20)
    vitrieve.embed_images(encoder, records)
    assert sizes == [20, 20, 8, 16, 16, 16]


def test_every_command_that_embeds_takes_a_device(
    tiny_encoder_folder: Path,
    photographs: Path,
    tmp_path: Path,
    devices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The export reads the folder again, on the CPU, and cannot be traced on a GPU that is pretended.
    monkeypatch.setattr("vitrieve.training.reduction.export_folder", lambda folder: None)
    encoder, out = str(tiny_encoder_folder), tmp_path / "out"
    table = tmp_path / "tested.csv"
    rows = [f"{path},{path.parent.name},test" for path in sorted(photographs.rglob("*.png"))]
    table.write_text("\n".join(["path,label,split", *rows]) + "\n")
    source, picture = f"folder:{photographs}", str(photographs / "class0" / "0.png")
    commands = {
        "embed": ["--encoder", encoder, "--data", source, "--out", str(out / "embeddings")],
        "index": ["--embeddings", str(out / "embeddings"), "--out", str(out / "index")],
        "search": ["--index", str(out / "index"), picture],
        "explain": ["--index", str(out / "index"), picture, "--out", str(out / "explained.png")],
        "calibrate": ["--index", str(out / "index"), "--data", f"table:{table}"],
        "evaluate": ["--encoder", encoder, "--data", source, "--out", str(out / "evaluation"), "--no-report"],
        "sync": [str(photographs), "--index", str(out / "synced"), "--encoder", encoder],
        "reduce": ["--encoder", encoder, "--data", source, "--embedding-dim", "4", "--out", str(out / "reduced")],
    }
    for name, words in commands.items():
        devices.clear()
        flags = [] if name == "index" else ["--device", "cuda"]
        with pretend_cuda():
            assert main([name, *words, *flags]) == 0, name
        assert set(devices) == (set() if name in ("index", "reduce") else {"cuda"}), name


@pytest.mark.parametrize("name", ["serve", "up"])
def test_a_service_embeds_on_the_device(
    name: str,
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    devices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[np.ndarray] = []

    def answer(searcher: vitrieve.Searcher, *_: Any, **__: Any) -> None:
        with Image.open(sorted(picture_folder.rglob("*.*"))[0]) as picture:
            found.append(searcher.encoder.encode([picture]))

    monkeypatch.setattr("vitrieve.serve.server.serve", answer)
    index, encoder = str(tmp_path / "index"), str(tiny_encoder_folder)
    assert main(["sync", str(picture_folder), "--index", index, "--encoder", encoder, "--device", "cpu"]) == 0
    words = {"serve": ["--index", index], "up": [str(picture_folder), "--index", index, "--encoder", encoder]}
    devices.clear()
    with pretend_cuda():
        assert main([name, *words[name], "--port", "0", "--device", "cuda"]) == 0
    assert devices == ["cuda"]
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), 1, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_command_refuses_a_gpu_that_is_not_there(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--encoder", str(tiny_encoder_folder), "--data", str(picture_folder), "--out", str(tmp_path / "out")]
    assert main(["embed", *words, "--device", "cuda"]) == 2
    assert "torch sees no CUDA device here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
