"""Forward passes, launches and uploads: plain calls on a CPU, and the rules by which CUDA graphs are used."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from perception.models.device import (
    Capture,
    CudaGraph,
    Forward,
    Function,
    Launcher,
    Span,
    Tensors,
    exists,
    upload,
    upload_together,
)

CPU = torch.device("cpu")


def double(x: torch.Tensor) -> Tensors:
    return x * 2, x.sum(dim=1)


class Recorded:
    """A graph's twin on the CPU: inputs of its own that are written to, results that are copied out."""

    def __init__(self, function: Function, inputs: Tensors) -> None:
        self._function = function
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self.replays = 0

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        self.replays += 1
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        return tuple(result.clone() for result in self._function(*self._inputs))


def test_without_cuda_a_forward_pass_is_the_call_itself() -> None:
    forward = Forward("double", double, device=CPU)
    x = torch.randn(2, 3)
    torch.testing.assert_close(forward(x), double(x), rtol=0, atol=0)
    assert not forward.capture_last()


def test_a_captured_pass_is_repeated_for_its_shape_and_called_for_others() -> None:
    recordings: list[Recorded] = []

    def capture(function: Function, inputs: Tensors) -> Function:
        recordings.append(Recorded(function, inputs))
        return recordings[-1]

    forward = Forward("double", double, device=CPU, capture=capture)
    assert forward.captured(torch.zeros(2, 3))
    replays = recordings[0].replays
    for shape in ((2, 3), (2, 3), (5, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(forward(x), double(x), rtol=0, atol=0)
    assert recordings[0].replays == replays + 2


def test_results_of_a_captured_pass_stay_when_it_runs_again() -> None:
    forward = Forward("double", double, device=CPU, capture=Recorded)
    forward.captured(torch.zeros(1, 2))
    first = forward(torch.ones(1, 2))
    forward(torch.full((1, 2), 7.0))
    assert first[0].tolist() == [[2.0, 2.0]]


def failing(function: Function, inputs: Tensors) -> Function:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def wrong(function: Function, inputs: Tensors) -> Function:
    return lambda *given: tuple(result + 0.1 for result in function(*given))


def empty(function: Function, inputs: Tensors) -> Function:
    """A graph that captured nothing: its results are those of the capture's own inputs, at every call."""
    results = function(*inputs)
    return lambda *given: tuple(result.clone() for result in results)


def not_a_number(function: Function, inputs: Tensors) -> Function:
    return lambda *given: tuple(result * float("nan") for result in function(*given))


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (failing, "not permitted when stream is capturing"),
        (wrong, "apart"),
        (empty, "apart"),
        (not_a_number, "nan apart"),
    ],
)
def test_a_capture_that_fails_or_gives_something_else_is_not_used_and_said(
    capture: Capture, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    forward = Forward("double", double, device=CPU, capture=capture)
    x = torch.ones(1, 1)
    with caplog.at_level(logging.WARNING):
        assert not forward.captured(x)
    torch.testing.assert_close(forward(x), double(x), rtol=0, atol=0)
    (record,) = caplog.records
    assert "double runs without a CUDA graph" in record.getMessage()
    assert reason in record.getMessage()


def test_on_a_cpu_lanes_run_in_turn_and_are_timed_by_the_clock() -> None:
    now_ns = iter(range(0, 100_000_000, 1_500_000))
    launcher = Launcher(CPU, lambda: next(now_ns))
    three, first = launcher.launch("camera", int, "3")
    four, second = launcher.launch("microphone", sum, (1, 3))
    launcher.join()
    assert (three, four) == (3, 4)
    assert (first.ms, second.ms) == (1.5, 1.5)


class LateEvent:
    """An event of a device that is still working: its time can be read only after a wait for it."""

    def __init__(self, at_ms: float) -> None:
        self.at_ms, self.done = at_ms, False

    def synchronize(self) -> None:
        self.done = True

    def elapsed_time(self, end: "LateEvent") -> float:
        if not end.done:
            raise RuntimeError("CUDA error: device not ready")
        return end.at_ms - self.at_ms


def test_the_time_of_work_that_goes_on_is_waited_for() -> None:
    assert Span(LateEvent(1.0), LateEvent(3.5)).ms == 2.5


def test_work_for_the_cpu_is_timed_by_the_clock_whatever_the_device() -> None:
    now_ns = iter((0, 4_000_000))
    result, span = Launcher(torch.device("cuda"), lambda: next(now_ns)).launch(None, int, "3")
    assert (result, span.ms) == (3, 4.0)


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what crosses from one device to another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = args[0] if args else None
        if isinstance(given, torch.Tensor) and isinstance(result, torch.Tensor):
            self.count += given.device != result.device
        return result


def test_what_lies_on_the_cpu_goes_to_a_device_in_one_copy() -> None:
    here = [torch.randn(1, dim) for dim in (5, 1, 3)]
    there = torch.empty(1, 4, device="meta")
    with Copies() as copies:
        moved = upload_together([here[0], there, here[1], here[2]], torch.device("meta"))
    assert [tuple(tensor.shape) for tensor in moved] == [(1, 5), (1, 4), (1, 1), (1, 3)]
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert moved[1] is there
    assert copies.count == 1
    assert all(one is other for one, other in zip(upload_together(here, CPU), here, strict=True))


def test_a_device_exists_or_does_not() -> None:
    assert exists("cpu")
    assert exists("auto")
    assert not exists("mps")
    assert not exists("cuda:x")
    assert not exists("cuda:63")
    assert exists("cuda:0") == torch.cuda.is_available()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_array_is_uploaded_as_it_is(dtype: type) -> None:
    array: np.typing.NDArray[Any] = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array.flags.writeable = False
    assert upload(array, CPU).numpy().tolist() == array.tolist()


CUDA_DEVICES = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
on_each_cuda_device = pytest.mark.parametrize(
    "device", CUDA_DEVICES or [pytest.param(None, marks=pytest.mark.skip(reason="no CUDA device"))]
)


@pytest.mark.gpu
@on_each_cuda_device
def test_a_cuda_graph_repeats_a_network_on_its_device_whatever_the_current_one(device: torch.device) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten()).to(device)
    forward = Forward("network", lambda x: (network(x),), device=device, capture=CudaGraph)
    forward(torch.zeros(2, 3, 16, 16, device=device))
    assert forward.capture_last()
    for seed in range(3):
        x = upload(np.random.default_rng(seed).random((2, 3, 16, 16), np.float32), device)
        torch.testing.assert_close(forward(x)[0], network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@on_each_cuda_device
def test_what_is_uploaded_together_arrives_as_it_was(device: torch.device) -> None:
    here = [torch.randn(1, dim) for dim in (5, 1, 3)]
    there = torch.randn(1, 4, device=device)
    moved = upload_together([here[0], there, *here[1:]], device)
    for one, other in zip(moved, [here[0], there, *here[1:]], strict=True):
        assert torch.equal(one.cpu(), other.cpu())


@pytest.mark.gpu
@on_each_cuda_device
def test_lanes_of_a_device_time_their_work_and_are_joined(device: torch.device) -> None:
    launcher = Launcher(device, lambda: 0)
    x = torch.randn(512, 512, device=device)
    product, span = launcher.launch("camera", torch.mm, x, x)
    launcher.join()
    torch.testing.assert_close(product.cpu(), x.cpu() @ x.cpu(), rtol=1e-2, atol=1e-1)
    assert span.ms > 0
