"""Commands for labels, training and evaluation; each imports what it needs when it runs."""

from pathlib import Path

import click

from perception.cli.options import joined_domain, setting
from perception.cli.standard_streams import show
from perception.errors import PerceptionError
from perception.io.out_path import OutFolder

_paths = click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
_cache = click.option(
    "--cache",
    metavar="DIR",
    type=OutFolder(),
    help="Folder of stored features. Default: ~/.cache/perception/features.",
)
_workers = click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=1),
    help="Encode in N processes. Default: as many as the cores allow, at most 4.",
)


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--sessions",
    "sources",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Session, folder of sessions, or folder of media with labels in their names; may be repeated.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=OutFolder(),
    required=True,
    help="Checkpoint folder to write; a checkpoint in it is replaced.",
)
@_cache
@_workers
@click.option("--resume", is_flag=True, help="Continue an interrupted training with the same --out.")
def train(
    config: Path, sources: tuple[Path, ...], out: Path, cache: Path | None, workers: int | None, resume: bool
) -> None:
    """Train the fusion head that CONFIG describes and write its checkpoint and report.

    Labelled windows without any input present are counted, but not used. The report is on sessions that were
    not trained on. On two GPUs, or without any in two processes:
    torchrun --nproc-per-node 2 -m perception train CONFIG ...
    """
    from perception.training import commands as run

    run.train(config, sources, out, cache=cache, workers=workers, resume=resume, show=show)


@click.command()
@click.argument("head", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_paths
@click.option("--profile", "name", metavar="PROFILE", required=True, help="Profile that the head runs in.")
@click.option(
    "--out", metavar="DIR", type=OutFolder(), help="Folder of the report. Default: HEAD/evaluation."
)
@click.option(
    "--track", metavar="NAME", default="truth", show_default=True, help="Label track to compare with."
)
@click.option(
    "--retrieval",
    "models",
    metavar="KIND=MODEL",
    multiple=True,
    help="Also report recall@k and mAP of perception search for the class names; models as of its --model; "
    "may be repeated.",
)
@_cache
@_workers
def evaluate(
    head: Path,
    sources: tuple[Path, ...],
    name: str,
    out: Path | None,
    track: str,
    models: tuple[str, ...],
    cache: Path | None,
    workers: int | None,
) -> None:
    """Evaluate the checkpoint HEAD on SOURCES and write a report.

    SOURCES are sessions or folders that the head was not trained on.
    """
    from perception.retrieval import evaluation, search
    from perception.training import commands as run

    found = evaluation.score_sessions(sources, track, search.chosen(models), show=show) if models else {}
    run.evaluate(
        head,
        sources,
        name,
        out,
        track=track,
        cache=cache,
        workers=workers,
        retrieval=found,
        show=show,
    )


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--track",
    metavar="NAME",
    help="List only this track; 'commands' is that of the text commands of a session.",
)
def labels(file: Path, track: str | None) -> int:
    """List the labels of FILE and check them for overlaps and imbalance.

    FILE is a session, an Audacity label track, a CSV or an ELAN table. The exit code is 1 if a check failed.
    """
    from perception.session import labels as spans_of
    from perception.session.file.reader import Session

    if file.suffix == ".mcap":
        with Session(file) as session:
            zero_ns = session.zero.stamp_ns
        spans = [span.at(-zero_ns) for span in spans_of.of_session(file)]
    else:
        spans = spans_of.read(file)
    wanted = {track} if track else {span.track for span in spans} - {spans_of.COMMAND_TRACK}
    chosen = [span for span in spans if span.track in wanted]
    if not chosen:
        raise PerceptionError(f"{file}: no labels{f' in track {track}' if track else ''}")
    for span in chosen:
        show(f"{span.start_ns / 1e9:10.3f} {span.end_ns / 1e9:10.3f}  {span.track}  {span.name}")
    found = spans_of.check(chosen)
    for name, classes in found.seconds.items():
        total = sum(classes.values())
        for label, duration_s in sorted(classes.items(), key=lambda item: -item[1]):
            count = found.counts[name][label]
            show(f"{name}: {label}: {count} spans, {duration_s:.1f} s, {duration_s / total:.0%}")
    for problem in found.problems:
        show(f"perception: {file}: {problem}", err=True)
    return 1 if found.problems else 0


@click.command()
@click.argument("classes", nargs=-1, required=True)
@click.option("--track", metavar="NAME", default="truth", show_default=True, help="Label track to write to.")
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Mark one CLASS for S seconds from now, then end.",
)
@joined_domain
def mark(classes: tuple[str, ...], track: str, seconds: float | None, domain: str | None) -> None:
    """Label what happens now; a recorder stores the labels in its session.

    Keys in this terminal: 1 marks the first of CLASSES, 2 the second, and so on; space ends a mark, q quits.
    """
    from perception.bus.domains import joined
    from perception.cli import mark as marking

    domain = joined(domain).domain
    if seconds is not None:
        if len(classes) != 1:
            raise click.UsageError("--seconds takes one CLASS")
        marking.mark_for(classes[0], seconds, track=track, domain=domain)
    else:
        marking.mark_by_keys(classes, track=track, domain=domain, show=show)


@click.command()
@click.argument("name", type=click.Choice(["avmnist", "hwu64", "esc10", "grid"]))
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the data set.",
)
@setting("--out", "DIR", OutFolder(), Path("benchmarks"), "Folder of the tables to write.")
@click.option(
    "--seeds",
    metavar="N",
    type=click.IntRange(min=1),
    help="Train with N seeds. Default: 5 for avmnist, 1 for the others.",
)
@setting("--threads", "N", click.IntRange(min=1), 1, "Threads of torch.")
def reproduce(name: str, data: Path, out: Path, seeds: int | None, threads: int) -> None:
    """Reproduce a benchmark of multimodal fusion and write its tables."""
    import logging

    from perception.fusion.build import use_threads
    from perception.io.beside import written
    from perception.io.progress import progress

    use_threads(threads)
    with progress(f"reproduce {name}") as advance, written(out):
        from perception.reproduce import avmnist, esc10, grid, hwu64, results

        benchmarks: dict[str, results.Benchmark] = {
            "avmnist": avmnist.run,
            "hwu64": hwu64.run,
            "esc10": esc10.run,
            "grid": grid.run,
        }
        logging.basicConfig(
            format="%(message)s", level=logging.INFO
        )  # after the progress bar: lines of the log go above it
        figures = benchmarks[name](data, out, seeds or (5 if name == "avmnist" else 1), advance)
    show(*figures.markdown().split("\n"))


@click.command(hidden=True, params=reproduce.params)
@click.pass_context
def benchmark(context: click.Context, /, **arguments: object) -> None:
    """Run `perception reproduce`, whose name was `benchmark`."""
    show("perception: `perception benchmark` is called `perception reproduce` now", err=True)
    context.invoke(reproduce, **arguments)


COMMANDS = (train, evaluate, labels, mark, reproduce, benchmark)
