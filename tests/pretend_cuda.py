"""A GPU that is pretended: tensors that are moved to it stay where they are, and are told apart by their memory.

Whatever is moved to ``cuda`` is marked, and what is computed from marked tensors is marked too. An operation that
mixes marked tensors with others fails, as it would on a GPU, and so does ``.numpy()`` of a marked one. So a test
without a GPU finds the tensor that was made on the wrong device. It does not find what only a GPU's kernels do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
_COPIES = ("aten::copy_",)
"""Operations that may bring numbers from one device to another; what they write to stays where it is."""
_INDEXINGS = ("aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations whose indices may lie on the CPU."""


class WrongDeviceError(RuntimeError):
    """What a GPU would refuse."""


class _Marks:
    """The memory that is pretended to be a GPU's. It is kept alive, so that no other tensor gets its address."""

    def __init__(self) -> None:
        self._storages: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Dispatch(TorchDispatchMode):
    """Checks every operation, those of the backward pass among them."""

    def __init__(self, marks: _Marks) -> None:
        super().__init__()
        self._marks = marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **kwargs)
        name = func._schema.name + (f".{func._schema.overload_name}" if func._schema.overload_name else "")
        if name.startswith(_COPIES):
            return result
        checked = given[:1] if name.startswith(_INDEXINGS) else given
        marked = [self._marks.has(tensor) for tensor in checked]
        foreign = [tensor for tensor, mark in zip(checked, marked, strict=True) if not mark and tensor.ndim > 0]
        if any(marked) and foreign:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in foreign)
            raise WrongDeviceError(f"{name}: expected all tensors on {CUDA}; on the CPU: {shapes}")
        if any(marked):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._marks.add(leaf)
        return result


class _Function(TorchFunctionMode):
    """Pretends the device in what Python asks for and is told."""

    def __init__(self, marks: _Marks) -> None:
        super().__init__()
        self._marks = marks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return CUDA if self._marks.has(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return self._marks.has(args[0])
        if func == Tensor.numpy and self._marks.has(args[0]):
            raise WrongDeviceError("can't convert cuda:0 device type tensor to numpy; use .cpu() first")
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._move(func, args, kwargs)
        if func == Tensor.__deepcopy__:  # copies the memory itself
            copy = func(*args, **kwargs)
            return self._mark(copy) if self._marks.has(args[0]) else copy
        target = kwargs.get("device")
        if _is_cuda(target):
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        return self._mark(result) if _is_cuda(target) else result

    def _move(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, is_marked = args[0], self._marks.has(args[0])
        wants_cuda = func == Tensor.cuda or (func == Tensor.to and is_marked)
        result = tensor
        if func == Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            wants_cuda, result = self._marks.has(args[1]), tensor.to(args[1].dtype)
        elif func == Tensor.to:
            kwargs.pop("copy", None)
            device, dtype, _, memory_format = torch._C._nn._parse_to(*args[1:], **kwargs)
            wants_cuda = _is_cuda(device) if device is not None else is_marked
            changes = {"dtype": dtype} if dtype is not None else {}
            changes |= {"memory_format": memory_format} if memory_format is not None else {}
            result = tensor.to(**changes) if changes else tensor
        if wants_cuda == is_marked:
            return result  # its memory has the mark of what it was computed from
        if wants_cuda:
            return self._mark(result.clone())
        copy = torch.empty(result.shape, dtype=result.dtype)  # marks follow computation, so that a copy is filled
        return copy.copy_(result)

    def _mark(self, result: Any) -> Any:
        return tree_map(lambda leaf: self._marks.add(leaf) or leaf if isinstance(leaf, Tensor) else leaf, result)


def _keep_as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """Pretend in the block that torch sees a GPU."""
    marks = _Marks()
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    autocast = torch.autocast

    def autocast_on_cpu(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    try:
        with (
            mock.patch("vitrieve.runtime.device.has_cuda", return_value=True),
            mock.patch("torch.cuda.memory_allocated", return_value=0),
            mock.patch("torch.cuda.get_rng_state", side_effect=lambda *_: torch.get_rng_state()),
            mock.patch("torch.cuda.set_rng_state", side_effect=lambda state, *_: torch.set_rng_state(state)),
            mock.patch("torch.autocast", autocast_on_cpu),
            mock.patch("torch.Tensor.pin_memory", _keep_as_it_is),
            _Function(marks),
            _Dispatch(marks),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags
