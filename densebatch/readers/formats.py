"""Formats that a library reads for us: how a file is known to be of one, and what is needed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from densebatch.readers.reader import Reader


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes
    ----------
    kind : short name, as in plans and records
    name : in words
    library : that reads it; "" if none is needed
    extra : of densebatch, that installs the library
    module : of this package, with a function `open_reader(path)`, or `(path, panel)`
    tried : whether it was tested on files that another program wrote; else on stand-ins alone
    suffix : of file names, lower case
    begins : bytes that files begin with, one of them; without any the suffix alone decides
    has_panel : whether a panel may name its channels
    """

    kind: str
    name: str
    library: str
    extra: str
    module: str
    tried: bool
    suffix: str
    begins: tuple[bytes, ...] = ()
    has_panel: bool = False

    def is_it(self, path: Path, start: bytes) -> bool:
        """Whether a file of that name and beginning is of this format."""
        if self.begins:
            return start.startswith(self.begins)
        return path.name.lower().endswith(self.suffix)

    def open(self, path: Path, panel: Path | None = None) -> Reader:
        """Open a file; its module and the library are imported now.

        Parameters
        ----------
        path
            Of the file.
        panel
            Names its channels, if the format has panels.
        """
        opener: Callable[..., Reader] = import_module(self.module).open_reader
        return opener(path, panel) if self.has_panel else opener(path)


_HERE = "densebatch.readers"
# fmt: off
FORMATS = (
    Format("czi", "Zeiss CZI", "", "", f"{_HERE}.czi", True, ".czi", (b"ZISRAWFILE",)),
    Format(
        "mcd", "MCD (imaging mass cytometry)", "readimc", "imc", f"{_HERE}.mcd", True, ".mcd",
        has_panel=True,
    ),
    Format(
        "imc-txt", "TXT (imaging mass cytometry)", "readimc", "imc", f"{_HERE}.imc_txt", True,
        ".txt", (b"Start_push\t",), has_panel=True,
    ),
    Format(
        "nd2", "Nikon ND2", "nd2", "nd2", f"{_HERE}.nd2", False, ".nd2",
        (b"\xda\xce\xbe\x0a", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ),
    Format("lif", "Leica LIF", "liffile", "lif", f"{_HERE}.lif", False, ".lif", (b"\x70\0\0\0",)),
    Format("mrxs", "3DHISTECH MRXS", "openslide", "mrxs", f"{_HERE}.mrxs", False, ".mrxs"),
    Format("vsi", "Olympus VSI", "slideio", "vsi", f"{_HERE}.vsi", False, ".vsi"),
)
# fmt: on


def find_format(path: Path, start: bytes) -> Format | None:
    """The format of a file, None if it is of none of these.

    Parameters
    ----------
    path
        For its suffix.
    start
        First bytes of the file, some dozen.
    """
    return next((format_ for format_ in FORMATS if format_.is_it(path, start)), None)
