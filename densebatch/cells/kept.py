"""What stays with a finished result so that damage can be found and mended.

| in OUT | what |
|---|---|
| `digests.sha256` | SHA-256 of every file of the result, as `sha256sum -c` reads it |
| `labels.sha256` | for labels written into a slide: those of the files there |
| `work.sha256` | for a work folder that stays: those of its files that no record of a task covers |
| `.kept/seeds.npy` | the position of each cell's seed, by which cells are numbered |
| `.kept/nuclei.npy` | where nuclei were joined with cells: the cell of each, 0 for none |
| `.kept/` | second copies of these lists, the seeds, every document (`run.json`, metadata) |
| | and what `work.sha256` lists, but for records |

Lists end with their own checksum, and a copy of a document has the checksum of the document, so
that a bit that changes anywhere shows; and of anything that cannot be computed again there are two.
The lists are written when all they speak of is there, but for `run.json`, which is then the last
file of a run; a session that goes on with a run removes them first.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.checksums import (
    checksum_file,
    fits_checksum,
    format_checksums,
    list_files,
    parse_checksums,
)
from densebatch.base.errors import InputError
from densebatch.base.files import write_atomic
from densebatch.cells.pyramid_spec import LABEL_NAME, OWNER
from densebatch.ngff.folders import DOCUMENTS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

REPORT, MARKER = "run.json", ".densebatch.json"
_KEPT = ".kept"
_SEEDS = f"{_KEPT}/seeds.npy"
_OWNERS = f"{_KEPT}/nuclei.npy"
_WORK = "work"
RECORDS = "journal/"


@dataclass(frozen=True)
class Tree:
    """Files of a result below one folder: those of OUT, those in a slide, or of tasks.

    Attributes
    ----------
    name : of its list
    base : the folder
    out : the output folder, which has the lists
    """

    name: str
    base: Path
    out: Path

    @property
    def lists(self) -> tuple[Path, Path]:
        """The list of checksums, and its copy."""
        return self.out / f"{self.name}.sha256", self.out / _KEPT / f"{self.name}.sha256"

    def copy_of(self, name: str) -> Path | None:
        """Where the second copy of a file is; None if it has none, for it can be computed again."""
        if name.startswith(RECORDS) if self.name == _WORK else not is_document(name):
            return None
        # With an ending of its own, because nobody shall take the copies for an OME-Zarr.
        return self.out / _KEPT / self.name / f"{name}.copy"

    def shown(self, name: str) -> str:
        """How a user finds a file."""
        path, is_inside = self.base / name, self.base.is_relative_to(self.out)
        return path.relative_to(self.out).as_posix() if is_inside else str(path)


def is_document(name: str) -> bool:
    """Whether a file of a result cannot be computed again, so that there are two, by its name."""
    kept = (Path(_SEEDS).name, Path(_OWNERS).name)
    return Path(name).name in (*DOCUMENTS, REPORT, MARKER, *kept)


def list_trees(out: Path, root: Path, *, in_place: bool) -> list[Tree]:
    """The trees of a result.

    Parameters
    ----------
    out
        The output folder.
    root
        The OME-Zarr image group that has the labels.
    in_place
        Whether that is the slide.
    """
    trees = [Tree("digests", out, out)]
    return [*trees, Tree("labels", root, out)] if in_place else trees


def work_tree(out: Path, work: Path) -> Tree:
    """Flows, traces and records that stay with a result, as far as no record covers them.

    Parameters
    ----------
    out
        The output folder.
    work
        The folder of the run's tasks.
    """
    return Tree(_WORK, work, out)


def seeds_path(out: Path) -> Path:
    """The positions of all cells' seeds, ascending int64: cell i is the i-th."""
    return out / _SEEDS


def owners_path(out: Path) -> Path:
    """The cell that each nucleus belongs to, uint32, 0 for none; where nuclei are known."""
    return out / _OWNERS


def scratch_path(out: Path) -> Path:
    """Where files are made again before they replace damaged ones."""
    return out / _KEPT / "repair"


def list_lists(out: Path) -> list[Path]:
    """The lists of checksums that an output folder may have, and their copies."""
    return [path for tree in list_trees(out, out, in_place=True) for path in tree.lists]


def forget(out: Path) -> None:
    """Remove the lists of an output folder, before anything that they speak of is changed."""
    for path in list_lists(out):
        path.unlink(missing_ok=True)
    forget_work(out)
    shutil.rmtree(out / _KEPT, ignore_errors=True)


def forget_work(out: Path) -> None:
    """Remove the list of a work folder that is gone, or is about to change, and what it lists."""
    for path in work_tree(out, out).lists:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / _KEPT / _WORK, ignore_errors=True)


def keep(
    trees: Sequence[Tree],
    root: Path,
    table: Path,
    known: Mapping[str, str],
    seeds: bytes,
    report: bytes,
    owners: bytes | None = None,
) -> None:
    """Write the lists and the second copies, when all but `run.json` is there.

    Parameters
    ----------
    trees
        Of the result.
    root
        The OME-Zarr image group that has the labels.
    table
        The cell table.
    known
        Checksums of chunks and shards, from the tasks that wrote them, by names relative to the
        root. A file that is gone since stays on the list, so that it is missed.
    seeds
        Content of the file of all seeds.
    report
        Content that `run.json` will have.
    owners
        Content of the file of the nuclei's cells, where nuclei are known.
    """
    write_atomic(seeds_path(trees[0].out), seeds)
    if owners is not None:
        write_atomic(owners_path(trees[0].out), owners)
    for tree in trees:
        listed = {}
        if tree == trees[-1]:
            inside = "" if tree.base == root else f"{root.name}/"
            listed = {f"{inside}{name}": checksum for name, checksum in known.items()}
        for name in _list_results(tree, root, table):
            if name not in listed:
                listed[name] = checksum_file(tree.base / name)
            copy = tree.copy_of(name)
            if copy is not None:
                write_atomic(copy, (tree.base / name).read_bytes())
        copy = tree.copy_of(REPORT)
        if tree.base == tree.out and copy is not None:
            write_atomic(copy, report)
            listed[REPORT] = checksum_file(copy)
        write_list(tree, listed)


