"""Real-time fusion of camera, microphone and text. Importing this loads nothing until it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perception.bus.api import clock_now_ns as clock_now_ns
    from perception.bus.api import publish as publish
    from perception.bus.api import subscribe as subscribe
    from perception.bus.subscriber import Subscriber as Subscriber
    from perception.errors import BusError as BusError
    from perception.errors import DeviceError as DeviceError
    from perception.errors import MalformedMessageError as MalformedMessageError
    from perception.errors import PerceptionError as PerceptionError
    from perception.errors import ProfileError as ProfileError
    from perception.errors import WeightsError as WeightsError
    from perception.messages import Message as Message

_EXPORTS = {
    "clock_now_ns": "perception.bus.api",
    "publish": "perception.bus.api",
    "subscribe": "perception.bus.api",
    "Subscriber": "perception.bus.subscriber",
    "Message": "perception.messages",
    "PerceptionError": "perception.errors",
    "BusError": "perception.errors",
    "DeviceError": "perception.errors",
    "MalformedMessageError": "perception.errors",
    "ProfileError": "perception.errors",
    "WeightsError": "perception.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'perception' has no attribute '{name}'")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
