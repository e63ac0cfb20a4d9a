"""Published Cellpose networks by name: where they come from, and the copies in the cache.

Nobody publishes digests of these files, so the first fetch pins what came: its SHA-256 is kept
beside it (`NAME.lock.json`), and every later use and fetch must find the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from densebatch.base.download import DownloadError, download, list_record
from densebatch.base.errors import InputError
from densebatch.base.files import cache_folder, digest, no_empty_folders, write_atomic
from densebatch.base.log import log_event
from densebatch.models.sam_sizes import WHY_NO_DINO

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_CELLPOSE_URL = "https://www.cellpose.org/models/"
_CELLPOSE_SAM_URL = "https://huggingface.co/mouseland/cellpose-sam/resolve/main/"

REFUSED = dict.fromkeys(("cpdino", "cpdino-vitb"), WHY_NO_DINO)
"""Published networks that cannot be used here, and why."""


@dataclass(frozen=True)
class KnownModel:
    """A published network.

    Attributes
    ----------
    name : how the user names it
    url : of its file; of a record `doi:PREFIX/RECORD`, the only file in it
    diameter_px : cell diameter at the network's scale, pixels; None if the file states it
    nuclei : whether the network was trained with a nuclear channel
    kind : of network, see `models.flow_models`
    """

    name: str
    url: str
    diameter_px: float | None = 30.0
    nuclei: bool = True
    kind: str = "cpnet"


class Pin(BaseModel):
    """What came at the first fetch of a model; the content of its lock file.

    Attributes
    ----------
    name : of the model
    url : it came from
    sha256 : of the file
    n_bytes : size of the file
    fetched : when, UTC, ISO 8601
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    url: str
    sha256: str
    n_bytes: int
    fetched: str


def _list_known() -> dict[str, KnownModel]:
    """Every CPnet of Cellpose 3.1.1.3's list, the one of Han et al. 2024, and Cellpose-SAM.

    Names, file names and diameters are those of `cellpose/models.py` (`MODEL_NAMES`, `model_path`,
    `get_model_params`), of Cellpose-SAM in 4.2.1.1.
    """
    plain = ["cyto3", "cyto2_cp3", "tissuenet_cp3", "livecell_cp3", "yeast_PhC_cp3"]
    plain += ["yeast_BF_cp3", "bact_phase_cp3", "bact_fluor_cp3", "deepbacs_cp3"]
    plain += ["neurips_cellpose_default", "neurips_grayscale_cyto2", "CP", "CPx"]
    plain += ["TN1", "TN2", "TN3", "LC1", "LC2", "LC3", "LC4"]
    models = [
        KnownModel("cyto", f"{_CELLPOSE_URL}cytotorch_0"),
        KnownModel("cyto2", f"{_CELLPOSE_URL}cyto2torch_0"),
        # trained on the nuclear channel alone; the second input was zeros
        KnownModel("nuclei", f"{_CELLPOSE_URL}nucleitorch_0", diameter_px=17.0, nuclei=False),
        *(KnownModel(name, _CELLPOSE_URL + name) for name in plain),
        # trained on images of one marker
        KnownModel("train7", "doi:10.5281/zenodo.10668824", diameter_px=None, nuclei=False),
        *(
            KnownModel(name, _CELLPOSE_SAM_URL + name, kind="cellpose-sam")
            for name in ("cpsam_v2", "cpsam")
        ),
    ]
    return {model.name: model for model in models}


KNOWN = _list_known()


def models_folder() -> Path:
    """Folder of the fetched models, in the cache folder."""
    return cache_folder() / "models"


def file_of(name: str) -> Path:
    """Path of a model's file in the cache, whether it is there or not."""
    return models_folder() / name


def _lock_of(name: str) -> Path:
    return models_folder() / f"{name}.lock.json"


