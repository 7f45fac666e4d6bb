"""Profiles: what a user writes in TOML, declared once, validated on load.

`devices`, `fusion`, `recording` and `root` declare every key with its unit and default; `keys` and `endpoint`
declare which values a key accepts; `loading` reads files. Nothing here imports torch or cv2.
"""

from perception.profile.devices import CameraConfig, Fit, MicrophoneConfig, ScriptConfig, TextConfig
from perception.profile.fusion import EncoderConfig, FusionConfig, HeadConfig, InputConfig
from perception.profile.keys import source_kind
from perception.profile.loading import LAUNCH_DIR, OVERRIDES_VARIABLE, as_override, find, load, parse
from perception.profile.recording import RecorderConfig, ReplayConfig
from perception.profile.root import Profile
from perception.profile.section import Section

__all__ = [
    "LAUNCH_DIR",
    "OVERRIDES_VARIABLE",
    "CameraConfig",
    "EncoderConfig",
    "Fit",
    "FusionConfig",
    "HeadConfig",
    "InputConfig",
    "MicrophoneConfig",
    "Profile",
    "RecorderConfig",
    "ReplayConfig",
    "ScriptConfig",
    "Section",
    "TextConfig",
    "as_override",
    "find",
    "load",
    "parse",
    "source_kind",
]
