"""Recorded sessions: one MCAP file with every message of a graph.

Names are imported at their first use; only `replay` and `verify` need torch.
"""

from typing import TYPE_CHECKING

from perception.units.lazy import lazy_exports

if TYPE_CHECKING:
    from perception.session.file.reader import Session as Session
    from perception.session.file.reader import read as read
    from perception.session.file.writer import SessionWriter as SessionWriter
    from perception.session.recompute.engines import replay as replay
    from perception.session.recompute.verify import verify as verify

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "file.reader": "Session read",
        "file.writer": "SessionWriter",
        "recompute.engines": "replay",
        "recompute.verify": "verify",
    },
)