def keep_work(tree: Tree, recorded: Collection[str]) -> None:
    """Write the list of a work folder that stays, and second copies of all that it lists.

    Records themselves have none, because their tasks can be done again.

    Parameters
    ----------
    tree
        See `work_tree`.
    recorded
        Names of files that a record covers, which are not listed.
    """
    names = [name for name in list_files(tree.base) if name not in recorded]
    for name in names:
        copy = tree.copy_of(name)
        if copy is not None:
            write_atomic(copy, (tree.base / name).read_bytes())
    write_list(tree, {name: checksum_file(tree.base / name) for name in names})


def write_list(tree: Tree, listed: Mapping[str, str]) -> None:
    """Write both copies of the list of a tree."""
    text = format_checksums(listed)
    for path in reversed(tree.lists):
        write_atomic(path, text)


def _list_results(tree: Tree, root: Path, table: Path) -> Iterator[str]:
    """Names of the files of a tree, but for `run.json`."""
    if tree.base != root:
        yield from (MARKER, table.name, _SEEDS)
        if owners_path(tree.out).exists():
            yield _OWNERS
        if root.parent == tree.base:
            yield from (f"{root.name}/{name}" for name in list_files(root) if "\n" not in name)
        return
    holder = root / "labels"
    yield from (f"labels/{name}" for name in DOCUMENTS if (holder / name).is_file())
    for label in sorted(path for path in holder.iterdir() if path.is_dir()):
        if _is_ours(label):
            yield from (f"labels/{label.name}/{name}" for name in list_files(label))


def _is_ours(group: Path) -> bool:
    """Whether a group carries our mark."""
    return any(_read_mark(group / name) is not None for name in ("zarr.json", ".zattrs"))


def _read_mark(document: Path) -> dict[str, Any] | None:
    """Our mark in the document of a group, None if it has none or cannot be read."""
    try:
        found = json.loads(document.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    attributes = found.get("attributes") if isinstance(found, dict) else None
    mark = (attributes if isinstance(attributes, dict) else found or {}).get(OWNER)
    return mark if isinstance(mark, dict) else None


def is_replaced(tree: Tree) -> bool:
    """Whether another run has put its labels in the place of those in a slide.

    Fingerprints of two runs have hardly a character in common; a bit that changed leaves all but
    one.
    """
    for document in ("zarr.json", ".zattrs"):
        name = f"labels/{LABEL_NAME}/{document}"
        copy = tree.copy_of(name)
        marks = [None if path is None else _read_mark(path) for path in (tree.base / name, copy)]
        now, before = (str((mark or {}).get("run", {}).get("fingerprint")) for mark in marks)
        if None not in marks and sum(a != b for a, b in zip(now, before, strict=False)) > 2:
            return True
    return False


def read_list(tree: Tree) -> tuple[dict[str, str] | None, list[str]]:
    """The checksums of a tree, from whichever copy of the list is whole and of this result.

    Returns
    -------
    checksums : dict or None
        By name; None if there is no such copy.
    faults : list of str
        A sentence for each copy that is not.
    """
    found: dict[str, dict[str, str]] = {}
    faults = []
    for path in tree.lists:
        shown = path.relative_to(tree.out).as_posix()
        try:
            parsed = parse_checksums(path.read_bytes())
        except FileNotFoundError:
            faults.append(f"{shown}: is missing")
        except (OSError, InputError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            faults.append(f"{shown}: is damaged ({reason})")
        else:
            if _tells_of(tree, parsed):
                found[shown] = parsed
            else:
                faults.append(f"{shown}: is the list of another result")
    if not found:
        return None, faults
    best = next(iter(found))
    if any(parsed != found[best] for parsed in found.values()):
        best = min(found, key=lambda shown: _count_misfits(tree, found[shown]))
        faults += [f"{s}: is of another session than its copy" for s in found if s != best]
    return found[best], faults


def _tells_of(tree: Tree, listed: Mapping[str, str]) -> bool:
    """Whether a document that no two runs have alike, or its copy, fits a list."""
    return any(
        path is not None and fits_checksum(path, listed[name])
        for name in filter(_is_telling, listed)
        for path in (tree.base / name, tree.copy_of(name))
    )


def _is_telling(name: str) -> bool:
    """Whether a file of a result, by its name, tells which run's it is."""
    labels = (f"{LABEL_NAME}/zarr.json", f"{LABEL_NAME}/.zattrs")
    return name in (REPORT, MARKER) or name.startswith("plan-") or name.endswith(labels)


def _count_misfits(tree: Tree, listed: Mapping[str, str]) -> tuple[int, int]:
    """How many documents do not fit a list, both copies of them, and how many files."""
    lost = [n for n in listed if not fits_checksum(tree.base / n, listed[n])]
    copies = [(copy, listed[n]) for n in lost if (copy := tree.copy_of(n)) is not None]
    return sum(not fits_checksum(copy, told) for copy, told in copies), len(lost)
