"""The commands `perception train` and `perception evaluate`, from paths to files."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from perception import profile as profiles
from perception.errors import PerceptionError, SessionError, located
from perception.fusion import build
from perception.io.beside import beside, restore, written
from perception.io.home import kept_in
from perception.io.progress import progress
from perception.models.checkpoint import Head, check_branches, load_head, with_own_encoders
from perception.profile import FusionConfig
from perception.training import card, copies, cost, dataset, heads, processes, report, splits
from perception.training import finetune as encoders
from perception.training import plan as plans
from perception.training.examples import Examples
from perception.training.model import FusionModel
from perception.training.plan import CACHE, TrainPlan
from perception.training.sources import DataSource, find_sources
from perception.training.workers import workers_for

Show = Callable[[str], Any]
_LOG: Final = logging.getLogger(__name__)


def train(
    config: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    cache: Path | None,
    workers: int | None,
    resume: bool,
    show: Show,
    cores: int | None = None,
) -> None:
    """Train, report and store; see the command. Of several processes, only the main one prints and writes.

    Without `workers`, the number of encoding processes follows from `cores`, by default of this machine.
    """
    plan = plans.load_plan(config)
    here = processes.join(build.pick_device(plan.training.device))
    main = here.is_main_process
    if main:
        restore(out)
    card.refuse_unlike_head(out)
    fusion = profiles.load(plan.profile).required_fusion()
    encoded = partial(
        _build,
        fusion=fusion,
        track=plan.track,
        cache=cache,
        workers=_workers(workers, cores, fusion),
        hidden=not main,
        context=plan.head.gru > 0,
        prepared=plan.train_encoders,
        least=plan.parts,
    )
    copies.check(config, plan.copies, fusion)
    encoders.check(config, plan.augment, fusion, plan.train_encoders)
    sources = find_sources(paths, fusion)
    with located(plan.profile), _unfinished(out, resume, main) as states:
        with here.main_process_first():
            data = encoded(sources, classes=plan.classes)
            perturbed = [encoded(copies.copied(sources, one), classes=data.classes) for one in plan.copies]
        _train(out, states, plan, fusion, sources, data, perturbed, main, show)


@contextmanager
def _unfinished(out: Path, resume: bool, main: bool) -> Iterator[Path]:
    """Yield the folder of the states that a training resumes from; it is beside the checkpoint.

    It exists while a training runs, and after one that was interrupted or found the disk full.
    """
    folder = out.with_name(f"{out.name}.unfinished")
    if any(folder.glob("*.state")) and not resume:
        raise PerceptionError(f"{folder} holds an interrupted training; resume it with --resume or remove it")
    try:
        yield folder
    except KeyboardInterrupt:
        if main and folder.exists():
            _LOG.warning("interrupted; to resume from %s, give the same command with --resume", folder)
        raise
    except PerceptionError as error:
        if main and not isinstance(error, SessionError):  # a resumed training would fail again
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        if main:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        with suppress(OSError):
            folder.rmdir()  # removes only a folder without a state


def _train(
    out: Path,
    states: Path,
    plan: TrainPlan,
    fusion: FusionConfig,
    sources: Sequence[DataSource],
    data: Examples,
    perturbed: Sequence[Examples],
    main: bool,
    show: Show,
) -> None:
    """Train on examples, report and store; only the main process prints and writes."""
    parts = heads.split(data, plan, perturbed)
    inputs = plans.branch_inputs(fusion)
    if main:
        counts = [len(part.labelled) for part in (parts.train, parts.validation, parts.test)]
        show("{} windows to train on, {} to choose the epoch by, {} to test on".format(*counts))
    fits = plan.seeds + len(set(inputs.values())) + plan.folds
    with progress("training heads", fits, hidden=not main) as advance:
        models = heads.train_heads(parts, plan, fusion, states, advance)
        singles = heads.train_singles(parts, plan, fusion, advance)
        tested = heads.cross_validate(data, plan, fusion, perturbed, advance) if plan.folds else ()
        folds = report.over_folds(tested) if plan.folds else {}
    if not main:
        return
    with progress("testing"):
        found = report.assess(models, parts.validation, parts.test, inputs, singles)
        found["cost"] = cost.of_tick(models[0], parts.test, sources, fusion)
    found["folds"] = folds
    found["training"] = plan.used.model_copy(update={"classes": data.classes}).model_dump(mode="json")
    card.refuse_unlike_head(out)
    with beside(out, replace=True) as part, written(out):
        card.save(part, models[0], parts, found, inputs, card.encoders_config_hash(fusion), out)
        encoders.save(part, fusion, dict(models[0].encoders))
        report.write(part, found, f"Fusion head {out.name}")
    _summarise(found, show)
    show(f"stored {out}; report: {out / 'report.html'}")


def evaluate(
    folder: Path,
    paths: Sequence[Path],
    name: str,
    out: Path | None = None,
    *,
    track: str,
    cache: Path | None,
    workers: int | None,
    retrieval: Mapping[str, Any],
    show: Show,
    cores: int | None = None,
) -> None:
    """Report on a stored head, in `out` or beside it; see the command.

    The conformal thresholds are chosen on half of the sessions; with a single session or recording, there are
    none. `retrieval` holds scores of search for the report. `workers` and `cores` are as in `train`.
    """
    out = out or folder / card.EVALUATION
    report.refuse_training(out)
    fusion = with_own_encoders(profiles.load(name).required_fusion(), folder)
    head = load_head(folder)
    sources = find_sources(paths, fusion)
    with located(name):
        data = _build(
            sources,
            fusion=fusion,
            classes=head.classes,
            track=track,
            cache=cache,
            workers=_workers(workers, cores, fusion),
            context=head.ticks > 1,
        )
    found = {**_tested(head, data, sources, fusion), "retrieval": dict(retrieval)}
    chosen_by = ", ".join(found["threshold_sessions"]) or "none, there is only one session"
    show(f"tested on {found['windows']} windows of {found['sessions']} sessions")
    show(f"sessions that chose conformal thresholds and are not in the test: {chosen_by}")
    with written(out):
        page = report.write(out, found, f"Fusion head {folder.name}")
    _summarise(found, show)
    show(f"report: {page}")


def _tested(
    head: Head, data: Examples, sources: Sequence[DataSource], fusion: FusionConfig
) -> dict[str, Any]:
    """Return the figures of a stored head on one half of the sessions; the other half chooses thresholds."""
    check_branches(head, {branch: data.features[branch].shape[1] for branch in data.branches})
    single = len(set(data.groups.tolist())) == 1
    calibration, test = (None, data) if single else splits.holdout(data, 0.5, 0)
    model = FusionModel(head)
    with progress("testing"):
        found = report.assess([model], calibration, test, plans.branch_inputs(fusion))
        found["cost"] = cost.of_tick(model, test, sources, fusion)
    return found


def _workers(given: int | None, cores: int | None, fusion: FusionConfig) -> int:
    here = cores or build.cores()
    return given or workers_for(here, build.threads_for(fusion.threads, here))


def _build(
    sources: Sequence[DataSource],
    *,
    fusion: FusionConfig,
    cache: Path | None,
    hidden: bool = False,
    **options: Any,
) -> Examples:
    folder = kept_in(cache or CACHE, "--cache")
    with progress("encoding", len(sources), hidden=hidden) as advance:
        examples = dataset.build(sources, fusion, folder, advance=advance, **options)
    build.use_threads(0)  # encoding had set the threads of the fusion
    return examples


def _summarise(found: Mapping[str, Any], show: Show) -> None:
    for name, left_out in found["left_out"].items():
        if (scored := found["subsets"].get(name)) is None:
            show(f"{name:40} not scored: absent in all {left_out} windows")
            continue
        accuracy, recall, nll = scored["accuracy"], scored["macro_recall"], scored["nll"]
        absent = f"  absent in {left_out} windows, left out" if left_out else ""
        show(f"{name:40} accuracy {accuracy:.3f}  macro recall {recall:.3f}  NLL {nll:.3f}{absent}")
    once = found["by_clip"]
    clips = f", {once['clip_accuracy']:.3f} of {once['clips']} clips" if "clips" in once else ""
    show(f"each of {once['sources']} sessions or clips counted once: accuracy {once['accuracy']:.3f}{clips}")
    for name, scores in found.get("retrieval", {}).items():
        show(f"search, {name}: {', '.join(f'{key} {value:.3f}' for key, value in scores['mean'].items())}")
    drops = ", ".join(f"{name} {drop:.3f}" for name, drop in found["shuffle_drop"].items())
    show(f"accuracy lost when shuffled: {drops}")
