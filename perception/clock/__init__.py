"""Clocks: of a device against the host (`samples`), of another host against this one (`remote`). Pure."""

from perception.clock.remote import Correction, Estimate, Probe, RemoteClock
from perception.clock.samples import LossDetector, SampleClock, device_to_host_ns

__all__ = [
    "Correction",
    "Estimate",
    "LossDetector",
    "Probe",
    "RemoteClock",
    "SampleClock",
    "device_to_host_ns",
]
