"""The README keeps its word: commands exist, the script runs as pasted, the table is the code's."""

import re
import subprocess
import sys
from pathlib import Path

import click

from perception import errors
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.cli.main import cli
from perception.messages import Fused, FusedState, ModalityState, ModelInfo
from perception.profile import LAUNCH_DIR
from perception.topics import TOPICS
from tests.waiting import LONG_S

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def topics_table() -> str:
    rows = ["| topic | message | kept for a slow reader | payload at most |", "|---|---|---|---|"]
    for topic in TOPICS.values():
        payload = f"{topic.max_payload_bytes >> 20} MiB" if topic.max_payload_bytes else "none"
        kept = f"{topic.policy} {topic.depth}"
        rows.append(f"| `{topic.prefix}/<name>` | `{topic.message.__name__}` | {kept} | {payload} |")
    return "\n".join(rows)


def test_the_table_of_topics_is_the_one_in_the_code() -> None:
    match = re.search(r"<!-- topics: .*? -->\n(.*?)\n<!-- end of topics -->", README, re.DOTALL)
    assert match is not None, f"paste this between the markers:\n{topics_table()}"
    assert match[1] == topics_table()


def test_the_subscriber_script_works_as_pasted(runtime_directory: Path) -> None:
    script = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert script is not None
    clock = HostClock()
    state = FusedState(
        stamp_ns=clock.now_ns(),
        tick=1,
        fused=Fused(classes=("clap",), probabilities=(1.0,), label="clap", confidence=0.876, entropy=0.0),
        modalities={"camera": ModalityState(topic="camera/front", presence="held")},
        model=ModelInfo(config_hash="", weights_hash=""),
    )
    command = [sys.executable, "-c", script[1]]
    with (
        Publisher("state/fused", source="fusion", runtime=Runtime("demo"), clock=clock.now_ns) as states,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader,
    ):
        assert states.wait_for_subscriber(LONG_S)
        states.send(state)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "clap 0.88 {'camera': 'held'}\n"
        reader.terminate()
    assert len([line for line in script[1].splitlines() if line]) <= 6


def test_every_command_and_option_it_shows_exists() -> None:
    shown = re.findall(r"perception ([a-z]+)((?: [a-z]+)?)([^`\n]*)", README)
    listed = {name for name, command in cli.commands.items() if not command.hidden}
    assert {name for name, _, _ in shown if name in cli.commands} == listed
    for name, sub, rest in shown:
        command = cli.commands.get(name)
        if isinstance(command, click.Group):
            command = command.commands.get(sub.strip())
        if command is not None:
            known = {option for parameter in command.params for option in parameter.opts}
            assert set(re.findall(r"--[a-z]+", rest)) <= known, name
    assert isinstance(cli.commands["keys"], click.Group)


def test_every_exit_code_is_explained() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.PerceptionError)}
    assert codes | {130} == {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}


def test_every_profile_that_ships_is_listed() -> None:
    listed = re.search(r"## Profiles(.*?)\n## ", README, re.DOTALL)
    assert listed is not None
    names = set(re.findall(r"^\| `(\w+)` \|", listed[1], re.MULTILINE))
    assert names == {file.stem for file in LAUNCH_DIR.glob("*.toml")}


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= 170
