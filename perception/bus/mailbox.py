"""What waits between socket and consumer: per-topic policy and exact accounts. No socket, no thread."""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from perception import topics
from perception.messages import Header, InputHealth, Message

_SOURCES_REMEMBERED: Final = 16  # incarnations per topic: a publisher restarting for ever stays bounded


@dataclass(slots=True)
class _Account:
    row: topics.Topic
    arrivals: deque[int] = field(default_factory=deque)
    queued_bytes: int = 0
    last_seq: dict[str, int] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    received: int = 0
    consumed: int = 0
    lost: int = 0
    unexplained: int = 0
    """Refused messages since the last good one; each accounts for one missing number."""
    newest_stamp_ns: int | None = None

    def count_gap(self, header: Header) -> str | None:
        """Count what is missing before `header`; return why it must be dropped, if it must."""
        source, seq = header.source, header.seq
        last = self.last_seq.get(source)
        if last is None:
            if len(self.last_seq) >= _SOURCES_REMEMBERED:
                del self.last_seq[next(iter(self.last_seq))]
        elif seq <= last:
            return "duplicate" if seq == last else "backwards"
        elif (missing := seq - last - 1) > self.unexplained:
            self.lost += missing - self.unexplained
        self.unexplained = 0
        self.last_seq[source] = seq
        return None


class Mailbox:
    """Messages that have arrived and are not consumed yet, in order of arrival.

    Exact at any moment: received = consumed + dropped + queued, and per publisher that stays
    connected, sent = received + lost.
    """

    def __init__(self, policies: Mapping[str, topics.Topic] | None = None) -> None:
        """Open an empty mailbox; `policies` replaces rows of the table of topics, by prefix."""
        self._rows = {**topics.TOPICS, **(policies or {})}
        self._accounts: dict[str, _Account] = {}
        self._waiting: OrderedDict[int, Message[Header]] = OrderedDict()
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, topic: str) -> None:
        """Keep an account of `topic` from now on, even if nothing ever arrives."""
        self._account(topic)

    def put(self, message: Message[Header]) -> None:
        """Take in one message, dropping what the topic's policy says."""
        account, header, size = self._account(message.topic), message.header, len(message.payload)
        account.received += 1
        if (reason := account.count_gap(header)) is not None:
            account.dropped[reason] += 1
            return
        newest_ns = account.newest_stamp_ns
        if newest_ns is None or header.stamp_ns > newest_ns:
            account.newest_stamp_ns = header.stamp_ns
        row = account.row
        full = len(account.arrivals) >= row.depth
        if row.policy == "queue":
            if full or account.queued_bytes + size > row.max_queued_bytes:
                account.dropped["overflow"] += 1
                return
        elif full:
            superseded = self._waiting.pop(account.arrivals.popleft())
            account.queued_bytes -= len(superseded.payload)
            account.dropped["superseded"] += 1
        self._waiting[self._arrived] = message
        account.queued_bytes += size
        account.arrivals.append(self._arrived)
        self._arrived += 1

    def refuse(self, topic: str, reason: str = "malformed") -> None:
        """Count a message of `topic` that arrived but cannot be used."""
        account = self._account(topic)
        account.received += 1
        account.unexplained += 1
        account.dropped[reason] += 1

    def take(self) -> Message[Header] | None:
        """Hand out the message that arrived first, None if none waits."""
        if not self._waiting:
            return None
        _, message = self._waiting.popitem(last=False)
        account = self._accounts[message.topic]
        account.arrivals.popleft()
        account.queued_bytes -= len(message.payload)
        account.consumed += 1
        return message

    def health(self, now_ns: int) -> dict[str, InputHealth]:
        """Return the accounts by topic; ages are measured at `now_ns`."""
        return {topic: _report(account, now_ns) for topic, account in self._accounts.items()}

    def _account(self, topic: str) -> _Account:
        account = self._accounts.get(topic)
        if account is None:
            account = self._accounts[topic] = _Account(self._rows[topics.lookup(topic).prefix])
        return account


def _report(account: _Account, now_ns: int) -> InputHealth:
    stamp_ns = account.newest_stamp_ns
    return InputHealth(
        received=account.received,
        consumed=account.consumed,
        queued=len(account.arrivals),
        lost=account.lost,
        dropped=dict(account.dropped),
        age_ms=None if stamp_ns is None else (now_ns - stamp_ns) / 1e6,
    )
