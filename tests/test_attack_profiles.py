"""A profile with values that make no sense is refused with its file and key, whatever the key."""

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from perception.errors import ProfileError
from perception.models.options import KINDS, options_of
from perception.profile import LAUNCH_DIR, EncoderConfig, Profile, parse

Schema = dict[str, Any]
EXTREMES = [0, -1, 1e-9, 1e-7, 10**18, 1e18, 1e300, 10**30, *map(float, ("nan", "inf", "-inf"))]
BOOLS = [True, False]
NAMES = {"camera": "front", "microphone": "main", "text": "script", "fusion.inputs": "camera"}
SEEDS = {"script.seed", "fusion.seed"}
"""Any whole number of 64 bits."""


def numbers(
    schema: dict[str, Any], at: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (dotted key, schema of the number) of each number that a profile may hold."""
    at = schema["$defs"][at["$ref"].rpartition("/")[2]] if "$ref" in at else at
    for one in [*at.get("anyOf", ()), *at.get("prefixItems", ())]:
        yield from numbers(schema, one, path)
    if at.get("type") in ("number", "integer") and "enum" not in at and "const" not in at:
        yield path, at
    for key, inner in at.get("properties", {}).items():
        yield from numbers(schema, inner, f"{path}.{key}".lstrip("."))
    if isinstance(inner := at.get("additionalProperties"), dict):
        yield from numbers(schema, inner, f"{path}.{NAMES.get(path, 'name')}")


def least(schema: dict[str, Any]) -> float | None:
    return schema.get("minimum", schema.get("exclusiveMinimum"))


def most(schema: dict[str, Any]) -> float | None:
    return schema.get("maximum", schema.get("exclusiveMaximum"))


def allowed(schema: dict[str, Any], value: float) -> bool:
    low, high = least(schema), most(schema)
    assert low is not None
    assert high is not None
    inside = low <= value <= high and value not in (
        schema.get("exclusiveMinimum"),
        schema.get("exclusiveMaximum"),
    )
    return inside and (schema["type"] == "number" or value == int(value))


def data_with(key: str, value: object) -> dict[str, Any]:
    data = tomllib.loads((LAUNCH_DIR / "demo.toml").read_text())
    data |= {"recorder": {}, "replay": {"file": "a.mcap"}}
    *tables, last = key.split(".")
    table = data
    for name in tables:
        table = table.setdefault(name, {})
    table[last] = value
    return data


PROFILE = Profile.model_json_schema()
NUMBERS = dict(numbers(PROFILE, PROFILE))


def test_the_keys_of_a_profile_are_found() -> None:
    assert {"camera.front.rate_hz", "fusion.hop_ms", "fusion.inputs.camera.ttl_ms", "replay.rate"} <= set(
        NUMBERS
    )
    assert len(NUMBERS) > 25


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_has_bounds_that_a_machine_can_hold(key: str) -> None:
    low, high = least(NUMBERS[key]), most(NUMBERS[key])
    assert low is not None
    assert high is not None
    assert key in SEEDS or (abs(low) <= 1e9 and abs(high) <= 1e9)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_value_that_makes_no_sense_is_refused_with_file_and_key(key: str) -> None:
    for value in EXTREMES:
        if not allowed(NUMBERS[key], value):
            with pytest.raises(ProfileError, match=rf"^mine\.toml: .*{key}: "):
                parse(data_with(key, value), where="mine.toml")
    for value in BOOLS:
        with pytest.raises(ProfileError, match=rf"^mine\.toml: .*{key}: cannot be {str(value).lower()}"):
            parse(data_with(key, value), where="mine.toml")


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_make_no_sense_are_refused_with_their_key(kind: str) -> None:
    schema = KINDS[kind].model_json_schema()
    for key, number in numbers(schema, schema):
        for value in [*EXTREMES, *BOOLS]:
            if isinstance(value, bool) or not allowed(number, value):
                with pytest.raises(ProfileError, match=rf"fusion\.encoders\.mine\.options\.{key}: "):
                    options_of("mine", EncoderConfig(input="x", kind=kind, options={key: value}))
        low, high = least(number), most(number)
        assert low is not None
        assert high is not None
        assert max(abs(low), abs(high)) <= 1e9


@pytest.mark.parametrize("kind", [kind for kind, one in KINDS.items() if "widths" in one.model_fields])
@pytest.mark.parametrize(
    "options", [{"dim": 16_384, "pool": 64}, {"widths": [4096] * 17}, {"widths": [10**9]}, {"dim": 10**9}]
)
def test_a_network_that_no_memory_holds_is_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(ProfileError, match=r"fusion\.encoders\.mine\.options"):
        options_of("mine", EncoderConfig(input="x", kind=kind, options=options))
