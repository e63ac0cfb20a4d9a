"""The steps of the label road: label overlapping tiles, compare, decide, paint."""

from __future__ import annotations

from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError
from densebatch.base.geometry import Region
from densebatch.base.names import count_of
from densebatch.run.session import Step
from densebatch.run.steps import Labelled, drive_all
from densebatch.stages.label import CompareTile, LabelTile, list_doubtful
from densebatch.stages.merge import PaintTile, decide_cells, write_keys
from densebatch.stages.missing import Gaps, collect_gaps
from densebatch.stages.number import digest_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from densebatch.merging.decision import Decision, Place
    from densebatch.run.session import Session
    from densebatch.stages.work import Work


def list_label_steps(work: Work) -> list[Step]:
    """A task for each tile that the segmenter sees."""
    tasks = [LabelTile(work, tile) for tile in range(len(work.label_plan.layout.regions))]
    return [Step(task, "label", task.region.area) for task in tasks]


def _list_compare_steps(work: Work, contents: Mapping[int, str]) -> Iterator[Step]:
    """A task for each tile that was labelled, of which a digest of its labels is given."""
    layout = work.label_plan.layout
    neighbours = layout.neighbours
    for tile, content in contents.items():
        others = tuple(n for n in neighbours[tile] if n > tile and n in contents)
        inputs = digest_texts([content, *(f"{n} {contents[n]}" for n in others)])
        yield Step(CompareTile(work, tile, others, inputs), "compare", layout.regions[tile].area)


def _list_paint_steps(work: Work, decision: str, contents: Mapping[int, str]) -> Iterator[Step]:
    """A task for each tile of the output, which is painted by what was decided."""
    inputs = digest_texts([decision, *(f"{n} {content}" for n, content in contents.items())])
    for index in work.grid:
        task = PaintTile(work, *index, decision, inputs)
        yield Step(task, "paint", task.region.area)


def merge_labelled(
    work: Work, facts: Mapping[int, Mapping[str, Any]], drive: Callable[[Sequence[Step]], object]
) -> tuple[Decision, list[PaintTile]]:
    """From labelled tiles to the labels of the output's tiles, and their keys.

    Parameters
    ----------
    work
        Of the run.
    facts
        By tile, of the records of those that have been labelled.
    drive
        Runs steps, none of which may fail.

    Returns
    -------
    decision
        Whose tiles are numbered by their place in `facts`.
    painted : list
        Tasks that have painted.
    """
    contents = {tile: found["content"] for tile, found in facts.items()}
    drive(list(_list_compare_steps(work, contents)))
    unread = [piece for found in facts.values() for piece in found["unread"]]
    doubtful = sorted(set(list_doubtful(work.label_plan, unread)))
    decision, digest = decide_cells(work, list(facts), doubtful)
    steps = list(_list_paint_steps(work, digest, contents))
    drive(steps)
    write_keys(work, decision.n_cells)
    return decision, [step.task for step in steps if isinstance(step.task, PaintTile)]


def label_and_merge(session: Session) -> Labelled:
    """All stages up to the labels of the output's tiles.

    Raises
    ------
    DensebatchError
        If nothing of the slide has a result.
    """
    work, plan = session.work, session.work.label_plan
    with session.timed("label"):
        steps = list_label_steps(work)
        failures = session.drive(steps)
    session.lost |= failures
    if len(failures) == len(steps):
        raise DensebatchError(
            f"{plan.slide.path}: no tile could be segmented: {next(iter(failures.values()))}"
        )
    tasks = [step.task for step in steps if step.task not in failures]
    facts = {task.tile: session.facts[task] for task in tasks if isinstance(task, LabelTile)}
    with session.timed("merge"):
        decision, painted = merge_labelled(work, facts, partial(drive_all, session))
    missing_px = {(task.row, task.col): session.facts[task]["missing_px"] for task in painted}
    merging = {
        "tiles": len(facts),
        "labels": sum(found["labels"] for found in facts.values()),
        "resolved_px": sum(session.facts[task]["resolved_px"] for task in painted),
        **_describe(decision, list(facts)),
    }
    _tell_larger(session, merging["larger_than_overlap"])
    failed = [
        {"tile": task.tile, "region": list(astuple(task.region)), "reason": reason}
        for task, reason in failures.items()
        if isinstance(task, LabelTile)
    ]
    gaps = _collect_gaps(session, missing_px)
    return Labelled(gaps, sorted(failed, key=lambda tile: tile["tile"]), {"merging": merging})


def _collect_gaps(session: Session, missing_px: Mapping[tuple[int, int], int]) -> Gaps:
    """Tiles of the output with a gap; if there is nothing but gaps, there is no result."""
    if sum(missing_px.values()) == session.plan.count_px(Region(0, 0, *session.plan.shape)):
        holes = (p for facts in session.facts.values() for p in facts.get("unread", ()))
        reason = next((piece["reason"] for piece in holes), next(iter(session.lost.values()), ""))
        raise DensebatchError(f"{session.plan.slide.path}: no tile could be segmented: {reason}")
    return collect_gaps((), dict(missing_px))


def _describe(decision: Decision, labelled: Sequence[int]) -> dict[str, Any]:
    """What was decided, as the report has it; tiles as the plan numbers them."""

    def tell(place: Place) -> dict[str, Any]:
        return {
            "region": list(astuple(place.region)),
            "tiles": [labelled[tile] for tile in place.tiles],
        }

    return {
        "candidate_pairs": decision.candidate_pairs,
        "merged": decision.merged,
        "larger_than_overlap": [tell(place) for place in decision.larger],
        "dropped_pieces": [tell(place) for place in decision.dropped],
    }


def _tell_larger(session: Session, larger: Sequence[Mapping[str, Any]]) -> None:
    """Say where cells are that no tile holds whole."""
    if larger:
        session.progress.note(
            f"{count_of(len(larger), 'cell')} larger than the overlap of the tiles "
            f"({session.work.label_plan.overlap_px} px), the first at pixels "
            f"{larger[0]['region']}: kept as one, of parts that no tile holds together; a larger "
            "--overlap holds them whole"
        )
