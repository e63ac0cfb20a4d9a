"""What was found out about this machine, kept so that it is found out once.

One small file for each finding, named after a digest of all that it depends on, in the user's
cache folder (`DENSEBATCH_CACHE` says otherwise). A file that cannot be read, or is about something
else, counts as absent. Where the folder cannot be written, things are found out again each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from densebatch.base.files import cache_folder, write_atomic
from densebatch.base.log import log_event
from densebatch.base.machine import name_processor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

_LIBRARIES = ("densebatch", "torch", "openvino", "nncf", "numpy", "numba")


def identify_machine() -> dict[str, Any]:
    """Host, processor and cores: a home folder may be shared by different machines."""
    return {"host": platform.node(), "processor": name_processor(), "cores": os.cpu_count()}


def list_versions() -> dict[str, str]:
    """Versions of the libraries that backends are made of; what is absent is left out."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _locate(identity: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The file of a finding, and its whole identity: also the machine's and the libraries'."""
    whole = {**identity, "machine": identify_machine(), "versions": list_versions()}
    text = json.dumps(whole, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return cache_folder() / "engines" / f"{digest}.json", json.loads(text)


def recall(identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `remember` was given for this identity on this machine, None if nothing is known.

    Parameters
    ----------
    identity
        All that the finding depends on, besides the machine and the versions of libraries;
        serialisable.
    """
    try:
        path, whole = _locate(identity)
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: pathlib finds no home folder
        return None
    if not isinstance(document, dict) or document.get("identity") != whole:
        return None
    finding = document.get("finding")
    if not isinstance(finding, dict):
        return None
    log_event(log, "finding recalled", finding=identity.get("finding"), file=str(path))
    return finding


def remember(identity: Mapping[str, Any], finding: Mapping[str, Any]) -> None:
    """Keep a finding, if the cache folder can be written; see `recall`."""
    try:
        path, whole = _locate(identity)
        text = json.dumps({"identity": whole, "finding": finding}, indent=1, sort_keys=True)
        write_atomic(path, text.encode())
    except (OSError, RuntimeError) as error:
        log_event(
            log, "finding not kept", logging.WARNING, finding=identity.get("finding"),
            reason=str(error),
        )  # fmt: skip
        return
    log_event(log, "finding kept", finding=identity.get("finding"), file=str(path))
