"""A short run of the fuzzers: mutated inputs end with a result or with one line for users, soon."""

from pathlib import Path

import pytest

from tests.fuzz.mutate import Mutator
from tests.fuzz.run import attempt, fuzz
from tests.fuzz.targets import Target, Wire, corpus, targets

CASES = {"wire": 8000, "labels": 500, "text": 500, "profile": 100, "session": 40, "config": 40, "weights": 40}


@pytest.mark.parametrize("name", targets())
def test_mutated_inputs_end_with_a_result_or_a_reason(name: str, tmp_path: Path) -> None:
    report = fuzz(name, seed=7, cases=CASES[name], out=tmp_path)
    assert report.cases == CASES[name]
    assert not report.failures, str(report)
    assert report.grown_mib < 200


@pytest.mark.parametrize("name", targets())
def test_inputs_that_failed_once_and_unchanged_examples_pass(name: str) -> None:
    target = targets()[name]()
    for data in [*target.examples(), *(file.read_bytes() for file in corpus(name))]:
        assert attempt(target, data) is None


def test_enough_mutated_messages_are_valid_to_reach_what_comes_after_the_codec() -> None:
    target = Wire()
    mutator = Mutator(target.examples(), 3, binary=True)
    for _ in range(3000):
        target.run(mutator.next())
    assert target.valid > 100


class Broken(Target):
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def run(self, data: bytes) -> None:
        raise self._error


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), MemoryError(), AssertionError("other")])
def test_a_target_that_raises_is_a_failure(error: BaseException) -> None:
    assert attempt(Broken(error), b"") is not None
