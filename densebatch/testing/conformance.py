"""What a segmenter owes, checked on tiles that are drawn for it.

| check | passes if |
|---|---|
| runs | a tile of any size is labelled without an exception |
| shape, dtype, values | an array of the tile's size, of integers, none below 0 |
| cells | some of the tile's cells are labelled |
| determinism | the same tile gives the same bits again |
| empty | a tile of zeros has no label |
| foreground | a tile of ones gives labels, whichever |
| border | cells that the tile's border cuts are labelled as often as others, or half as often |
| memory | no more than the segmenter's `bytes_per_px` |

What depends on the tile beyond two diameters is told, and does not fail, because networks that see
the whole tile do: see `Report.findings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import SegmenterError
from densebatch.segmenters.find import find_segmenter
from densebatch.segmenters.function import wrap
from densebatch.segmenters.run import find_fault, label_tile
from densebatch.segmenters.segmenter import Segmenter, SlideFacts, Tile
from densebatch.testing.memory import measure_call
from densebatch.testing.scene import draw_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from densebatch.testing.scene import Scene

_MEMORY_SIDE = 1024
_MEMORY_SLACK = 1.1
"""Pages and what was free before make the measurement uncertain."""
_MARGIN = 2
"""Diameters from a tile's border at which it should not matter."""
_AS_OFTEN = 0.5


class CheckFailedError(AssertionError):
    """A segmenter does not keep what it owes; `report` has all checks."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class Check:
    """One of the module's checks.

    Attributes
    ----------
    name : see the module
    wrong : what is wrong, a sentence; None if it passes
    """

    name: str
    wrong: str | None


@dataclass(frozen=True)
class Report:
    """What was found of a segmenter.

    Attributes
    ----------
    segmenter : its name
    checks : in the order in which they were made; later ones are left out if it does not run
    bytes_per_px : memory that was measured, beside the tile; None if it does not run
    findings : what is no failure but good to know
    """

    segmenter: str
    checks: tuple[Check, ...]
    bytes_per_px: float | None = None
    findings: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that do not pass."""
        return tuple(check.name for check in self.checks if check.wrong is not None)

    def __str__(self) -> str:
        """One line for each check that does not pass and each finding."""
        lines = [
            f"segmenter {self.segmenter}: {len(self.failed)} of {len(self.checks)} checks fail"
        ]
        lines += [f"{check.name}: {check.wrong}" for check in self.checks if check.wrong]
        return "\n".join([*lines, *self.findings])


def check_segmenter(
    segmenter: Segmenter | str | Callable[..., Any],
    options: Mapping[str, Any] | None = None,
    um_per_px: float | None = 0.5,
    channels: int = 1,
    diameter_px: float = 15,
) -> Report:
    """Check a segmenter; see the module.

    Parameters
    ----------
    segmenter
        One, or what `segmenters.find` finds one by, or a function.
    options
        As a user would give them.
    um_per_px
        Size of the pixels of the tiles; None for unknown.
    channels
        1 for nuclei, 2 for membrane and nuclei.
    diameter_px
        Of the nuclei in the tiles.

    Returns
    -------
    Report
        Of a segmenter that passes.

    Raises
    ------
    CheckFailedError
        An `AssertionError` that names each check that fails, and why.
    InputError
        If there is no such segmenter, or it does not accept the options.
    """
    report = _Conformance(_find(segmenter), options or {}, um_per_px, channels, diameter_px).run()
    if report.failed:
        raise CheckFailedError(report)
    return report


def _find(segmenter: Segmenter | str | Callable[..., Any]) -> Segmenter:
    if isinstance(segmenter, Segmenter):
        return segmenter
    if isinstance(segmenter, str):
        return find_segmenter(segmenter)
    name = getattr(segmenter, "__qualname__", repr(segmenter))
    return wrap(segmenter, name, name, segmenter.__module__)


