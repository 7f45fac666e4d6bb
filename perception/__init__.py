"""Real-time fusion of camera, microphone and text. Importing this loads nothing until it is used."""

from typing import TYPE_CHECKING

from perception.units.lazy import lazy_exports

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

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "bus.api": "clock_now_ns publish subscribe",
        "bus.subscriber": "Subscriber",
        "errors": "BusError DeviceError MalformedMessageError PerceptionError ProfileError WeightsError",
        "messages": "Message",
    },
)
