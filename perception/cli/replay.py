"""`perception replay FILE`, `perception session verify FILE` and `perception session fuse FILE`."""

from pathlib import Path

import click

from perception.bus.domains import JOINED_DOMAIN
from perception.cli.standard_streams import show
from perception.errors import SessionError
from perception.io.out_path import OutFile

_FILE = click.argument("file", type=click.Path(path_type=Path))


@click.command()
@_FILE
@click.option(
    "--rate", default="1", show_default=True, help="Times real time, or max: whoever is slower loses some."
)
@click.option("--loop", is_flag=True, help="Begin again at the end.")
@click.option(
    "--from", "start_s", type=click.FloatRange(min=0), default=0.0, help="Seconds into the session."
)
@click.option("--to", "end_s", type=click.FloatRange(min=0), help="Seconds into the session.")
@click.option(
    "--topics",
    metavar="PATTERN",
    multiple=True,
    help="Such as 'camera/*'; may be repeated. Default: all but what a fusion makes.",
)
@click.option("--keep-stamps", is_flag=True, help="Publish the stamps as recorded; else it happens now.")
@click.option(
    "--wait",
    type=click.IntRange(min=0),
    metavar="N",
    help="Begin once there are N readers; default: one, and every fusion that is alive.",
)
@click.option("--no-wait", is_flag=True, help="Begin at once, whoever reads.")
@click.option("--domain", metavar="NAME", help=f"{JOINED_DOMAIN} If none is: 'default'.")
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
    """Publish the session FILE as if live, once its readers are there.

    On a terminal: space pauses, '.' steps, q quits.
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
            say=lambda text: show(f"perception: {text}", err=True),
        )
    counts = ", ".join(f"{count} {topic}" for topic, count in sorted(published.items()))
    show(f"published {counts or 'nothing'}")


@click.command()
@_FILE
@click.option("--profile", help="Name or file of the profile it was recorded with, if it does not say.")
@click.option(
    "--head",
    "heads",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a head that was swapped in, if it lies elsewhere now; repeat for more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def verify(file: Path, profile: str | None, heads: tuple[Path, ...], as_json: bool) -> int:
    """Compute the states of the session FILE again and compare every byte with those recorded.

    Exit codes: 0 the same, 1 different, 2 cannot verify.
    """
    import json

    from perception.errors import PerceptionError, located
    from perception.profile import load
    from perception.session.recompute.verify import CANNOT_VERIFY
    from perception.session.recompute.verify import verify as run

    try:
        with located(profile):
            verdict = run(file, load(profile) if profile else None, heads=heads)
    except PerceptionError as error:
        show(f"cannot verify: {error}", err=True)
        return CANNOT_VERIFY
    if as_json:
        click.echo(json.dumps(verdict.as_dict(), indent=1))
    else:
        show(*verdict.lines())
    return verdict.exit_code


@click.command()
@_FILE
@click.option("--profile", help="Name or file of the profile to fuse with; default: that of a session.")
@click.option("--out", type=OutFile(SessionError), required=True, help="File to write.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the profile.")
def fuse(file: Path, profile: str | None, out: Path, overrides: tuple[str, ...]) -> None:
    """Compute the states of FILE, a film, a bag or a session, without a graph.

    An input whose topic FILE lacks reads its next camera, microphone or text instead.
    """
    from perception.errors import ProfileError, extras, located
    from perception.profile import load
    from perception.session.convert.fuse import fuse as run

    if overrides and profile is None:
        raise ProfileError("--set changes a profile: give one, or leave --set out")
    with extras(), located(profile):
        for line in run(file, out, load(profile, overrides) if profile else None):
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
