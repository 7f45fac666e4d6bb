"""Runs models on a device. On a CPU everything here is a plain call, so callers have one code path.

On CUDA, encoders of different modalities run in parallel, each on a stream of its own, and a forward pass of
fixed shape is captured once as a CUDA graph: a replay costs one launch instead of hundreds. Not thread-safe:
the compute thread owns the objects of this module.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from perception.errors import first_line

_LOG: Final = logging.getLogger(__name__)
GRAPH_TOLERANCE: Final = 1e-3
"""Largest difference of a replayed graph and the plain call, relative to the largest value of the result."""
_WARM_UPS: Final = 3
"""Calls before a capture, in which cuDNN and cuBLAS allocate their workspaces."""

ResultT = TypeVar("ResultT")
Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Tensors]


Capture = Callable[[Function, Tensors], Function]
"""Captures a function for inputs of one shape; returns a function that replays it on other inputs."""


class CudaGraph:
    """A function's kernels, captured with their memory: inputs are copied in, results copied out."""

    def __init__(self, function: Function, inputs: Tensors) -> None:
        """Capture the function on the device of its inputs, which may differ from the current one."""
        with torch.inference_mode():
            self._inputs = tuple(tensor.clone() for tensor in inputs)
        with torch.cuda.device(inputs[0].device):
            here = torch.cuda.current_stream()
            capturing: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            capturing.wait_stream(here)
            with torch.cuda.stream(capturing):
                for _ in range(_WARM_UPS):
                    function(*self._inputs)
            here.wait_stream(capturing)
            self._graph = torch.cuda.CUDAGraph()
            # on the stream of the warm-up, for which libraries have allocated their workspaces
            with torch.cuda.graph(self._graph, stream=capturing, capture_error_mode="thread_local"):
                self._outputs = function(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Replay the graph; return copies of its results."""
        with torch.inference_mode():  # these are inference tensors: written to in this mode only
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given, non_blocking=True)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)


class Forward:
    """A forward pass: called directly, or replayed if it was captured for inputs of that shape."""

    def __init__(
        self, name: str, function: Function, *, device: torch.device, capture: Capture = CudaGraph
    ) -> None:
        self.name = name
        self.function = function
        self._on_cuda = device.type == "cuda"
        self._capture = capture
        self._captured: dict[tuple[torch.Size, ...], Function] = {}
        self._last: Tensors = ()

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Return the function's results."""
        self._last = inputs if self._on_cuda and not self._captured else ()
        repeat = self._captured.get(_shapes(inputs), self.function)
        return repeat(*inputs)

    def capture_last(self) -> bool:
        """Capture the pass for the shape of the last call; return whether it was, False without CUDA."""
        last, self._last = self._last, ()
        return bool(last) and self.captured(*last)

    @torch.no_grad()
    def captured(self, *inputs: torch.Tensor) -> bool:
        """Capture the pass for inputs of this shape; return whether its replay gives the same as the call.

        The two are compared on other inputs: an empty graph returns the results of the captured ones.
        If they differ, the plain call stays in use, and the reason is logged.
        """
        try:
            repeat = self._capture(self.function, inputs)
            others = tuple(_other(tensor) for tensor in inputs)
            error = _error(repeat(*others), self.function(*others))
        except RuntimeError as failure:
            _LOG.warning("%s runs without a CUDA graph: %s", self.name, first_line(failure))
            return False
        if not error <= GRAPH_TOLERANCE:
            _LOG.warning("%s runs without a CUDA graph: its results are %.2g apart", self.name, error)
            return False
        self._captured[_shapes(inputs)] = repeat
        return True


def _shapes(inputs: Tensors) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in inputs)


def _other(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape and range with other values; integers in another order."""
    turned = tensor.flip(tuple(range(tensor.ndim)))
    return turned * 0.5 + 0.25 if tensor.is_floating_point() else turned


def _error(found: Tensors, expected: Tensors) -> float:
    """Return the largest difference, relative to the largest value expected; NaN if there is one."""
    pairs = zip(found, expected, strict=True)
    return max(
        float((one.float() - other.float()).abs().max() / other.float().abs().max().clamp_min(1e-6))
        for one, other in pairs
    )


class Span(msgspec.Struct, frozen=True):
    """Start and end of work on a device: nanoseconds of the host, or events of a CUDA stream."""

    began: Any
    ended: Any

    @property
    def ms(self) -> float:
        """Duration; waits for the end of work on CUDA."""
        if isinstance(self.began, int):
            return float(self.ended - self.began) / 1e6
        self.ended.synchronize()
        return float(self.began.elapsed_time(self.ended))


class Launcher:
    """Launches work on streams of a CUDA device, one per modality; on a CPU in the calling thread.

    Memory needs no further synchronisation, because every tick ends with its results on the host: the device
    has finished before anything is freed or written again.
    """

    def __init__(self, device: torch.device, clock: Callable[[], int]) -> None:
        self._device = device
        self._clock = clock
        self._on_cuda = device.type == "cuda"
        self._streams: dict[str, Any] = {}

    def launch(
        self, modality: str | None, launch: Callable[..., ResultT], *arguments: Any
    ) -> tuple[ResultT, Span]:
        """Launch work on the modality's stream, after earlier launches; return its result and span.

        Work without a modality runs on the CPU before this returns.
        """
        if modality is None or not self._on_cuda:
            began_ns = self._clock()
            result = launch(*arguments)
            return result, Span(began_ns, self._clock())
        if modality not in self._streams:
            self._streams[modality] = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream = self._streams[modality]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            began.record()
            result = launch(*arguments)
            ended.record()
        return result, Span(began, ended)

    def join(self) -> None:
        """Order later launches after all work of the streams; the host does not wait."""
        for stream in self._streams.values():
            torch.cuda.current_stream(self._device).wait_stream(stream)


def upload(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array on the device; it is copied to CUDA from pinned memory, the host does not wait.

    On a CPU the tensor shares the memory of a writable array.
    """
    if device.type == "cuda":
        staged = torch.empty(array.shape, dtype=_DTYPES[array.dtype.type], pin_memory=True)
        staged.numpy()[...] = array
        return staged.to(device, non_blocking=True)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def upload_together(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Return float32 tensors on the device; those on the CPU are copied together."""
    elsewhere = [tensor for tensor in tensors if tensor.device.type != device.type]
    if not elsewhere:
        return list(tensors)
    flat = upload(torch.cat([tensor.flatten() for tensor in elsewhere]).numpy(), device)
    parts = iter(torch.split(flat, [tensor.numel() for tensor in elsewhere]))
    return [
        tensor if tensor.device.type == device.type else next(parts).view(tensor.shape) for tensor in tensors
    ]


def exists(name: str) -> bool:
    """Return whether this machine has the device `auto`, `cpu`, `cuda` or `cuda:N`."""
    kind, _, index = name.partition(":")
    number = index or "0"
    on_cuda = kind == "cuda" and number.isdecimal() and int(number) < torch.cuda.device_count()
    return on_cuda or name in ("auto", "cpu")


def model_name(device: torch.device) -> str:
    """Return `cpu`, or the name of the GPU. The last bits of results depend on it."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


_DTYPES: Final[dict[Any, torch.dtype]] = {np.uint8: torch.uint8, np.float32: torch.float32}