class _Conformance:
    """The checks of one segmenter."""

    def __init__(
        self,
        segmenter: Segmenter,
        options: Mapping[str, Any],
        um_per_px: float | None,
        channels: int,
        diameter_px: float,
    ) -> None:
        from skimage.filters import threshold_otsu

        self._segmenter, self._um_per_px, self._diameter = segmenter, um_per_px, diameter_px
        self._names = ("membrane", "nuclei")[-channels:]
        self._scene: Scene = draw_scene(channels, diameter_px)
        levels = [float(threshold_otsu(plane)) for plane in self._scene.image]
        self._options = segmenter.complete_options(
            options, SlideFacts(tuple(levels), diameter_px, um_per_px)
        )

    def _tile(self, image: NDArray[np.float32]) -> Tile:
        return Tile(image.copy(), self._names, self._um_per_px, self._options)

    def _label(self, image: NDArray[np.float32]) -> NDArray[np.integer[Any]]:
        return label_tile(self._segmenter, self._tile(image))

    def run(self) -> Report:
        """Make all checks."""
        checks = self._check_result()
        if any(check.wrong for check in checks):
            return Report(self._segmenter.name, tuple(checks))
        labels = self._label(self._scene.image)
        checks += [
            self._check_cells(labels),
            self._check_determinism(labels),
            self._check_constant("empty", 0),
            self._check_constant("foreground", 1),
            self._check_border(labels),
        ]
        memory, per_px = self._check_memory()
        return Report(
            self._segmenter.name, (*checks, memory), per_px, self._find_tile_dependence(labels)
        )

    def _check_result(self) -> list[Check]:
        """Runs, shape, dtype, values: up to the first that is wrong."""
        shape = self._scene.truth.shape
        try:
            labels: Any = self._segmenter.label(self._tile(self._scene.image))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            return [Check("runs", f"a tile of {shape} px ends with {why}")]
        wrong = find_fault(labels, (shape[0], shape[1]))
        checks = [Check("runs", None)]
        is_shaped = isinstance(labels, np.ndarray) and labels.shape == shape
        checks.append(Check("shape", None if is_shaped else wrong))
        if is_shaped:
            is_integer = np.issubdtype(labels.dtype, np.integer)
            checks.append(Check("dtype", None if is_integer else wrong))
            if is_integer:
                checks.append(Check("values", wrong))
        return checks

    def _share_labelled(self, labels: NDArray[np.integer[Any]], numbers: frozenset[int]) -> float:
        """Of these cells of the scene, those of which more than half is labelled."""
        truth = self._scene.truth.ravel()
        inside = np.bincount(truth, labels.ravel() > 0) / np.bincount(truth)
        return float(np.mean([inside[number] > 0.5 for number in sorted(numbers)]))

    def _whole(self) -> frozenset[int]:
        return frozenset(range(1, int(self._scene.truth.max()) + 1)) - self._scene.cut

    def _check_cells(self, labels: NDArray[np.integer[Any]]) -> Check:
        found = self._share_labelled(labels, self._whole())
        n_ids = len(np.unique(labels[labels > 0]))
        wrong = None
        if not found or n_ids < 2:
            wrong = (
                f"a tile with {len(self._whole())} cells of {self._diameter:g} px gives {n_ids} "
                "labels; the arguments options and diameter_px may help"
            )
        return Check("cells", wrong)

    def _check_determinism(self, labels: NDArray[np.integer[Any]]) -> Check:
        again = self._label(self._scene.image)
        n = int((again != labels).sum())
        wrong = f"the same tile gives other labels in {n} of {labels.size} px" if n else None
        if again.dtype != labels.dtype:
            wrong = f"the same tile gives {again.dtype} labels after {labels.dtype} ones"
        return Check("determinism", wrong)

    def _check_constant(self, name: str, value: int) -> Check:
        """A tile of zeros, which must have no labels, or of ones, which may."""
        image = np.full_like(self._scene.image, value)
        try:
            labels = self._label(image)
        except SegmenterError as error:
            return Check(name, f"a tile of {value} everywhere ends with: {error}")
        n = int((labels > 0).sum())
        wrong = None
        if value == 0 and n:
            wrong = f"a tile of 0 everywhere has labels in {n} of {labels.size} px; right is none"
        return Check(name, wrong)

    def _check_border(self, labels: NDArray[np.integer[Any]]) -> Check:
        inside = self._share_labelled(labels, self._whole())
        cut = self._share_labelled(labels, self._scene.cut)
        wrong = None
        if cut < _AS_OFTEN * inside:
            wrong = (
                f"{cut:.0%} of the cells that the border cuts are labelled, and {inside:.0%} of "
                "others; cells at the border must be kept, since only merging knows them"
            )
        return Check("border", wrong)

    def _check_memory(self) -> tuple[Check, float]:
        """Memory with a tile of a megapixel; the library and model are loaded by now."""
        image = self._scene.image
        repeats = [-(-_MEMORY_SIDE // length) for length in image.shape[1:]]
        tile = self._tile(np.tile(image, (1, *repeats))[:, :_MEMORY_SIDE, :_MEMORY_SIDE])
        per_px = measure_call(lambda: label_tile(self._segmenter, tile)) / _MEMORY_SIDE**2
        promised = self._segmenter.bytes_per_px
        wrong = None
        if per_px > _MEMORY_SLACK * promised:
            wrong = (
                f"a tile of a megapixel takes {per_px:.0f} bytes a pixel, and bytes_per_px says "
                f"{promised}; a function says more by an attribute of that name"
            )
        return Check("memory", wrong), round(per_px, 1)

    def _find_tile_dependence(self, labels: NDArray[np.integer[Any]]) -> tuple[str, ...]:
        """Whether cells two diameters from a smaller tile's border are others in the large one."""
        edge = round(1.3 * self._diameter)
        margin = round(_MARGIN * self._diameter)
        crop = np.s_[edge:-edge, edge:-edge]
        tile = self._label(np.ascontiguousarray(self._scene.image[:, *crop]))
        inner = np.s_[margin:-margin, margin:-margin]
        whole, part = labels[crop], tile
        outer = whole.copy()
        outer[inner] = 0
        numbers = np.setdiff1d(np.unique(whole[inner]), np.append(np.unique(outer), 0))
        n_other = n_far = 0
        for number in numbers:
            mine = whole == number
            ids, counts = np.unique(part[mine], return_counts=True)
            partner = ids[counts.argmax()]
            other = (part == partner) & (partner != 0)
            n_other += not np.array_equal(other, mine)
            n_far += 10 * (other & mine).sum() < 9 * (other | mine).sum()
        if not n_other:
            return ()
        return (
            f"tile-dependent: of {len(numbers)} cells more than {_MARGIN} diameters from the "
            f"border {n_other} are not the same in a larger tile, {n_far} by more than a tenth",
        )
