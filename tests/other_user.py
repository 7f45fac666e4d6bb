"""A process of another user of this host; only root can start one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

_BECOME: Final = """
import encodings.idna, os, socket, sys, time
import zmq
import zmq.backend.cython
zmq.Context().socket(zmq.SUB).close()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def show(*values):
    print(*values, flush=True)
"""
"""Libraries are imported first: the other user may not be able to read them."""


@contextmanager
def other_user(code: str, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Run Python code as the user nobody, with `zmq` and `show` imported, until the context ends."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    command = [sys.executable, "-P", "-c", _BECOME + code, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    """Return the next line that the other user shows."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def proceed(process: "subprocess.Popen[str]") -> None:
    """End the other user's `input()`."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
