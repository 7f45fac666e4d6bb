"""Recorded sessions: one MCAP file of everything that was sensed and concluded.

Importing this loads nothing until it is used; only `replay` and `verify` need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perception.session.file.reader import Session as Session
    from perception.session.file.reader import read as read
    from perception.session.file.writer import SessionWriter as SessionWriter
    from perception.session.recompute.engines import replay as replay
    from perception.session.recompute.verify import verify as verify

_EXPORTS = {
    "Session": "perception.session.file.reader",
    "SessionWriter": "perception.session.file.writer",
    "read": "perception.session.file.reader",
    "replay": "perception.session.recompute.engines",
    "verify": "perception.session.recompute.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'perception.session' has no attribute '{name}'")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
