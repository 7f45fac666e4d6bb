"""Recorded sessions: one MCAP file of everything that was sensed and concluded.

Importing this loads nothing until it is used; only `replay` and `verify` need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perception.session.fusing import replay as replay
    from perception.session.reader import Session as Session
    from perception.session.reader import read as read
    from perception.session.verification import verify as verify
    from perception.session.writer import SessionWriter as SessionWriter

_EXPORTS = {
    "Session": "perception.session.reader",
    "SessionWriter": "perception.session.writer",
    "read": "perception.session.reader",
    "replay": "perception.session.fusing",
    "verify": "perception.session.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'perception.session' has no attribute '{name}'")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
