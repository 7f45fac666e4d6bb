"""Forward passes, lanes and uploads: plain calls on a CPU, and the rules by which CUDA graphs are used."""

import logging
from typing import Any

import numpy as np
import pytest
import torch

from perception.models.device import Capture, CudaGraph, Forward, Function, Lanes, Tensors, upload

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


def not_a_number(function: Function, inputs: Tensors) -> Function:
    return lambda *given: tuple(result * float("nan") for result in function(*given))


@pytest.mark.parametrize(
    ("capture", "reason"),
    [(failing, "not permitted when stream is capturing"), (wrong, "0.1 apart"), (not_a_number, "nan apart")],
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
    lanes = Lanes(CPU, lambda: next(now_ns))
    three, first = lanes.beside("camera", int, "3")
    four, second = lanes.beside("microphone", sum, (1, 3))
    lanes.join()
    assert (three, four) == (3, 4)
    assert (first.ms, second.ms) == (1.5, 1.5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_array_is_uploaded_as_it_is(dtype: type) -> None:
    array: np.typing.NDArray[Any] = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array.flags.writeable = False
    assert upload(array, CPU).numpy().tolist() == array.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_graph_repeats_a_network_on_its_device() -> None:
    device = torch.device("cuda")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten()).to(device)
    forward = Forward("network", lambda x: (network(x),), device=device, capture=CudaGraph)
    forward(torch.zeros(2, 3, 16, 16, device=device))
    assert forward.capture_last()
    x = upload(np.random.default_rng(0).random((2, 3, 16, 16), np.float32), device)
    torch.testing.assert_close(forward(x)[0], network(x), rtol=1e-3, atol=1e-3)
