"""The engines that run an exported encoder on the CPU, without torch: ONNX Runtime, and the faster OpenVINO."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vitrieve.data.preprocess import Preprocessing, to_pixels
from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.model.artifact import EMBEDDING_OUTPUT, PATCH_TOKENS_OUTPUT, PIXELS_INPUT
from vitrieve.runtime.compiled import CompiledGraph, compile_kept
from vitrieve.runtime.device import DeviceName, resolve_precision
from vitrieve.runtime.engine import CPU_BATCH_SIZE, NO_PATCHES, EngineName

if TYPE_CHECKING:
    import openvino

LOG_ERRORS_ONLY = 3


class OnnxEngine:
    """Runs an exported encoder with ONNX Runtime on the CPU, in fp32.

    Args:
        path: The graph; its checksum is already checked.
        preprocessing: Mean and standard deviation, for ``encode_squares``.
        num_threads: CPU threads of this engine; None: one for each core.

    Raises:
        ArtifactError: The graph cannot be loaded.
    """

    name: EngineName = "onnx"
    device: DeviceName = "cpu"
    batch_size: int = CPU_BATCH_SIZE
    precision: str = "fp32"
    num_parallel: int = 1

    def __init__(self, path: Path, preprocessing: Preprocessing, *, num_threads: int | None = None) -> None:
        import onnxruntime

        self._preprocessing = preprocessing
        options = onnxruntime.SessionOptions()
        options.log_severity_level = LOG_ERRORS_ONLY
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no public base class
            raise ArtifactError(f"ONNX Runtime cannot load {path} ({error}); export the encoder again.") from error

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, E)`` float32 rows of unit length."""
        return self._run(EMBEDDING_OUTPUT, pixels)

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        """Turn ``(B, S, S, 3)`` uint8, not yet normalized, into ``(B, E)`` float32 rows of unit length."""
        return self.encode(to_pixels(squares, self._preprocessing))

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, N, D)`` float32 tokens of the patches."""
        if PATCH_TOKENS_OUTPUT not in {output.name for output in self._session.get_outputs()}:
            raise ConfigError(NO_PATCHES)
        return self._run(PATCH_TOKENS_OUTPUT, pixels)

    def _run(self, output: str, pixels: np.ndarray) -> np.ndarray:
        feeds = {PIXELS_INPUT: np.ascontiguousarray(pixels, dtype=np.float32)}
        return np.asarray(self._session.run([output], feeds)[0], dtype=np.float32)


TELEMETRY = "openvino_telemetry"


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Hide the package while others are imported; where it is imported already nothing can be done."""
    if TELEMETRY in sys.modules:
        yield
        return
    modules = cast(dict[str, Any], sys.modules)
    modules[TELEMETRY] = None  # Python then raises ImportError
    try:
        yield
    finally:
        if modules.get(TELEMETRY, "") is None:
            del modules[TELEMETRY]


_cores: list[openvino.Core] = []
_cores_lock = threading.Lock()


def get_openvino_core() -> openvino.Core:
    """Return the OpenVINO core of this process, which is made once, without telemetry, and never let go.

    Its CPU plugin gives the thread that made it another stack for signal handlers. A core that is let go by another
    thread, or before a core that was made earlier, leaves the address of memory that is gone behind, and the next
    Ctrl-C or SIGTERM ends the process in a segmentation fault (OpenVINO 2026.4; ``tests/runtime/test_signals.py``).
    """
    with _cores_lock:
        if not _cores:
            with no_telemetry():
                import openvino
            _cores.append(openvino.Core())
    return _cores[0]


