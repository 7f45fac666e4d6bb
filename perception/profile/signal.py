"""Thresholds of the judges of signals: `[camera.NAME.signal]`."""

from typing import Annotated

from pydantic import Field

from perception.profile.section import Section


class CameraSignal(Section):
    """`[camera.NAME.signal]`: when a camera's picture counts as wrong."""

    hold_s: Annotated[float, Field(gt=0, le=60, description="a condition has to last so long")] = 2.0
