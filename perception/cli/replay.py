"""`perception replay FILE`, `perception session verify FILE` and `perception session fuse FILE`."""

from pathlib import Path

import click

from perception.bus.domains import JOINED_DOMAIN
from perception.cli.options import overriding, session_out, trusting
from perception.cli.standard_streams import show

_FILE = click.argument("file", type=click.Path(path_type=Path))


@click.command()
@_FILE
@click.option(
    "--rate",
    metavar="X",
    default="1",
    show_default=True,
    help="Publish X times as fast as recorded; 'max': as fast as possible, slow readers drop messages.",
)
@click.option("--loop", is_flag=True, help="Begin again at the end of the session.")
@click.option(
    "--from",
    "start_s",
    metavar="S",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Begin at this second of the session.",
)
@click.option("--to", "end_s", metavar="S", type=click.FloatRange(min=0), help="End before this second.")
@click.option(
    "--topics",
    metavar="PATTERN",
    multiple=True,
    help="Only topics such as 'camera/*'; may be repeated. Default: all but those that a fusion publishes.",
)
@click.option(
    "--keep-stamps", is_flag=True, help="Publish stamps as recorded; without it, stamps are moved to now."
)
@click.option(
    "--wait",
    type=click.IntRange(min=0),
    metavar="N",
    help="Wait for N readers. Default: one, and every live fusion.",
)
@click.option(
    "--no-wait", is_flag=True, help="Begin at once; messages that have no reader yet are not received."
)
@click.option("--domain", metavar="NAME", help=f"{JOINED_DOMAIN} If none is up: 'default'.")
def replay(
    file: Path,
    rate: str,
    loop: bool,
    start_s: float,
    end_s: float | None,
    topics: tuple[str, ...],
    keep_stamps: bool,
    wait: int | None,
    no_wait: bool,
    domain: str | None,
) -> None:
    """Publish the session FILE as if live, once its readers are connected.

    Keys on a terminal: space pauses, '.' steps, q quits.
    """
    from perception.session.keyboard import keyboard
    from perception.session.player import RAW_TOPICS, Playback, play

    playback = Playback(
        rate=_rate(rate),
        loop=loop,
        keep_stamps=keep_stamps,
        start_s=start_s,
        end_s=end_s,
        topics=topics or RAW_TOPICS,
    )
    with keyboard() as keys:
        published = play(
            file,
            playback,
            domain=domain,
            keys=keys,
            wait=0 if no_wait else wait,
            notify=lambda text: show(f"perception: {text}", err=True),
        )
    counts = ", ".join(f"{count} {topic}" for topic, count in sorted(published.items()))
    show(f"published {counts or 'nothing'}")


@click.command()
@_FILE
@click.option(
    "--profile",
    metavar="PROFILE",
    help="Profile that FILE was recorded with. Default: the one stored in FILE.",
)
@click.option(
    "--head",
    "heads",
    metavar="DIR",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Checkpoint of a head that was swapped in, if it has been moved since; may be repeated.",
)
@trusting
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def verify(file: Path, profile: str | None, heads: tuple[Path, ...], trust: bool, as_json: bool) -> int:
    """Compute the states of the session FILE again and compare every byte with the recorded ones.

    Exit codes: 0 same, 1 different, 2 cannot verify.
    """
    import json

    from perception.errors import PerceptionError, first_line, located
    from perception.profile import load
    from perception.session.recompute.verify import CANNOT_VERIFY
    from perception.session.recompute.verify import verify as run

    try:
        with located(profile):
            verdict = run(file, load(profile) if profile else None, heads=heads, trust=trust)
    except PerceptionError as error:
        show(f"cannot verify: {error}", err=True)
        return CANNOT_VERIFY
    except Exception as error:  # exit code 1 would mean: different
        show(f"cannot verify: {type(error).__name__}: {first_line(error)}", err=True)
        return CANNOT_VERIFY
    if as_json:
        click.echo(json.dumps(verdict.as_dict(), indent=1))
    else:
        show(*verdict.lines())
    return verdict.exit_code


@click.command()
@_FILE
@click.option(
    "--profile",
    metavar="PROFILE",
    help="Profile of the fusion. Default: the one stored in FILE, if it is a session.",
)
@trusting
@session_out
@overriding("--profile")
def fuse(file: Path, profile: str | None, trust: bool, out: Path, overrides: tuple[str, ...]) -> None:
    """Compute the states of FILE without a graph and write them to a session.

    FILE is a session, a media file, or what ROS or Foxglove recorded. An input whose topic FILE does not hold
    reads the next stream of its modality instead.
    """
    from perception.errors import ProfileError, extras, located
    from perception.profile import load
    from perception.session.convert.fuse import fuse as run

    if overrides and profile is None:
        raise ProfileError("--set changes a profile: add --profile, or leave --set out")
    with extras(), located(profile):
        for line in run(file, out, load(profile, overrides) if profile else None, trust=trust):
            show(line)
    show(f"{out}: written")


def _rate(text: str) -> float | None:
    if text == "max":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1000:
        raise click.BadParameter(f"'{text}' is neither a rate above 0 nor 'max'", param_hint="--rate")
    return rate
