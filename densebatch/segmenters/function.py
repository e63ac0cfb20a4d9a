"""Functions of other packages and of a user's own modules as segmenters.

A function is called as `f(image, um_per_px=..., options=...)` with the pixels, pixel size and
options of a `Tile`, and returns labels `(y, x)`. Its options are what the user gave, and `levels`:
Otsu's threshold over the tissue of the slide for each plane, 0 to 1. A function that takes much
memory says so by an attribute `bytes_per_px`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError, describe_cause
from densebatch.segmenters.segmenter import Segmenter, keep_as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from densebatch.segmenters.segmenter import SlideFacts, Tile

_GUESSED_BYTES_PER_PX = 200
"""Of a function that says nothing about it; a few planes of float64 and of labels."""


@dataclass(frozen=True)
class FunctionSegmenter(Segmenter):
    """A function; see the module."""

    call: Callable[..., Any] = field(repr=False)

    def complete_options(self, given: Mapping[str, Any], slide: SlideFacts) -> dict[str, Any]:
        """What the user gave, `levels` and `diameter_px`; see `Segmenter`."""
        known = {"levels": list(slide.levels), "diameter_px": slide.diameter_px}
        return keep_as_json(self.name, {**known, **given})

    def label(self, tile: Tile) -> NDArray[Any]:
        """See `Segmenter`."""
        # A copy of all of it, or what a function writes into options would reach the next tile.
        options = deepcopy(dict(tile.options))
        labels: NDArray[Any] = self.call(tile.image, um_per_px=tile.um_per_px, options=options)
        return labels


def import_segmenter(spec: str) -> Segmenter:
    """The segmenter `module:function`, where `module:object` may be a `Segmenter` as well.

    Raises
    ------
    InputError
        If there is no such module or object, importing fails, or the object is something else.
    """
    module_name, _, path = spec.partition(":")
    names = [*module_name.split("."), *path.split(".")]
    if not all(name.isidentifier() for name in names):
        raise InputError(f"segmenter {spec!r}: accepted is module:function")
    try:
        found = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        found = None
    except (Exception, SystemExit) as error:
        raise _explain_import(spec, error) from error
    if found is None:
        raise InputError(
            f"segmenter {spec!r}: there is no module {module_name!r}; accepted is one that Python "
            "finds here and on workers, such as a file in a folder of PYTHONPATH (PYTHONPATH=$PWD "
            "for this one)"
        )
    try:
        found_object: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _explain_import(spec, error) from error
    for name in path.split("."):
        if not hasattr(found_object, name):
            raise InputError(f"segmenter {spec!r}: the module {module_name} has no {path!r}")
        found_object = getattr(found_object, name)
    return wrap(found_object, spec, path, module_name)


def _explain_import(spec: str, error: BaseException) -> InputError:
    return InputError(f"segmenter {spec!r}: cannot be imported ({describe_cause(error)})")


def wrap(found: object, spec: str, name: str, module_name: str) -> Segmenter:
    """A function, a `Segmenter` or a class of them, as a segmenter that is known by a spec.

    Raises
    ------
    InputError
        If it is something else.
    """
    if isinstance(found, type) and issubclass(found, Segmenter):
        try:
            found = found()  # type: ignore[call-arg]
        except (Exception, SystemExit) as error:
            raise InputError(
                f"segmenter {spec!r}: the class cannot be called without arguments "
                f"({describe_cause(error)}); accepted are those that can, an object or a function"
            ) from error
    packages = _find_packages(module_name)
    source = _digest_source(module_name, is_installed=bool(packages))
    if isinstance(found, Segmenter):
        identity = hashlib.sha256(f"{found.identity}\n{source}".encode()).hexdigest()
        packages |= found.packages
        try:
            return replace(found, spec=spec, identity=identity, packages=packages)
        except TypeError as error:
            raise InputError(
                f"segmenter {spec!r}: a {type(found).__name__} takes other arguments than it has "
                f"attributes ({error}); accepted is a frozen dataclass"
            ) from error
    if isinstance(found, type) or not callable(found):
        raise InputError(
            f"segmenter {spec!r}: is a {type(found).__name__}; accepted is a function, called as "
            "f(image, um_per_px=..., options=...), or a densebatch.segmenters.segmenter.Segmenter"
        )
    if not _takes_contract(found):
        raise InputError(
            f"segmenter {spec!r}: takes {inspect.signature(found)}; accepted is a function that is "
            "called as f(image, um_per_px=..., options=...)"
        )
    bytes_per_px = getattr(found, "bytes_per_px", _GUESSED_BYTES_PER_PX)
    return FunctionSegmenter(spec, name, source, packages, bytes_per_px, found)


def _takes_contract(function: Callable[..., Any]) -> bool:
    """Whether a function can be called as the contract says, as far as its signature tells."""
    try:
        inspect.signature(function).bind(None, um_per_px=None, options=None)
    except TypeError:
        return False
    except ValueError:  # of compiled functions, which have no signature
        return True
    return True


def _find_packages(module_name: str) -> dict[str, str]:
    """Installed distributions that bring the module's package, and their versions."""
    top = module_name.partition(".")[0]
    return {name: version(name) for name in sorted(set(packages_distributions().get(top, ())))}


def _digest_source(module_name: str, *, is_installed: bool) -> str:
    """Digest of the module's file, and of all Python files of its package, installed ones aside."""
    module, top = sys.modules[module_name], sys.modules[module_name.partition(".")[0]]
    file = getattr(module, "__file__", None)
    files = [Path(file)] if file else []
    if not is_installed:
        for folder in getattr(top, "__path__", ()):
            files += sorted(Path(folder).rglob("*.py"))
    found = hashlib.sha256(module_name.encode())
    for each in files:
        found.update(hashlib.sha256(each.read_bytes()).digest())
    return found.hexdigest()