def read_pin(name: str) -> Pin | None:
    """Read what came at the first fetch of a model; None if it was never fetched.

    Raises
    ------
    InputError
        If the lock file is damaged.
    """
    lock = _lock_of(name)
    try:
        pin = Pin.model_validate_json(lock.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{lock}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise InputError(
            f"{lock}: is not a lock file; remove it and fetch {name!r} again"
        ) from error
    if pin.name != name:
        raise InputError(f"{lock}: is not the lock file of {name!r}; remove it and fetch it again")
    return pin


def check_pinned(pin: Pin, sha256: str, where: str) -> None:
    """Refuse a file whose digest is not the pinned one.

    Parameters
    ----------
    pin
        Of the model.
    sha256
        Of the file, in hexadecimal.
    where
        The file's path or address, for messages.

    Raises
    ------
    InputError
        If they differ.
    """
    if sha256 != pin.sha256:
        raise InputError(
            f"{where}: has sha256 {sha256}, but {pin.name!r} is pinned to {pin.sha256} (fetched "
            f"{pin.fetched} from {pin.url}); to take another file for it, remove "
            f"{file_of(pin.name)} and {_lock_of(pin.name)}, and fetch it again"
        )


def locate(name: str) -> tuple[Path, Pin]:
    """Find the file and pin of a fetched model; the caller compares digests (`check_pinned`).

    Returns
    -------
    path
        In the cache.
    pin
        What came at the first fetch.

    Raises
    ------
    InputError
        If the model was not fetched; only `fetch` downloads anything.
    """
    path, pin = file_of(name), read_pin(name)
    if pin is None or not path.is_file():
        hint = f", or name the file here ./{name}" if Path(name).is_file() else ""
        raise InputError(
            f"model {name!r} has not been fetched to {path.parent}; "
            f"fetch it with `densebatch models fetch {name}`{hint}"
        )
    return path, pin


def fetch(name: str, accept: Callable[[Path], None], url: str | None = None) -> tuple[Pin, bool]:
    """Fetch a known model into the cache, or find it there unchanged.

    Parameters
    ----------
    name
        One of `KNOWN`.
    accept
        Called with the path of what came, before anything is kept; raises `InputError` to refuse.
    url
        Address of the file, instead of the published one: a mirror's. A pinned digest holds there
        too.

    Returns
    -------
    tuple of Pin and bool
        The pin, and whether the file was downloaded now.

    Raises
    ------
    InputError
        If the name is unknown, the file cannot be fetched, is refused, or is not the one pinned.
    """
    if name in REFUSED:
        raise InputError(f"model {name!r} cannot be used: {REFUSED[name]}")
    if name not in KNOWN:
        raise InputError(f"model {name!r} is not known; accepted are {', '.join(KNOWN)}")
    path, old = file_of(name), read_pin(name)
    if old is not None and path.is_file():
        check_pinned(old, digest(path), str(path))
        return old, False
    address, stated = (url, None) if url is not None else _resolve(KNOWN[name])
    with no_empty_folders([path.parent]):
        return _download(path, old, address, stated, accept), True


def _download(
    path: Path, old: Pin | None, address: str, stated: str | None, accept: Callable[[Path], None]
) -> Pin:
    name, pins = path.name, []

    def check(partial: Path) -> None:
        sha256 = digest(partial)
        if stated is not None:
            _check_stated(partial, stated, address)
        if old is not None:
            check_pinned(old, sha256, address)
        try:
            accept(partial)
        except InputError as error:
            reason = str(error).replace(str(partial), name)
            raise InputError(f"{address}: is refused, and nothing is kept ({reason})") from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pin = old or Pin(
            name=name, url=address, sha256=sha256, n_bytes=partial.stat().st_size, fetched=now
        )
        # The pin is written before the file gets its name, so that no file is without one.
        write_atomic(_lock_of(name), (pin.model_dump_json(indent=1) + "\n").encode())
        pins.append(pin)

    try:
        download(address, path, check)
    except OSError as error:
        raise DownloadError(f"{_lock_of(name)}: cannot be written ({error.strerror})") from error
    pin = pins[0]
    log_event(log, "model fetched", model=name, url=address, sha256=pin.sha256, n_bytes=pin.n_bytes)
    return pin


def _resolve(model: KnownModel) -> tuple[str, str | None]:
    """Find the address of a model's file and the digest that its Zenodo entry states, if any.

    The digest is of the form `md5:...`.
    """
    if not model.url.startswith("doi:"):
        return model.url, None
    record = list_record(model.url.removeprefix("doi:"))
    if len(record) != 1:
        raise DownloadError(
            f"{model.url}: holds {len(record)} files ({', '.join(sorted(record))}); "
            f"name the network's with --url {model.url}/FILE"
        )
    ((name, stated),) = record.items()
    return f"{model.url}/{name}", stated


def _check_stated(path: Path, stated: str, address: str) -> None:
    kind, _, expected = stated.rpartition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind or "sha256").hexdigest()
    if found != expected.lower():
        raise DownloadError(f"{address}: came with {kind} {found}, its record states {expected}")