class OpenVinoEngine:
    """Runs an exported encoder with OpenVINO on the CPU.

    The cores are divided into streams that share nothing, one call of ``encode`` each (two of one core here), because
    cores that work on one picture together wait for each other, and for a core that decodes the next picture.

    Args:
        path: The graph; its checksum is already checked.
        quantized_path: The graph of the embedding in int8, for the precision ``int8``.
        preprocessing: Mean and standard deviation, which become part of the graph for ``encode_squares``.
        precision: ``fp32``, ``bf16`` or ``int8``, in which what is not quantized runs in bf16, where the processor
            has it; so do patch tokens.
        num_threads: CPU threads of this engine; None: one for each core.
        checksums: Checksums of the graph's files, by which a compiled one is kept in the cache; empty: it is not kept.

    Raises:
        ArtifactError: The graph cannot be loaded.
    """

    name: EngineName = "openvino"
    device: DeviceName = "cpu"
    batch_size: int = CPU_BATCH_SIZE

    def __init__(
        self,
        path: Path,
        preprocessing: Preprocessing,
        *,
        precision: str,
        quantized_path: Path | None = None,
        num_threads: int | None = None,
        checksums: Sequence[str] = (),
    ) -> None:
        self.precision = precision
        self._preprocessing = preprocessing
        self._core = get_openvino_core()
        self._path, self._quantized_path = path, quantized_path
        self._checksums = list(checksums)
        self._states = {file: _describe_state(file) for file in (path, quantized_path) if file is not None}
        around = resolve_precision("auto") if precision == "int8" else precision
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if around == "bf16" else "f32",
            "PERFORMANCE_HINT": "THROUGHPUT",
            # Pinned, the threads of every process that takes fewer than all cores would run on the same first ones.
            **({} if num_threads is None else {"INFERENCE_NUM_THREADS": num_threads, "ENABLE_CPU_PINNING": False}),
        }
        self._lock = threading.Lock()
        self._programs: dict[tuple[str, bool], _Program] = {}
        try:
            program = self._program(EMBEDDING_OUTPUT, is_square=True)
        except Exception as error:  # its exceptions share no public base class
            raise ArtifactError(f"OpenVINO cannot load {path} ({error}); export the encoder again.") from error
        self.num_parallel = program.num_parallel

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, E)`` float32 rows of unit length."""
        return self._program(EMBEDDING_OUTPUT, is_square=False).run(np.ascontiguousarray(pixels, dtype=np.float32))

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        """Turn ``(B, S, S, 3)`` uint8, not yet normalized, into ``(B, E)`` float32 rows of unit length."""
        return self._program(EMBEDDING_OUTPUT, is_square=True).run(np.ascontiguousarray(squares, dtype=np.uint8))

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, N, D)`` float32 tokens of the patches."""
        return self._program(PATCH_TOKENS_OUTPUT, is_square=False).run(np.ascontiguousarray(pixels, dtype=np.float32))

    def _program(self, output: str, *, is_square: bool) -> _Program:
        """Compile the graph for one output and one kind of input, when first needed: some 0.3 s, or less.

        Raises:
            ConfigError: The graph does not put that out.
        """
        with self._lock:
            if (output, is_square) not in self._programs:
                program = _Program(self._compile(output, is_square=is_square))
                # Two first calls at once can wait for each other for ever: one holds the lock of a table that the
                # bindings are filling and waits for the interpreter's lock, the other the reverse. So the first call
                # is made here.
                side = self._preprocessing.image_size
                shape, kind = ((1, side, side, 3), np.uint8) if is_square else ((1, 3, side, side), np.float32)
                program.run(np.zeros(shape, dtype=kind))
                self._programs[output, is_square] = program
            return self._programs[output, is_square]

    def _compile(self, output: str, *, is_square: bool) -> CompiledGraph:
        is_quantized = self.precision == "int8" and output == EMBEDDING_OUTPUT

        def build() -> openvino.Model:
            # One output alone: computing the tokens too would take a tenth more time.
            graph = self._quantized if is_quantized else self._graph
            if output == PATCH_TOKENS_OUTPUT and not any(output in one.get_names() for one in graph.outputs):
                raise ConfigError(NO_PATCHES)
            graph = cut_graph(graph, output)
            return add_normalization(graph, self._preprocessing) if is_square else graph

        if not self._checksums or not is_square:  # what every process needs is kept, not what an explanation does
            return CompiledGraph(self._core.compile_model(build(), "CPU", self._settings))
        given = {"mean": self._preprocessing.mean, "std": self._preprocessing.std, "is_quantized": is_quantized}
        identity = {"checksums": self._checksums, "output": output, **given}
        return compile_kept(self._core, build, self._settings, identity)

    @cached_property
    def _graph(self) -> openvino.Model:
        return self._read(self._path)

    @cached_property
    def _quantized(self) -> openvino.Model:
        assert self._quantized_path is not None, "int8 comes with its graph"
        return self._read(self._quantized_path)

    def _read(self, path: Path) -> openvino.Model:
        """Read a graph, perhaps long after the compiled one was taken from the cache.

        Raises:
            ArtifactError: It is gone, or is another one than it was then.
        """
        if _describe_state(path) != self._states[path]:
            raise ArtifactError(f"{path} was replaced since it was loaded; start again with the encoder that is there.")
        return self._core.read_model(path)


def _describe_state(path: Path) -> tuple[int, int, int] | None:
    """Describe a file so that one that replaced it differs; None where it is gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


class _Program:
    """A compiled graph and the requests that run it; any number of threads may call ``run``."""

    def __init__(self, graph: CompiledGraph) -> None:
        self._compiled, self._memory = graph
        self._free: list[openvino.InferRequest] = []
        self.num_parallel = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def run(self, array: np.ndarray) -> np.ndarray:
        """Run a batch of any size."""
        try:
            request = self._free.pop()
        except IndexError:  # as many threads as there are requests: make one more
            request = self._compiled.create_infer_request()
        result = np.array(request.infer([array], share_inputs=True)[0], dtype=np.float32)  # a copy: it is used again
        self._free.append(request)
        return result


def cut_graph(graph: openvino.Model, output: str) -> openvino.Model:
    """Return the part of an exported graph that computes ``output``, as a graph of its own."""
    import openvino

    return openvino.Model([graph.output(output)], graph.get_parameters(), output).clone()


def add_normalization(graph: openvino.Model, preprocessing: Preprocessing) -> openvino.Model:
    """Let a graph take squares, ``(B, S, S, 3)`` uint8, instead of pixels, ``(B, 3, S, S)`` float32."""
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    processor = PrePostProcessor(graph)
    pixels = processor.input(PIXELS_INPUT)
    pixels.tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
    pixels.model().set_layout(Layout("NCHW"))
    steps = pixels.preprocess().convert_element_type(Type.f32)
    steps.mean([255 * mean for mean in preprocessing.mean]).scale([255 * std for std in preprocessing.std])
    return processor.build()
