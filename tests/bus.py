"""A separate domain for tests of the bus, with helpers to publish and subscribe."""

from pathlib import Path
from typing import Any

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.messages import Header, InputHealth, Message, TextCommand


class Bus:
    """A separate domain, with short constructors of publishers and subscribers."""

    def __init__(self, base: Path) -> None:
        self.runtime = Runtime(base=base)
        self.clock = HostClock(base)

    def publisher(self, topic: str, **options: Any) -> Publisher:
        return Publisher(topic, source="test", runtime=self.runtime, clock=self.clock.now_ns, **options)

    def subscriber(self, *patterns: str, **options: Any) -> Subscriber:
        return Subscriber(*patterns, runtime=self.runtime, clock=self.clock.now_ns, **options)


def say(text: str) -> TextCommand:
    return TextCommand(stamp_ns=1, text=text)


def text(message: Message[Header] | None) -> str:
    assert message is not None
    assert isinstance(message.header, TextCommand)
    return message.header.text


def assert_exact(health: InputHealth) -> None:
    assert health.received == health.consumed + sum(health.dropped.values()) + health.queued
