"""What an engine is, the part of an encoder that computes, and which one is taken: the fastest that is exact enough.

With an exported graph ``auto`` takes OpenVINO, then ONNX Runtime, then torch; without one only torch can compute.
(torch in bf16 is faster than ONNX Runtime, but takes seconds to import; OpenVINO is faster than both, and
``vitrieve[train]`` brings it.) ``auto`` computes in bf16 where engine and processor have it, else in fp32. int8 must be
asked for, and made first (``vitrieve quantize``). dev/LOG.md has what each gains in speed and costs in quality. All of
this holds on the CPU: on a GPU torch computes.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

from vitrieve.choices import Device
from vitrieve.errors import ConfigError
from vitrieve.runtime.device import DeviceName, has_bf16_instructions, may_have_cuda, resolve_device

if TYPE_CHECKING:
    import numpy as np  # not otherwise: commands import this for the names of their flags

EngineName = Literal["openvino", "onnx", "torch"]
CPU_BATCH_SIZE = 16
"""Pictures in one call of an engine: 8 to 16 stay in the cache of a CPU (torch in bf16: 50 images/s, 35 for 64)."""
GPU_BATCH_SIZE = 128
"""The same on a GPU, which has thousands of cores to keep busy (assumed, not measured)."""
NO_PATCHES = (
    "this encoder puts out no tokens of patches, which explanations need; choose an encoder of a plain vision "
    "transformer or a convnet for them."
)


def choose_batch_size(device_type: str) -> int:
    """Choose the pictures in one forward pass on a device: as many as keep it busy, and its caches warm."""
    return CPU_BATCH_SIZE if device_type == "cpu" else GPU_BATCH_SIZE


class Engine(Protocol):
    """Computes embeddings of a few prepared pictures at a time.

    Attributes:
        name: Which engine it is.
        precision: Precision of its matrix products: ``fp32``, ``bf16`` or ``int8``; what it returns is always float32.
        num_parallel: Calls that it computes side by side, from as many threads; others wait for their turn.
        device: Device that it computes on.
        batch_size: Pictures in one call with which it is fastest.
    """

    name: EngineName
    precision: str
    num_parallel: int
    device: DeviceName
    batch_size: int

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, E)`` float32 rows of unit length; B is at least 1."""
        ...

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        """Turn ``(B, S, S, 3)`` uint8, not yet normalized, into what ``encode`` gives; B is at least 1."""
        ...

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, N, D)`` float32 tokens of the patches; B is at least 1."""
        ...


class ClosedEngine:
    """An engine that was let go: it says so to whoever still uses it."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.precision, self.num_parallel = engine.name, engine.precision, engine.num_parallel
        self.device, self.batch_size = engine.device, engine.batch_size

    def encode(self, pixels: np.ndarray) -> NoReturn:
        """Refuse."""
        raise ConfigError("this encoder is closed; load it again (load_encoder).")

    def encode_squares(self, squares: np.ndarray) -> NoReturn:
        """Refuse."""
        self.encode(squares)

    def patch_tokens(self, pixels: np.ndarray) -> NoReturn:
        """Refuse."""
        self.encode(pixels)


EngineChoice = Literal["auto", "openvino", "onnx", "torch"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "int8"]

PRECISIONS: dict[EngineName, tuple[str, ...]] = {
    "openvino": ("fp32", "bf16", "int8"),
    "onnx": ("fp32",),
    "torch": ("fp32", "bf16"),
}
EXTRAS: dict[EngineName, str] = {"openvino": "vitrieve[fast]", "onnx": "vitrieve", "torch": "vitrieve[train]"}
_PACKAGES: dict[EngineName, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "onnx": ("onnxruntime",),
    "torch": ("torch", "timm"),
}


def is_installed(engine: EngineName) -> bool:
    """Say whether an engine's packages are there, without importing them."""
    return all(find_spec(package) is not None for package in _PACKAGES[engine])


def is_torch_installed() -> bool:
    """Say whether torch and timm are there, without importing them."""
    return is_installed("torch")


def require_torch(doing: str, action: str) -> None:
    """Refuse what only torch can do, where it is not installed; both words name it: ``exporting``, ``export``.

    Raises:
        ConfigError: torch or timm is not installed.
    """
    if not is_torch_installed():
        raise ConfigError(f"{doing} needs torch: install vitrieve[train], or {action} on another machine.")


def choose_device(device: Device, engine: EngineChoice, precision: PrecisionChoice) -> DeviceName:
    """Choose where an encoder computes: ``auto`` is a GPU where torch sees one, and may compute.

    Args:
        device: ``auto``, or the name of one.
        engine: ``auto``, or the engine that must compute; only torch does on a GPU.
        precision: ``auto``, or one that the engine must have; int8 is for CPUs.

    Raises:
        ConfigError: ``cuda`` without a GPU or torch, or with an engine or a precision that is for CPUs.
    """
    is_for_cpus = engine in ("openvino", "onnx") or precision == "int8"
    if device == "cpu" or (device == "auto" and (is_for_cpus or not is_torch_installed() or not may_have_cuda())):
        return "cpu"
    if is_for_cpus:
        what = f"the engine {engine!r}" if engine != "auto" else f"the precision {precision!r}"
        raise ConfigError(
            f"{what} computes on the CPU only; leave it out on the device cuda, or choose the device cpu."
        )
    if not is_torch_installed():
        raise ConfigError(f"the device cuda needs the extra {EXTRAS['torch']}, which is not installed; use cpu.")
    return "cuda" if resolve_device(device).type == "cuda" else "cpu"


def choose_engine(
    engine: EngineChoice, precision: PrecisionChoice, *, has_graph: bool, device: DeviceName = "cpu"
) -> EngineName:
    """Choose the engine that computes.

    Args:
        engine: ``auto``, or the name of one.
        precision: ``auto``, or one that the engine must have.
        has_graph: The encoder is exported, for the wanted size and scales.
        device: Result of ``choose_device``.

    Returns:
        An installed engine; without a graph torch, or, for want of it, ONNX Runtime, which then says what is missing.

    Raises:
        ConfigError: The engine is not installed or does not compute in the precision.
    """
    if device == "cuda":
        return "torch"
    if engine != "auto":
        if not is_installed(engine):
            raise ConfigError(
                f"the engine {engine!r} needs the extra {EXTRAS[engine]}, which is not installed; "
                "use 'auto' for the fastest engine that is here."
            )
        _check_precision(engine, precision)
        return engine
    order: tuple[EngineName, ...] = ("openvino", "onnx", "torch") if has_graph else ("torch", "onnx")
    for name in order:
        if is_installed(name) and precision in ("auto", *PRECISIONS[name]):
            _check_precision(name, precision)
            return name
    raise ConfigError(
        f"the precision {precision!r} needs the extra {EXTRAS['openvino']}, and an encoder that is exported for this "
        "image size (vitrieve export)."
    )


def _check_precision(engine: EngineName, precision: PrecisionChoice) -> None:
    if precision not in ("auto", *PRECISIONS[engine]):
        raise ConfigError(
            f"the engine {engine!r} does not compute in {precision!r}, only in {', '.join(PRECISIONS[engine])}."
        )
    if precision == "bf16" and not has_bf16_instructions():
        raise ConfigError("this processor has no bf16 instructions; use the precision 'fp32' or 'auto'.")
