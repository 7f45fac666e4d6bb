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
    next_seq: dict[str, int] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    received: int = 0
    consumed: int = 0
    lost: int = 0
    unexplained: int = 0
    """Refused messages since the last good one; each accounts for one missing number."""
    newest_stamp_ns: int | None = None

    def admit(self, header: Header) -> bool:
        """Count a message that has arrived, and what is missing before it; return whether it is of use."""
        self.received += 1
        source, seq, stamp_ns = header.source, header.seq, header.stamp_ns
        expected = self.next_seq.get(source)
        if seq != expected and not self._leap(source, seq, expected):
            return False
        self.unexplained = 0
        self.next_seq[source] = seq + 1
        if self.newest_stamp_ns is None or stamp_ns > self.newest_stamp_ns:
            self.newest_stamp_ns = stamp_ns
        return True

    def _leap(self, source: str, seq: int, expected: int | None) -> bool:
        if expected is None:
            if len(self.next_seq) >= _SOURCES_REMEMBERED:
                del self.next_seq[next(iter(self.next_seq))]
        elif seq < expected:
            self.dropped["duplicate" if seq == expected - 1 else "backwards"] += 1
            return False
        else:
            self.lost += max(0, seq - expected - self.unexplained)
        return True


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
        account = self._account(message.topic)
        if not account.admit(message.header):
            return
        row, size = account.row, len(message.payload)
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

    def pass_on(self, message: Message[Header]) -> Message[Header] | None:
        """Take in one message and hand out the one that arrived first, which is the same if none waits."""
        if self._waiting:
            self.put(message)
            return self.take()
        account = self._accounts.get(message.topic) or self._account(message.topic)
        if not account.admit(message.header):
            return None
        account.consumed += 1
        return message

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
