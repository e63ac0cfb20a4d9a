"""Flow fields of several slides, kept on disk to be traced with more than one setting."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from densebatch.base.errors import DensebatchError
from densebatch.base.names import join_notes
from densebatch.engines.quantization import write_quantised
from densebatch.run.folder import OutputFolder
from densebatch.run.prepare import Prepared, prepare
from densebatch.run.session import Progress, Session
from densebatch.run.start import start_executor
from densebatch.run.steps import list_predict_steps
from densebatch.stages.journal import Journal
from densebatch.stages.predict import create_flows, name_prediction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings


@dataclass(frozen=True)
class FlowField:
    """A slide's flow field on disk.

    Attributes
    ----------
    plan : what it was made by
    flows : the field, a zarr array
    evaluated : patches that the network was evaluated on in this call
    """

    plan: Plan
    flows: Path
    evaluated: int


def store_flows(
    slides: Mapping[Path, Path],
    settings: SegmentSettings,
    *,
    restart: bool = False,
    progress: Progress | None = None,
) -> dict[Path, FlowField]:
    """Evaluate the network on slides, and stop there: plan and stage 1 of `segment`.

    What an earlier call left in a folder is verified and used. The thresholds of `settings` are
    part of the plans: whoever wants to trace with others gives the same ones each time.

    Parameters
    ----------
    slides
        Slide by the folder that gets its flow field: absent, empty, or of the same run.
    settings
        See `SegmentSettings`.
    restart
        Remove what an earlier run left in the folders.
    progress
        Receives stages and tasks as they happen.

    Returns
    -------
    dict
        By folder.

    Raises
    ------
    InputError
        As `segment`; nothing is left behind.
    DensebatchError
        If a patch of a slide could not be evaluated.
    """
    progress = progress or Progress()
    folders = [OutputFolder(path.absolute()) for path in slides]
    runs = prepare(list(zip(slides.values(), folders, strict=True)), settings, restart=restart)
    for note in collect_notes([prepared.plan for prepared in runs]):
        progress.note(note)
    if not restart:
        for prepared in runs:
            prepared.folder.compare(prepared.plan)
    fields = {}
    with ExitStack() as stack:
        # Workers are started only if there is something for them to do.
        workers = 0 if not restart and all(map(_has_flows, runs)) else runs[0].workers
        executor = start_executor(stack, settings, workers, [prepared.plan for prepared in runs])
        for path, prepared in zip(slides, runs, strict=True):
            session = Session(
                prepared.plan, settings, prepared.choice, prepared.folder, executor, progress
            )
            prepared.folder.claim(prepared.plan, restart=restart)
            if prepared.choice.packed is not None:
                write_quantised(prepared.folder.work, prepared.choice.packed)
            create_flows(prepared.plan, session.work.flows)
            failures = session.drive(list(list_predict_steps(session)))
            if failures:
                task, reason = next(iter(failures.items()))
                raise DensebatchError(
                    f"{prepared.plan.slide.path}: {task.name} failed ({reason}); "
                    "the same command continues"
                )
            for facts in session.facts.values():
                if facts.get("unread"):
                    piece = facts["unread"][0]
                    raise DensebatchError(
                        f"{piece['reason']}; no thresholds are tried on a part of a slide, and the "
                        "same command tries it again"
                    )
            new = [f["patches"] for task, f in session.facts.items() if task not in session.kept]
            fields[path] = FlowField(prepared.plan, session.work.flows, sum(new))
    return fields


def collect_notes(plans: Sequence[Plan]) -> list[str]:
    """Notes of several plans, each once, with the slides' names before it unless it is of all."""
    notes = [(Path(plan.slide.path).name, note) for plan in plans for note in plan.notes]
    return join_notes(notes, len(plans))


def _has_flows(prepared: Prepared) -> bool:
    journal = Journal(prepared.folder.work / "journal")
    return all(journal.done(name_prediction(*group)) is not None for group in prepared.plan.groups)
