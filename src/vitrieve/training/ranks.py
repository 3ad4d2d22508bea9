"""One training by several processes, the ranks, that ``torchrun`` has started: who they are, and what they exchange.

Every rank draws the whole batch and encodes its share of it. The embeddings of all are gathered, and every rank
computes the whole loss, so that losses know nothing of ranks. Its gradient in a rank's own embeddings needs no
exchange; the gradients of the weights, of which each rank has its share, are summed. That equals one process, up to
rounding. The first rank alone writes, and alone talks; the failure of any is told once, by name (``liveness.py``).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch's own list lacks them
from torch.nn.parallel import DistributedDataParallel

from vitrieve.errors import ConfigError, RankLostError, VitrieveError
from vitrieve.objective.memory import Division
from vitrieve.progress import print_message
from vitrieve.runtime.device import has_cuda
from vitrieve.training.liveness import STATUS_LOST, Watch, ignore_sigterm

T = TypeVar("T")
TIMEOUT = timedelta(days=7)
"""Longest wait for another rank: for as long as one measures and writes. Dead ranks are found by their silence."""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process."""


class _ToldElsewhereError(RankLostError):
    """Another rank failed, and tells of it itself."""


class Ranks:
    """The processes of a training.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes; 1 without torchrun.
    """

    def __init__(self, rank: int = 0, size: int = 1, watch: Watch | None = None) -> None:
        self.rank, self.size = rank, size
        self.watch = watch

    @property
    def is_first(self) -> bool:
        """Whether this process writes, measures and talks."""
        return self.rank == 0

    def describe(self, num_images: int, device_type: str) -> str:
        """Say how a batch is divided, and what carries the exchange."""
        backend = dist.get_backend_config() if self.size > 1 else ""
        backend = next((part.split(":")[1] for part in backend.split(",") if part.startswith(device_type)), backend)
        sizes = [len(share) for share in share_places(num_images, self.size)]
        share = f"{sizes[0]}" if len(set(sizes)) == 1 else f"{min(sizes)} or {max(sizes)}"
        return f"{self.size} ranks ({backend}): each encodes {share} of the {num_images} images of a batch"

    def gather_rows(self, rows: Tensor, places: Sequence[np.ndarray]) -> Tensor:
        """Gather the rows of all ranks, with gradient: a loss that all ranks compute gives each its own rows'.

        Args:
            rows: ``(b, E)``, rows of this rank.
            places: For each rank the ``(b,)`` places of its rows among all.

        Returns:
            ``(B, E)``, the same on all ranks.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, [len(one) for one in places], self.rank)
        order = torch.from_numpy(np.argsort(np.concatenate(places), kind="stable"))
        return gathered.index_select(0, order.to(rows.device))

    def sum_tensor(self, value: Tensor) -> Tensor:
        """Sum a tensor over the ranks, the same on all; without gradient."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    def divide(self) -> Division | None:
        """Return this rank's part of what all divide; None where it is alone."""
        return Division(self.rank, self.size, self.sum_tensor) if self.size > 1 else None

    def gather_arrays(self, rows: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
        """Gather the rows of all ranks, ``(b, E)`` of this one, as ``gather_rows`` does."""
        return self.gather_rows(torch.from_numpy(rows), places).numpy()

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order; any plain objects."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, value: bool) -> bool:
        """Say whether a value is true on any rank, on all of them alike."""
        if self.size == 1:
            return value
        found = torch.tensor(int(value))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def share_first(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns on the first rank, which alone calls it; what it raises is raised on all."""
        if self.size == 1:
            return make()
        told: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_first:
            try:
                told[0] = make()
            except Exception as error:
                failure, told[1] = error, f"{type(error).__name__}: {error}"
        dist.broadcast_object_list(told, 0)
        if failure is not None:
            raise failure
        if told[1] is not None:
            raise _ToldElsewhereError(f"{self.name(0)} failed: {told[1]}")
        return cast(T, told[0])

    def try_together(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns on this rank; where it raises on any, that is raised on all."""
        value, failure = None, None
        try:
            value = make()
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        told = self.gather(None if failure is None else f"{self.name(self.rank)}: {failure}")
        if failure is not None:
            raise failure
        for text in told:
            if text is not None:
                raise _ToldElsewhereError(text)
        return cast(T, value)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first rank of each host run the block before the others: what it fetches is there for them."""
        is_later = self.size > 1 and int(os.environ.get("LOCAL_RANK", "0")) > 0
        if is_later:
            dist.barrier()
        yield
        if self.size > 1 and not is_later:
            dist.barrier()

    def share_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the first rank on all, on the CPU; those that others give count for nothing."""
        shapes = self.share_first(lambda: {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        shared = {}
        for name, (shape, dtype) in shapes.items():
            tensor = tensors[name].detach().cpu().contiguous() if self.is_first else torch.empty(shape, dtype=dtype)
            dist.broadcast(tensor, 0)
            shared[name] = tensor
        return shared

    def name(self, rank: int) -> str:
        """Return a rank's name for people: its number, host and process."""
        return self.watch.name(rank) if self.watch is not None else f"rank {rank}"


ALONE = Ranks()
_current = ALONE


def current_ranks() -> Ranks:
    """Return the ranks of the training that this process takes part in; without torchrun it is alone."""
    return _current


def is_restart() -> bool:
    """Say whether torchrun has started all processes once more, after one had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joining_ranks() -> Iterator[Ranks]:
    """Join the other processes that torchrun has started; without torchrun there are none.

    In the block the first rank alone talks. An error that leaves it is told by the rank that met it first; the others
    end without a word.

    Raises:
        ConfigError: torchrun's variables are incomplete, or a host has fewer GPUs than ranks.
        RankLostError: Another rank died.
    """
    global _current
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or _current.size > 1:
        yield _current
        return
    _current = _join(size)
    try:
        with ExitStack() as silence:
            if not _current.is_first:
                nothing = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
                silence.enter_context(redirect_stdout(nothing))
                silence.enter_context(redirect_stderr(nothing))
            yield _current
            dist.barrier()
    except BaseException as error:
        _explain(_current, error)
        raise
    else:
        assert _current.watch is not None
        _current.watch.close()
        dist.destroy_process_group()
    finally:
        _current = ALONE


def _join(size: int) -> Ranks:
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set; start several processes with torchrun: "
            "torchrun --nproc-per-node N -m vitrieve train …"
        )
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if has_cuda():
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"this host runs rank {local_rank + 1} of its own, but torch sees {torch.cuda.device_count()} GPUs; "
                "start at most one process a GPU (--nproc-per-node), or hide the GPUs with CUDA_VISIBLE_DEVICES=''."
            )
        torch.cuda.set_device(local_rank)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    backend = "cpu:gloo,cuda:nccl" if has_cuda() else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # After a restart torchrun's store still has the addresses of the processes of before.
        kept = TCPStore(*address, is_master=False, timeout=TIMEOUT)
        store = PrefixStore(f"vitrieve/attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", kept)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, timeout=TIMEOUT)
    name = f"rank {rank} of {size} (process {os.getpid()} on {socket.gethostname()})"
    ranks = Ranks(rank, size, Watch(address, rank, size, name))
    dist.barrier()
    return ranks


def _explain(ranks: Ranks, error: BaseException) -> None:
    """Add a name to a failure, or replace it: by that of a rank that died, or by silence where another rank tells.

    Raises:
        RankLostError: Another rank died.
        SystemExit: Another rank tells.
    """
    watch = ranks.watch
    assert watch is not None
    # What a collective operation raises when another rank is gone, and torchrun's signal then.
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, RuntimeError) and not isinstance(error, VitrieveError)
    ):
        ignore_sigterm()
        lost = watch.find_failed()
        is_store_lost = not watch.has_store()
        if is_store_lost or (lost and watch.claim_failure()):
            if is_store_lost:
                told = RankLostError(f"{watch.describe_lost_store()}.")
            else:
                names = ", ".join(watch.name(one) for one in lost)
                told = RankLostError(f"{names} died: killed, perhaps for want of memory, or crashed.")
            for note in getattr(error, "__notes__", []):
                told.add_note(note)
            raise told from error
    if isinstance(error, _ToldElsewhereError) or not watch.claim_failure():
        raise SystemExit(STATUS_LOST) from error
    error.add_note(f"({watch.name(ranks.rank)})")


class _Gather(torch.autograd.Function):
    """The rows of all ranks, one rank after the other."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
        """Gather; shares of unequal sizes are filled up on the way."""
        ctx.start, ctx.size = sum(sizes[:rank]), sizes[rank]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Take the rows of this rank: every rank computes the whole loss, so that this is the whole gradient."""
        return gradient[ctx.start : ctx.start + ctx.size], None, None


class _Sum(torch.autograd.Function):
    """The sum of a tensor over ranks; each rank's loss depends on every rank's summand."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Sum."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Sum the gradients."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def share_places(num_images: int, num_ranks: int, piece_size: int | None = None) -> list[np.ndarray]:
    """Divide the places of a batch among ranks: ``(b,)`` int64, rising, for each.

    Args:
        num_images: Images in the batch.
        num_ranks: Number of ranks.
        piece_size: Images of which each rank takes a part before the next so many are divided; None: all at once.

    >>> [share.tolist() for share in share_places(7, 2)]
    [[0, 1, 2], [3, 4, 5, 6]]
    >>> [share.tolist() for share in share_places(7, 2, piece_size=4)]
    [[0, 1, 4], [2, 3, 5, 6]]
    """
    size = piece_size or max(1, num_images)
    shares: list[list[np.ndarray]] = [[] for _ in range(num_ranks)]
    for start in range(0, num_images, size):
        piece = np.arange(start, min(start + size, num_images))
        for rank, share in enumerate(shares):
            share.append(piece[len(piece) * rank // num_ranks : len(piece) * (rank + 1) // num_ranks])
    return [np.concatenate(share) if share else np.empty(0, np.int64) for share in shares]


class SynchronizedBatchNorm(torch.overrides.TorchFunctionMode):
    """Batch norm in the block trains on the images of all ranks; the layers stay as they are.

    torch's own layer of that name runs on GPUs only, and would have to leave the encoder again before it is kept.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace the one function."""
        named = dict(kwargs or {})
        if function is nn.functional.batch_norm:
            given = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | named
            if given.pop("training", False):
                return _normalize_over_ranks(**given)
        return function(*args, **named)


_BATCH_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def _normalize_over_ranks(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute what ``torch.nn.functional.batch_norm`` does, over the images of all ranks."""
    dims = [0, *range(2, input.ndim)]
    shape = (1, -1, *(1,) * (input.ndim - 2))
    with torch.autocast(input.device.type, enabled=False):
        wide = input.float()
        count = _Sum.apply(wide.new_tensor(float(input.numel() // input.shape[1])))
        mean = _Sum.apply(wide.sum(dims)) / count  # (C,)
        centered = wide - mean.view(shape)
        variance = _Sum.apply(centered.square().sum(dims)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((variance * count / (count - 1).clamp_min(1)).to(running_var), momentum)
        normal = centered * (variance + eps).rsqrt().view(shape)
        if weight is not None:
            normal = normal * weight.view(shape)
        if bias is not None:
            normal = normal + bias.view(shape)
        return cast(Tensor, normal.to(input.dtype))


def wrap_encoder(encoder: nn.Module, blank: Callable[[], Tensor]) -> nn.Module:
    """Wrap an encoder so that its gradients are summed over ranks while the rest of them is still computed.

    Args:
        encoder: Encoder in train mode on its device, with the same weights on all ranks; its gradients are removed.
        blank: Function that embeds a blank picture with gradient, through the encoder.

    Returns:
        The wrapped encoder; what is called instead of the encoder in training.
    """
    named = [(name, parameter) for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    found = torch.autograd.grad(blank().sum(), [parameter for _, parameter in named], allow_unused=True)
    # The gradients of these would be waited for without end.
    unused = [name for (name, _), gradient in zip(named, found, strict=True) if gradient is None]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        encoder, unused
    )
    wrapped = DistributedDataParallel(
        encoder, forward_sync_buffers=False, init_sync=False, gradient_as_bucket_view=True
    )
    # Summed and not averaged: each rank has the gradients of its own images, in a loss that is one of all images.
    # A function without annotations, because torch compares them with classes, and here they are text.
    wrapped.register_comm_hook(None, lambda _, bucket: _start_sum(bucket.buffer()))
    return wrapped


def _start_sum(values: Tensor) -> torch.futures.Future[Tensor]:
    """Begin to sum a tensor over the ranks, in place."""
    future = dist.all_reduce(values, async_op=True).get_future()
    return cast("torch.futures.Future[Tensor]", future.then(lambda done: done.value()[0]))


def require_equal(ranks: Ranks, described: T, list_changes: Callable[[T, T], Mapping[str, tuple[Any, Any]]]) -> None:
    """Refuse ranks that describe the run otherwise than the first.

    Args:
        ranks: Ranks.
        described: Description on this rank, plain values.
        list_changes: Function of the first rank's description and another's: changed names, with both values.

    Raises:
        ConfigError: They differ; the message names the first such rank, and what differs.
    """
    first, *others = ranks.gather(described)
    for number, other in enumerate(others, start=1):
        changes = list_changes(first, other)
        if changes:
            listed = "; ".join(f"{name} is {new} and on rank 0 {old}" for name, (old, new) in changes.items())
            raise ConfigError(
                f"{ranks.name(number)} was started with other settings or images than rank 0: {listed}. Start all "
                "ranks with the same command, and give them the same images."
            )


def tell_ranks(ranks: Ranks, num_images: int, device_type: str) -> None:
    """Tell how a batch is divided, where there are several ranks.

    Raises:
        ConfigError: A batch has fewer images than there are ranks.
    """
    require_share(ranks, num_images)
    if ranks.size > 1:
        print_message(ranks.describe(num_images, device_type))


def require_share(ranks: Ranks, num_images: int) -> None:
    """Refuse a batch of which a rank would have no image.

    Raises:
        ConfigError: As it says.
    """
    if num_images < ranks.size:
        raise ConfigError(
            f"a batch has {num_images} images, fewer than the {ranks.size} ranks that divide it; raise "
            "--batch-size, which is that of all ranks together, or start fewer with --nproc-per-node."
        )
