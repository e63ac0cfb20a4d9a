"""Any program as a segmenter: it reads the tile as an OME-TIFF and writes a label image.

    command:"PROGRAM ... {image} ... {labels} ... {um_per_px}"

The program runs without a shell, in the folder and with the environment of the worker; the two
files lie in a temporary folder of the tile's own.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tifffile

from densebatch.base.errors import InputError, SegmenterError, describe_cause
from densebatch.base.settings import Positive  # noqa: TC001
from densebatch.segmenters.run import find_fault
from densebatch.segmenters.segmenter import Options, Segmenter, read_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from densebatch.segmenters.segmenter import SlideFacts, Tile

PREFIX = "command:"
PLACEHOLDERS = ("image", "labels", "um_per_px")
_GUESSED_BYTES_PER_PX = 200
"""What the program takes is unknown; a few planes of float64 and of labels."""
_NAME_LENGTH = 60
_PRINTED_BYTES, _PRINTED_LINES, _PRINTED_LENGTH = 4096, 5, 400


class CommandOptions(Options):
    """Options of a command.

    Attributes
    ----------
    timeout_s
        A tile that takes longer is given up, with all processes that the program started.
    dtype
        Of the image: `float32` from 0 to 1, or that range over all of `uint8` or `uint16`.
    labels
        What the program writes: TIFF, or NumPy's format.
    """

    timeout_s: Positive = 1800.0
    dtype: Literal["float32", "uint8", "uint16"] = "float32"
    labels: Literal["tif", "npy"] = "tif"


@dataclass(frozen=True)
class Command(Segmenter):
    """A program; see the module.

    Attributes
    ----------
    words
        The program and its arguments, with placeholders.
    """

    words: tuple[str, ...]

    def complete_options(self, given: Mapping[str, Any], slide: SlideFacts) -> dict[str, Any]:
        """See `Segmenter`; the program must be there as well."""
        del slide
        program = self.words[0]
        if shutil.which(program) is None:
            is_file = Path(program).is_file()
            wrong = "is not executable" if is_file else "is not found"
            raise InputError(
                f"segmenter {self.name}: the program {program!r} {wrong}; accepted is an "
                "executable of PATH, or its path"
            )
        return read_options(CommandOptions, self.name, given).model_dump()

    def label(self, tile: Tile) -> NDArray[Any]:
        """See `Segmenter`."""
        options = CommandOptions(**tile.options)
        # What a program of a container leaves may belong to somebody else and stay.
        with tempfile.TemporaryDirectory(prefix="densebatch-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            image = folder / "image.ome.tif"
            labels = folder / f"labels.{options.labels}"
            _write_image(image, tile, options.dtype)
            values = {"image": str(image), "labels": str(labels), "um_per_px": tile.um_per_px}
            words = [_replace(word, values, self.name) for word in self.words]
            printed = self._run(words, folder / "printed.txt", options.timeout_s)
            return self._read_labels(labels, tile.image.shape[1:], printed)

    def _run(self, words: list[str], log: Path, timeout_s: float) -> str:
        """Run the program and return the end of what it printed."""
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                # Also if there is a script and the program that should read it is not there.
                raise SegmenterError(
                    f"segmenter {self.name}: the program {words[0]!r} cannot be started "
                    f"({error.strerror}); accepted is an executable of PATH, or its path"
                ) from error
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise SegmenterError(
                f"segmenter {self.name}: did not end within {timeout_s:g} s (option timeout_s) and "
                f"was killed; {_end_of(log)}"
            ) from error
        finally:
            # Whatever it started ends with it, or tile after tile would leave more behind.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed = _end_of(log)
        if code < 0:
            raise SegmenterError(
                f"segmenter {self.name}: was killed by {_name_signal(-code)}; {printed}"
            )
        if code > 0:
            raise SegmenterError(f"segmenter {self.name}: ended with exit code {code}; {printed}")
        return printed

    def _read_labels(self, path: Path, shape: tuple[int, ...], printed: str) -> NDArray[Any]:
        if not path.is_file():  # np.save puts its suffix behind any other, as `{labels}.npy` does
            path = path.with_name(f"{path.name}.npy")
        if not path.is_file() or not path.stat().st_size:
            raise SegmenterError(f"segmenter {self.name}: wrote no {{labels}}; {printed}")
        try:
            labels: NDArray[Any] = (
                np.load(path, allow_pickle=False)
                if path.suffix == ".npy"
                else tifffile.imread(path)
            )
        except Exception as error:
            kind = "NumPy array" if path.suffix == ".npy" else "TIFF"
            raise SegmenterError(
                f"segmenter {self.name}: wrote labels that cannot be read as a {kind} "
                f"({describe_cause(error)}); {printed}"
            ) from error
        if labels.ndim > 2 and _long_axes(labels.shape) == _long_axes(shape):
            labels = labels.reshape(shape)
        wrong = find_fault(labels, (shape[0], shape[1]), "wrote")
        if wrong is not None:
            raise SegmenterError(f"segmenter {self.name}: {wrong}; {printed}")
        return labels


def _long_axes(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length > 1]


def parse_command(spec: str) -> Command:
    """The segmenter of `command:...`.

    Raises
    ------
    InputError
        If the text is no command, has placeholders that there are not, or lacks one that it needs.
    """
    text = spec.removeprefix(PREFIX).strip()
    try:
        words = shlex.split(text)
        if len(words) == 1:  # quoted as a whole
            words = shlex.split(words[0])
    except ValueError as error:
        raise InputError(f"segmenter {spec!r}: cannot be split into words ({error})") from error
    form = f'{PREFIX}"PROGRAM ... {{image}} ... {{labels}}"'
    if not words:
        raise InputError(f"segmenter {spec!r}: names no program; accepted is {form}")
    used = {name for word in words for name in re.findall(r"\{(\w+)\}", word)}
    unknown = sorted(used - set(PLACEHOLDERS))
    if unknown:
        raise InputError(
            f"segmenter {spec!r}: has {{{unknown[0]}}}; accepted are "
            + ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            + " (a script may hold what needs other braces)"
        )
    for name in ("image", "labels"):
        if name not in used:
            raise InputError(
                f"segmenter {spec!r}: has no {{{name}}}, where the path of the "
                f"{'label image' if name == 'labels' else 'tile'} goes; accepted is {form}"
            )
    short = " ".join(word.rstrip("/").rpartition("/")[2] for word in words)
    if len(short) > _NAME_LENGTH:
        short = short[: _NAME_LENGTH - 3] + "..."
    identity = hashlib.sha256("\0".join(words).encode())
    for word in words:
        identity.update(_digest_named(word).encode())
    return Command(
        spec, f"{PREFIX}{short!r}", identity.hexdigest(), {}, _GUESSED_BYTES_PER_PX, tuple(words)
    )


def _digest_named(word: str) -> str:
    """Digest of the file that a word names by a path; "" if it names none."""
    path = Path(word)
    try:
        if not path.is_file():
            return ""
        state = path.stat()
        return _digest_file(path, state.st_size, state.st_mtime_ns)
    except (OSError, ValueError):  # too long for a path, or not to be read
        return ""


@lru_cache(maxsize=64)
def _digest_file(path: Path, size: int, mtime_ns: int) -> str:
    del size, mtime_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(word: str, values: Mapping[str, Any], name: str) -> str:
    def fill(found: re.Match[str]) -> str:
        value = values[found[1]]
        if value is None:
            raise SegmenterError(
                f"segmenter {name}: takes {{um_per_px}} but the slide does not tell the size of "
                "its pixels"
            )
        return str(value)

    return re.sub(r"\{(\w+)\}", fill, word)


def _write_image(path: Path, tile: Tile, dtype: str) -> None:
    """The tile as OME-TIFF, with the names of its channels and the size of its pixels."""
    image: NDArray[Any] = tile.image
    if dtype != "float32":
        top = np.iinfo(dtype).max
        image = np.rint(np.clip(image, 0, 1) * top).astype(dtype)
    metadata: dict[str, Any] = {"axes": "CYX", "Channel": {"Name": list(tile.channels)}}
    if tile.um_per_px is not None:
        for axis in "XY":
            metadata[f"PhysicalSize{axis}"] = tile.um_per_px
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    tifffile.imwrite(path, image, ome=True, photometric="minisblack", metadata=metadata)


def _end_of(log: Path) -> str:
    """The end of what a program printed, in some words."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _PRINTED_BYTES, 0))
        text = file.read().decode(errors="replace")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    end = " / ".join(lines[-_PRINTED_LINES:])
    if not end:
        return "it printed nothing"
    return f"the end of what it printed: {end[-_PRINTED_LENGTH:]}"


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
