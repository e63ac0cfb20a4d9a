"""Many slides from Python, as `densebatch segment SLIDE... OUTDIR` and `--sheet` do it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.cohorts.drive import CohortResult, drive_cohort
from densebatch.cohorts.sheet import list_rows
from densebatch.planning.settings import load_settings
from densebatch.remote.tree import find_place

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from densebatch.planning.settings import SegmentSettings
    from densebatch.remote.tree import Place
    from densebatch.run.report import Progress

__all__ = ["CohortResult", "segment_cohort"]


def segment_cohort(
    slides: str | Path | Sequence[str | Place],
    out: str | Path,
    settings: SegmentSettings | None = None,
    *,
    restart: bool = False,
    progress: Progress | None = None,
    listed: Collection[str] = (),
    **options: Any,  # noqa: ANN401
) -> CohortResult:
    """Segment many slides, which share the workers, each into a folder of its own in `out`.

    Parameters
    ----------
    slides
        Files, folders and addresses, which are named by their names; or the path of a sample sheet,
        a CSV file with the columns sample, slide, and settings of each.
    out
        Output folder: absent, empty, or of an earlier call, which is then continued.
    settings
        Of all slides, see `SegmentSettings`; or give its fields as keyword arguments. What a row of
        the sheet says goes before them.
    restart
        Remove what earlier calls left of these slides and begin again.
    progress
        Receives stages and tasks as they happen.
    listed
        Names of settings in which commas stand between channels, as the command line has them; a
        sheet's own always do.
    **options
        Fields of `SegmentSettings`.

    Returns
    -------
    CohortResult
        What became of each slide: its sample, its state and, if it failed, why. Slides that failed
        do not raise. `out/cohort.json` has the same.

    Raises
    ------
    InputError
        For a sheet, names, setting, scheduler, network or output folder that cannot be used.
    DensebatchError
        If the workers are lost for good, or another process took the folder over.
    KeyboardInterrupt
        For Ctrl-C and SIGTERM, as `segment`. The same call continues.
    """
    if settings is not None and options:
        raise TypeError(f"give settings or keyword arguments, not both: {', '.join(options)}")
    settings = settings or load_settings(None, **options)
    paths = Path(slides) if isinstance(slides, str | Path) else [*map(find_place, slides)]
    rows = list_rows(paths, settings, frozenset(listed))
    return drive_cohort(rows, Path(out), settings, restart=restart, progress=progress)
