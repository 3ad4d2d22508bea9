"""How a run computes: the device and its kernels, smaller pictures at first, and micro-batches that fit the memory.

A batch is embedded in pieces: small ones stay in the cache, and need less memory. The graph of all pieces is kept, so
that one loss sees the whole batch. Where a limit leaves no room for that, the batch is embedded twice: without a
graph for the loss and its gradient in the embeddings, then piece by piece with one. The result is the same, up to
rounding, for a third more work (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
arXiv:2101.06983).

Smaller pictures at first cost less. Source of the idea: Touvron et al., Fixing the train-test resolution discrepancy,
arXiv:1906.06423, and Howard's progressive resizing.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitrieve.config import Config
from vitrieve.data.loader import Batch, bound_cache
from vitrieve.errors import ConfigError
from vitrieve.model.backbone import describe_tokens, get_patch_px, use_explicit_attention
from vitrieve.model.blocks import keep_class_tokens, pooled_only
from vitrieve.model.encoder import ImageEncoder
from vitrieve.runtime.device import resolve_device, resolve_precision
from vitrieve.training.draws import StepDraws, place_draws
from vitrieve.training.ranks import Ranks, SynchronizedBatchNorm, current_ranks, share_places

# Of glibc's malloc.h: which freed memory goes back to the system, and which blocks are asked of it one by one.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_MMAP_THRESHOLD = 2**25
"""The largest value that glibc accepts."""


def prepare_encoder(encoder: ImageEncoder, config: Config) -> torch.device:
    """Move an encoder to the device of its run and choose the fast kernels there; return the device.

    Of the last block only what is pooled will be computed (``keep_class_tokens``). On a CPU freed memory is kept, and
    attention in bf16 is written out (``use_explicit_attention``). On CUDA float32 products may use TF32, convnets keep
    their channels last, and the encoder is compiled, unless ``train.compile`` says otherwise.

    Raises:
        ConfigError: As ``resolve_device``.
    """
    device = resolve_device(config.train.device)
    place_draws(encoder)
    keep_class_tokens(encoder)
    encoder.to(device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        if not encoder.layout.is_transformer:
            encoder.to(memory_format=torch.channels_last)
    else:
        if resolve_precision(config.train.precision) == "bf16":
            use_explicit_attention(encoder.backbone)
        keep_freed_memory()
    if config.train.compile if config.train.compile is not None else device.type == "cuda":
        encoder.compile()
    return device


def keep_freed_memory() -> bool:
    """Let this process keep what a step frees for the next step; return whether the C library could be told.

    A step frees all of its activations, gigabytes. By default glibc gives them back to the system, which hands them out
    again a page at a time, each cleared first: some 100,000 page faults a step. The most that a process needs at a
    time does not change.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        change_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(change_option(M_TRIM_THRESHOLD, 2**31 - 1) and change_option(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD))


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device, without waiting where it is pinned (the loader's are); on a CPU it is itself."""
    if device.type == "cpu":
        return batch
    moved = [None if one is None else one.to(device, non_blocking=True) for one in batch]
    return Batch(*moved)  # type: ignore[arg-type]


def image_size_at(config: Config, step: int) -> int:
    """Return the side of the pictures of the step after ``step`` finished ones, in pixels.

    >>> from vitrieve.config import TrainConfig
    >>> config = Config(train=TrainConfig(num_steps=10, low_resolution_size=64, low_resolution_share=0.5))
    >>> image_size_at(config, 4), image_size_at(config, 5) == config.model.image_size
    (64, True)
    """
    low = config.train.low_resolution_size
    is_low = low is not None and step < config.train.low_resolution_share * config.train.num_steps
    return low if low is not None and is_low else config.model.image_size


def allow_low_resolution(encoder: ImageEncoder, config: Config) -> None:
    """Let an encoder take the smaller pictures too; positions are resampled in each of their steps.

    Raises:
        ConfigError: The size is not below the encoder's, no multiple of the patch, or the backbone is of a family that
            takes pictures of one size only.
    """
    size = config.train.low_resolution_size
    if size is None:
        return
    if size >= config.model.image_size:
        raise ConfigError(
            f"train.low_resolution_size is {size}; expected less than model.image_size, {config.model.image_size}."
        )
    backbone: Any = encoder.backbone
    patch = get_patch_px(backbone)
    if patch and size % patch:
        raise ConfigError(f"train.low_resolution_size is {size}; expected a multiple of the patch, {patch} px.")
    if isinstance(encoder.backbone, VisionTransformer):
        backbone.dynamic_img_size = True
        patches = backbone.patch_embed
        patches.strict_img_size, patches.flatten, patches.output_fmt = False, False, Format.NHWC
    try:
        describe_tokens(backbone, size, encoder.spec.architecture)
    except ConfigError as error:
        raise ConfigError(
            f"train.low_resolution_size is {size}, but {encoder.spec.backbone} takes pictures of one size only; leave "
            "it out, or choose a backbone that takes several: ViT, DeiT, DINOv2, DINOv3, or a convnet."
        ) from error
    encoder.extra_image_sizes = (size,)


GIB = 2**30
SCRATCH_SHARE = 0.5
"""Share of the graph of a piece that its backward pass needs beside it: gradients of the largest activations."""
BYTES_PER_WEIGHT = 12
"""Bytes of the gradient and of the two moments of Adam, in float32."""
RESERVE_BYTES = 2 * GIB // 5
"""Reserve for pictures that are being decoded, temporary copies of the optimizer, and the allocator: runs of DeiT-S
and DINOv2 ViT-S needed 0.3 GiB beyond what is counted."""
STATUS_OF_PROCESS = Path("/proc/self/statm")


class MemoryPlan(NamedTuple):
    """How a batch is encoded.

    Attributes:
        microbatch_size: Images in one forward pass.
        is_encoded_twice: Whether only one piece's graph is kept at a time.
        bytes_needed: Estimate for the whole process; 0 where no limit asked for one.
    """

    microbatch_size: int
    is_encoded_twice: bool = False
    bytes_needed: int = 0

    def describe(self) -> str:
        """Say it in a sentence, for the log of a run with a limit."""
        way = "each batch embedded twice, " if self.is_encoded_twice else ""
        return f"memory: {way}micro-batches of {self.microbatch_size}, about {self.bytes_needed / GIB:.1f} GiB in all"


class ForwardPass(NamedTuple):
    """The embeddings of a batch, and the way of a loss over them to the weights.

    Attributes:
        embeddings: ``(B, E)`` float32, with gradient.
        backward: Function that takes the loss, a scalar, and adds to the gradients of all weights.
    """

    embeddings: Tensor
    backward: Callable[[Tensor], None]


def encode_batch(
    encoder: nn.Module, pixels: Tensor, config: Config, plan: MemoryPlan, draws: StepDraws | None = None
) -> ForwardPass:
    """Encode a batch, or the share of it that this process has, for a loss over all of it.

    Args:
        encoder: Encoder, or what ``wrap_encoder`` makes of it; in train mode afterwards.
        pixels: ``(B, 3, S, S)``.
        config: Settings that say the precision, and whether batch norm is frozen.
        plan: Result of ``plan_memory``.
        draws: Paths and patches that are dropped; None: drawn from torch's global generator.
    """
    set_train_mode(encoder, config)
    if not plan.is_encoded_twice:
        return ForwardPass(encode_pieces(encoder, pixels, config, plan.microbatch_size, draws), torch.autograd.backward)
    random_states = []
    with torch.no_grad():
        parts = []
        for piece in _cut(encoder, pixels, plan.microbatch_size, draws):
            random_states.append(_get_random_state(pixels.device))
            parts.append(_encode_piece(encoder, piece, config))
    embeddings = torch.cat(parts).requires_grad_()

    def backward(loss: Tensor) -> None:
        torch.autograd.backward(loss)
        assert embeddings.grad is not None
        # Batch norm has seen every piece once; the second pass must not count.
        buffers = [buffer.clone() for buffer in encoder.buffers()]
        after = _get_random_state(pixels.device)
        gradients = torch.split(embeddings.grad, plan.microbatch_size)
        pieces = _cut(encoder, pixels, plan.microbatch_size, draws)
        for number, (piece, gradient, state) in enumerate(zip(pieces, gradients, random_states, strict=True), start=1):
            _set_random_state(pixels.device, state)  # what draws by chance draws the same
            with _exchanging(encoder, is_last=number == len(random_states)):
                torch.autograd.backward(_encode_piece(encoder, piece, config), gradient)
        _set_random_state(pixels.device, after)
        for buffer, before in zip(encoder.buffers(), buffers, strict=True):
            buffer.copy_(before)

    return ForwardPass(embeddings, backward)


def encode_pieces(
    encoder: nn.Module, pixels: Tensor, config: Config, microbatch_size: int, draws: StepDraws | None = None
) -> Tensor:
    """Encode a batch in the encoder's present mode; ``(B, E)`` float32 with the graph of all pieces."""
    pieces = _cut(encoder, pixels, microbatch_size, draws)
    return torch.cat([_encode_piece(encoder, piece, config) for piece in pieces])


def _cut(encoder: nn.Module, pixels: Tensor, size: int, draws: StepDraws | None) -> Iterator[Tensor]:
    yield from torch.split(pixels, size) if draws is None else draws.pieces(encoder, pixels, size)


def _exchanging(encoder: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Let a wrapped encoder add up the gradients of its pieces, and exchange them with those of the last."""
    return encoder.no_sync() if isinstance(encoder, DistributedDataParallel) and not is_last else nullcontext()


def set_train_mode(encoder: nn.Module, config: Config) -> None:
    """Put an encoder into train mode, but its batch norms where they are frozen."""
    encoder.train()
    if config.train.freeze_batch_norm:
        for part in encoder.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()


def has_batch_norm(encoder: nn.Module) -> bool:
    """Tell whether an encoder has layers of batch norm."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in encoder.modules())


def trains_batch_norm(encoder: nn.Module, config: Config) -> bool:
    """Tell whether an encoder has layers of batch norm that learn, so that an embedding depends on the others."""
    return has_batch_norm(encoder) and not config.train.freeze_batch_norm


def divide_batch(num_images: int, ranks: Ranks, piece_size: int | None) -> list[np.ndarray]:
    """Divide a batch among ranks.

    Args:
        num_images: Images in the batch.
        ranks: Ranks.
        piece_size: Images of a piece on all ranks together where batch norm trains on it; None: no piece matters.

    Returns:
        For each rank the places of its images, ``(b,)`` int64.

    Raises:
        ConfigError: A rank would have no image of the batch or of a piece, or pieces cannot be divided equally.
    """
    last = num_images % piece_size if piece_size else num_images
    if min(num_images, last or num_images) < ranks.size:
        raise ConfigError(
            f"{num_images} images of a step"
            + (f" in pieces of {piece_size}, which batch norm trains on," if piece_size else "")
            + f" cannot be divided among {ranks.size} ranks, because one would have none; start fewer with "
            "--nproc-per-node, or choose another --batch-size (with batch norm, or --train.microbatch-size)."
        )
    return share_places(num_images, ranks.size, piece_size)


def count_batch_images(config: Config, num_classes: int | None = None) -> int:
    """Return the most images that a training step sees: of tuples all members of each.

    Args:
        config: Settings of sampling, and of the size of batches or tuples.
        num_classes: Number of classes of the training images, which bounds the negatives of a tuple. None: there are
            enough for all that are asked for.

    >>> from vitrieve.config import LoaderConfig
    >>> count_batch_images(Config()), count_batch_images(Config(loader=LoaderConfig(sampling="tuples")))
    (64, 35)
    """
    if config.loader.sampling != "tuples":
        return config.train.batch_size
    num_negatives = config.tuples.num_negatives
    if num_classes is not None:
        num_negatives = min(num_negatives, num_classes - 1)
    return config.tuples.tuples_per_batch * (2 + num_negatives)


def plan_memory(
    encoder: ImageEncoder,
    config: Config,
    num_unfilled_bytes: int = 0,
    num_images: int | None = None,
    num_classes: int | None = None,
) -> MemoryPlan:
    """Choose the micro-batch, and whether a batch is embedded twice, so that a run stays within its limit.

    Counts what the process holds now, the loader's cache as far as the images can fill it, gradients and moments, and
    the graph, whose size is measured on one and on two images.

    Args:
        encoder: Encoder on its device, which is left as it was.
        config: ``train.memory_limit_gib``, None for no limit, and the rest of the run's settings.
        num_unfilled_bytes: Size of memories that are not filled: on a CPU they take room when they are written.
        num_images: Size of the training set, which bounds what the loader can keep; None: its cache is filled.
        num_classes: Number of classes of the training set, which bounds the size of a tuple; None: tuples are as large
            as asked for.

    Raises:
        ConfigError: The limit is below what micro-batches of one image need.
    """
    train, ranks = config.train, current_ranks()
    microbatch_size = train.microbatch_size
    if ranks.size > 1 and trains_batch_norm(encoder, config):  # its statistics are those of a piece on all ranks
        microbatch_size = -(-microbatch_size // ranks.size)
    if train.memory_limit_gib is None:
        return MemoryPlan(microbatch_size)
    cached = config.loader.cache_bytes
    if num_images is not None:
        cached = bound_cache(config.loader, num_images, config.model.image_size)
    batch_size = -(-count_batch_images(config, num_classes) // ranks.size)
    fixed = _count_fixed_bytes(encoder, config, batch_size, cached + num_unfilled_bytes)
    constant, per_image = measure_graph_bytes(encoder, config)

    def need(num_held: int, microbatch_size: int) -> int:
        num_pieces = -(-num_held // microbatch_size)  # each graph holds weights in half precision of its own
        return int(fixed + constant * num_pieces + per_image * (num_held + SCRATCH_SHARE * microbatch_size))

    limit = int(train.memory_limit_gib * GIB)
    size = min(microbatch_size, batch_size)
    if need(batch_size, size) <= limit:
        return MemoryPlan(size, bytes_needed=need(batch_size, size))
    while size > 1 and need(size, size) > limit:
        size -= 1
    if need(size, size) > limit:
        raise ConfigError(
            f"train.memory_limit_gib is {train.memory_limit_gib:g}, but this run needs about "
            f"{need(1, 1) / GIB:.1f} GiB with micro-batches of one image; raise the limit, or lower loader.cache_bytes "
            f"({cached / GIB:.1f} GiB of it in use) or model.image_size."
        )
    return MemoryPlan(size, is_encoded_twice=True, bytes_needed=need(size, size))


def measure_graph_bytes(encoder: ImageEncoder, config: Config) -> tuple[int, int]:
    """Measure what the graph of a forward pass keeps, on blank images.

    Args:
        encoder: Encoder, which is left as it was, and so is torch's random state.
        config: Settings that say precision and image size.

    Returns:
        Bytes whatever the number of images (weights in half precision), and bytes for each image.
    """
    with leaving_no_trace(encoder, config):
        one, two = (_count_saved(encoder, make_blank(encoder, config, num_images), config) for num_images in (1, 2))
    return max(0, 2 * one - two), two - one


@contextmanager
def leaving_no_trace(encoder: ImageEncoder, config: Config) -> Iterator[None]:
    """Put an encoder into train mode for a trial; afterwards it is as it was, and so is torch's random state."""
    mode, buffers = encoder.training, [buffer.clone() for buffer in encoder.buffers()]
    device = next(encoder.parameters()).device
    before = _get_random_state(device)
    set_train_mode(encoder, config)
    yield
    _set_random_state(device, before)
    encoder.train(mode)
    with torch.no_grad():
        for buffer, kept in zip(encoder.buffers(), buffers, strict=True):
            buffer.copy_(kept)


def make_blank(encoder: ImageEncoder, config: Config, num_images: int) -> Tensor:
    """Make blank pictures, ``(num_images, 3, S, S)``, on an encoder's device."""
    size = config.model.image_size
    return torch.zeros(num_images, 3, size, size, device=next(encoder.parameters()).device)


def _count_saved(encoder: ImageEncoder, pixels: Tensor, config: Config) -> int:
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        embeddings = _encode_piece(encoder, pixels, config)
    del embeddings  # the graph lived until here, so that no storage was counted under another's address
    return sum(saved.values())


def _count_fixed_bytes(encoder: ImageEncoder, config: Config, batch_size: int, num_unfilled_bytes: int) -> int:
    """Count what a run holds whatever its micro-batch."""
    trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    size = config.model.image_size
    batches = 3 * batch_size * 3 * size * size * 4  # one in the step, one ahead, one being made
    on_device = BYTES_PER_WEIGHT * trained + batches
    if next(encoder.parameters()).device.type != "cpu":
        return on_device + torch.cuda.memory_allocated()
    return on_device + _count_process_bytes() + num_unfilled_bytes + RESERVE_BYTES


def _count_process_bytes() -> int:
    if sys.platform == "win32":
        return 0  # the standard library cannot tell
    if STATUS_OF_PROCESS.exists():
        return int(STATUS_OF_PROCESS.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, which has no such file


def _encode_piece(encoder: nn.Module, piece: Tensor, config: Config) -> Tensor:
    device_type = piece.device.type
    is_bf16 = resolve_precision(config.train.precision, device_type) == "bf16"
    is_synchronized = current_ranks().size > 1 and encoder.training and trains_batch_norm(encoder, config)
    synchronized = SynchronizedBatchNorm() if is_synchronized else nullcontext()
    with torch.autocast(device_type, torch.bfloat16, enabled=is_bf16), synchronized, pooled_only(encoder):
        embeddings: Tensor = encoder(piece)
    return embeddings


def _get_random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
