"""`densebatch convert`: the story of a conversion, in the main process.

The image is written in a folder beside it, `.OUT.unfinished`, with the plan, the owner and the
records of a run (`run.folder`), and takes its name at the end. So OUT is absent or whole, and the
same command goes on with what it finds there.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.base.files import refuse_address, remove_folder, sentences_for_disk
from densebatch.base.log import log_event
from densebatch.cells.groups import open_group, read_attributes, require_array, require_group
from densebatch.cells.labels import count_levels, shard_grid, source_region
from densebatch.cells.pyramid import array_settings, level_path
from densebatch.cells.pyramid_spec import OWNER, image_document
from densebatch.converting.tasks import CopyShard, ReduceShard
from densebatch.planning.capacity import check_capacity, choose_workers, estimate
from densebatch.planning.plan import ConvertPlan
from densebatch.planning.planner import read_region
from densebatch.planning.settings import load_settings
from densebatch.run.driver import Driver
from densebatch.run.folder import OutputFolder
from densebatch.run.report import Progress
from densebatch.run.session import Session, Step
from densebatch.run.start import ExecutorStart
from densebatch.run.steps import drive_all
from densebatch.slides.slide import check_unchanged, open_slide
from densebatch.stages.number import digest_texts
from densebatch.stages.output import group_levels, output_spec

if TYPE_CHECKING:
    from densebatch.cells.pyramid_spec import PyramidSpec
    from densebatch.planning.settings import SegmentSettings
    from densebatch.remote.tree import Place

log = logging.getLogger(__name__)

_SUFFIX = ".zarr"


@dataclass(frozen=True)
class Conversion:
    """What a conversion has made.

    Attributes
    ----------
    out : the OME-Zarr
    plan : by which it was made
    pixels : digest of the slide's pixels, as they were read and read back
    was_there : whether it was complete before
    """

    out: Path
    plan: ConvertPlan
    pixels: str
    was_there: bool


def convert(
    slide: str | Place,
    out: str | Path,
    settings: SegmentSettings | None = None,
    *,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401
) -> Conversion:
    """Write a slide as a pyramidal OME-Zarr, with all channels, their names and the pixel size.

    Parameters
    ----------
    slide
        Whatever `segment` takes.
    out
        Of the OME-Zarr, whose name ends with `.zarr`; absent, or of the same conversion.
    settings
        What says which image it is, what of it counts (all else becomes 0), `ngff`, the pixel size,
        and who does the work; or give them as keyword arguments.
    restart
        Remove what an unfinished conversion left and begin again.
    progress
        Receives stages and tasks as they happen.
    **options
        Fields of `SegmentSettings`.

    Raises
    ------
    InputError
        For a slide, setting or output that cannot be used.
    DensebatchError
        If pixels cannot be read or written, or the slide changed meanwhile.
    KeyboardInterrupt
        As for `segment`. The same call continues.
    """
    settings, progress = settings or load_settings(None, **options), progress or Progress()
    out = Path(out)
    refuse_address(out)
    out = out.absolute()
    if not out.name.endswith(_SUFFIX):
        raise InputError(f"{out}: is no name for an OME-Zarr; accepted are names with .ome.zarr")
    plan = _plan(slide, settings)
    folder = OutputFolder(out.with_name(f".{out.name}.unfinished"))
    if out.exists() or out.is_symlink():
        return _recall(out, plan, folder)
    for note in plan.notes:
        progress.note(note)
    workers = choose_workers(settings, plan)
    check_capacity(estimate(plan, settings.tile), workers, folder.path, remote=settings.is_remote)
    with Driver(progress) as driver, ExecutorStart(settings, progress.note) as starting:
        driver.refuse_living(folder)
        if not restart:
            folder.compare(plan)
        session = Session(
            plan, settings, None, folder, driver,
            lambda: starting.finish(workers, [plan], folder.work), workers, progress,
        )  # fmt: skip
        with sentences_for_disk(out):
            driver.own(folder)
            folder.claim(plan, restart=restart)
            spec = output_spec(plan, session.root)
            _create(spec)
            pixels = _copy(session, spec)
            check_unchanged(plan.slide)
            driver.check()
            _finalize(spec, plan, pixels)
            if out.exists():
                raise InputError(f"{out}: has appeared meanwhile; remove it, and try again")
            Path(spec.root).rename(out)
        driver.unwatch(folder)
    remove_folder(folder.path)
    log_event(log, "slide converted", slide=plan.slide.path, out=str(out), pixels=pixels)
    return Conversion(out, plan, pixels, was_there=False)


def _plan(path: str | Place, settings: SegmentSettings) -> ConvertPlan:
    slide = open_slide(
        path, settings.scene, settings.axes, z=settings.z, t=settings.t, panel=settings.panel
    )
    slide.source.renew()
    info = slide.info
    region, notes = read_region(info, settings)
    return ConvertPlan(
        slide=info,
        membrane=(),
        nuclei=None,
        um_per_px=settings.pixel_size or info.um_per_px,
        mask_debris=False,
        ngff=settings.ngff,
        copy_image=True,
        in_place=False,
        versions={name: version(name) for name in ("densebatch", "numpy")},
        notes=(*info.notes, *notes),
        region=region,
        n_levels=count_levels(info.height, info.width),
    )


def _recall(out: Path, plan: ConvertPlan, folder: OutputFolder) -> Conversion:
    """What an earlier call has made; what it may have left beside it is removed.

    Raises
    ------
    InputError
        If it is anything else.
    """
    try:
        told = read_attributes(out).get(OWNER, {}).get("converted", {})
    except InputError:
        told = {}
    if told.get("fingerprint") != plan.fingerprint:
        raise InputError(
            f"{out}: exists, and is not what this slide and these settings become; remove it or "
            "choose another path"
        )
    remove_folder(folder.path)
    return Conversion(out, plan, str(told.get("pixels")), was_there=True)


def _create(spec: PyramidSpec) -> None:
    """Create the group and its empty arrays; what is there of them is kept."""
    require_group(Path(spec.root), spec.zarr_format)
    for level in range(spec.n_levels):
        settings = array_settings(spec, level, image=True)
        require_array(level_path(spec, level, image=True), settings)


def _copy(session: Session, spec: PyramidSpec) -> str:
    """Copy all shards and make the levels above; the digest of all pixels of the slide."""
    first, *above = group_levels(spec)
    grid = shard_grid(spec, 0)
    with session.timed("copy"):
        copies = [CopyShard(session.work, first[0], *index, session.root) for index in grid]
        drive_all(session, [Step(t, "copy", grid[t.row, t.col].area) for t in copies])
        for levels in above:
            drive_all(session, _list_reduce_steps(session, spec, levels[0]))
    return digest_texts(session.facts[task]["pixels"] for task in copies)


def _list_reduce_steps(session: Session, spec: PyramidSpec, level: int) -> list[Step]:
    grid, below = shard_grid(spec, level), shard_grid(spec, level - 1)
    steps = []
    for index in grid:
        made = [
            CopyShard(session.work, 0, *shard, session.root) if level == 1
            else ReduceShard(session.work, level - 1, *shard, session.root, "")
            for shard in below.overlapping(source_region(spec, level, grid[index]))
        ]  # fmt: skip
        inputs = digest_texts(
            f"{checksum}  {name}"
            for task in made
            for name, checksum in sorted(session.facts[task]["files"].items())
        )
        task = ReduceShard(session.work, level, *index, session.root, inputs)
        steps.append(Step(task, f"pyramid level {level}", grid[index].area))
    return steps


def _finalize(spec: PyramidSpec, plan: ConvertPlan, pixels: str) -> None:
    """Write the metadata that make the arrays an image, and where it comes from."""
    root = Path(spec.root)
    for unfinished in root.rglob("*.partial"):  # of writers that were killed
        unfinished.unlink(missing_ok=True)
    told = {
        "fingerprint": plan.fingerprint,
        "slide": Path(plan.slide.path).name,
        "scene": plan.slide.scene,
        "pixels": pixels,
        "versions": dict(plan.versions),
    }
    if plan.region is not None:
        told["region"] = json.loads(json.dumps({**asdict(plan.region), "runs": None}))
    open_group(root).update_attributes(image_document(spec) | {OWNER: {"converted": told}})
