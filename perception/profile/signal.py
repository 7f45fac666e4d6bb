"""Thresholds of the judges of signals: `[camera.NAME.signal]`, `[microphone.NAME.signal]`."""

from typing import Annotated

from pydantic import Field

from perception.profile.section import Section


class StreamSignal(Section):
    """When a stream's items arrive too seldom, irregularly, late, or not at all."""

    start_within_s: Annotated[float, Field(gt=0, le=60, description="lost: no first item")] = 3.0
    lost_after_s: Annotated[
        float, Field(gt=0, le=60, description="lost: no further item, nor within four periods")
    ] = 0.9
    slow_below: Annotated[float, Field(ge=0, le=1, description="slow: share of the nominal rate")] = 0.6
    lagging_above_s: Annotated[
        float, Field(gt=0, le=60, description="lagging: arrival minus stamp, above its least value")
    ] = 0.5
    lagging_growth_s: Annotated[
        float, Field(gt=0, le=60, description="lagging: arrival minus stamp grew by this within 2 s")
    ] = 0.2
    jitter_share: Annotated[float, Field(gt=0, le=1, description="jittery: share of uneven intervals")] = 0.3
    jitter_above: Annotated[
        float, Field(gt=0, le=10, description="uneven: off by this share of the usual interval")
    ] = 0.6
    jitter_delay_s: Annotated[
        float, Field(gt=0, le=60, description="jittery: spread of arrival minus stamp")
    ] = 0.2


class CameraSignal(StreamSignal):
    """`[camera.NAME.signal]`: when a camera's picture counts as wrong. Levels are of 255."""

    hold_s: Annotated[float, Field(gt=0, le=60, description="a condition has to last so long")] = 1.2
    frozen_s: Annotated[
        float, Field(gt=0, le=60, description="frozen: nothing changes in a lively picture")
    ] = 1.5
    frozen_share: Annotated[
        float, Field(gt=0, le=1, description="frozen: share of the lively blocks that stopped")
    ] = 0.85
    loop_s: Annotated[float, Field(ge=0, le=3, description="frozen: longest loop; 0: none")] = 2.0
    black_below: Annotated[
        float, Field(ge=0, le=255, description="black: level of a picture without structure")
    ] = 18.0
    saturated_share: Annotated[
        float, Field(gt=0, le=1, description="blown out: white share of a picture that was darker")
    ] = 0.4
    noise_share: Annotated[
        float, Field(gt=0, le=1, description="noise: its share of the power of the picture")
    ] = 0.6
    blur_below: Annotated[
        float, Field(gt=0, le=1, description="blurred: fine detail left, as a share of before")
    ] = 0.4


class MicrophoneSignal(StreamSignal):
    """`[microphone.NAME.signal]`: when a microphone's sound counts as wrong."""

    hold_s: Annotated[float, Field(ge=1, le=10, description="the newest seconds that are judged")] = 2.0
    loop_s: Annotated[
        float, Field(ge=0, le=5, description="stuck: longest loop that is searched; 0: none")
    ] = 1.5
    rate_tolerance: Annotated[
        float, Field(gt=0, le=1, description="wrong rate: stamps contradict the rate by this share")
    ] = 0.05
    narrowest_hz: Annotated[
        int, Field(ge=0, le=20_000, description="wrong rate: sound ends at an edge below; 0: never")
    ] = 4200
    dc_above: Annotated[float, Field(gt=0, le=1, description="DC: offset, in full scale")] = 0.02
    hum_above: Annotated[float, Field(gt=0, le=1, description="hum: mains share of the power")] = 0.65
    hum_above_dbfs: Annotated[float, Field(ge=-120, le=0, description="hum: least level")] = -34.0
    clipped_above: Annotated[float, Field(gt=0, le=1, description="clipped: share of samples")] = 0.01
    noise_above_dbfs: Annotated[
        float, Field(ge=-120, le=0, description="noise: level of white noise")
    ] = -34.0
