"""What `densebatch info` and `densebatch plan` read of a slide of 40 GB, and how long they take.

    python -m benchmarks.large_files -o large-files.json    # some minutes
    python -m benchmarks.large_files --quick                # small, to see that it runs

A slide of 8 channels of 50 000 by 50 000 px of 16 bits, as a tiled OME-TIFF and as OME-Zarr in
shards with lower resolutions. Some tissue is simulated, and all else is not stored
(holes of the file, chunks that are absent), so that a disk need not hold it. Each command is run by
itself; what it reads is what its system calls give, less what the same command reads of a slide of
one tile, which is its imports, the model and the trial of the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from densebatch.base.geometry import Region
from densebatch.simulation.tissue import Tissue, render

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint16]

N_CHANNELS, TILE, SHARD = 8, 512, 4096
N_TISSUE = 8  # tiles along each side of the tissue
_PROGRAM = """
import sys
from densebatch.base.process import count_io, measure_peak_mb
from densebatch.cli.main import cli
try:
    cli(sys.argv[1:], standalone_mode=False)
finally:
    print(count_io()[0], measure_peak_mb(), file=sys.stderr)
"""
_XML = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{side}" SizeY="{side}" '
    'SizeC="{n}" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5">{channels}'
    "<TiffData/></Pixels></Image></OME>"
)


def write_tiff(path: Path, side: int, tissue: Pixels) -> None:
    """An OME-TIFF whose tiles lie one after another, channel by channel, most of them in holes.

    Parameters
    ----------
    path
        Of the file.
    side
        Rows and columns, more than one tile.
    tissue
        Whole tiles of the first rows and columns, of all channels.
    """
    n = -(-side // TILE)
    n_bytes = 2 * TILE**2
    channels = "".join(
        f'<Channel ID="Channel:0:{c}" Name="marker {c}" SamplesPerPixel="1"/>'
        for c in range(N_CHANNELS)
    )
    xml = _XML.format(side=side, n=N_CHANNELS, channels=channels).encode() + b"\0"
    xml += bytes(-len(xml) % 8)
    pages = 16 + np.arange(N_CHANNELS + 1) * (16 + 20 * 11 + 16 * n**2 + len(xml))
    first = -(-int(pages[-1]) // 4096) * 4096
    with path.open("wb") as file:
        file.write(struct.pack("<2s3HQ", b"II", 43, 8, 0, 16))
        for c in range(N_CHANNELS):
            offsets = int(pages[c]) + 16 + 20 * 11
            tags = (
                *((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 16), (259, 3, 1, 1)),
                *((262, 3, 1, 1), (270, 2, len(xml), offsets + 16 * n**2), (277, 3, 1, 1)),
                *((322, 4, 1, TILE), (323, 4, 1, TILE), (324, 16, n**2, offsets)),
                (325, 16, n**2, offsets + 8 * n**2),
            )
            file.write(struct.pack("<Q", len(tags)))
            file.writelines(struct.pack("<HHQQ", *tag) for tag in tags)
            file.write(struct.pack("<Q", int(pages[c + 1]) if c + 1 < N_CHANNELS else 0))
            places = first + n_bytes * np.arange(c * n**2, (c + 1) * n**2)
            file.write(places.astype("<u8").tobytes() + np.full(n**2, n_bytes, "<u8").tobytes())
            file.write(xml)
        for c, row, col in np.ndindex(N_CHANNELS, *(k // TILE for k in tissue.shape)):
            file.seek(first + (c * n**2 + row * n + col) * n_bytes)
            rows, cols = (slice(k * TILE, (k + 1) * TILE) for k in (row, col))
            file.write(np.ascontiguousarray(tissue[rows, cols]).tobytes())
        file.truncate(first + N_CHANNELS * n**2 * n_bytes)


def write_zarr(path: Path, side: int, tissue: Pixels) -> None:
    """An OME-Zarr 0.5 in shards of which those with tissue are there, with four resolutions."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    datasets = []
    for level in range(4):
        step = 2**level
        array = group.create_array(
            str(level), shape=(N_CHANNELS, *(-(-side // step),) * 2), dtype="uint16",
            chunks=(1, TILE, TILE), shards=(1, SHARD, SHARD),
        )  # fmt: skip
        part = tissue[::step, ::step]
        array[:, : part.shape[0], : part.shape[1]] = np.broadcast_to(
            part, (N_CHANNELS, *part.shape)
        )
        scale = {"type": "scale", "scale": [1, 0.5 * step, 0.5 * step]}
        datasets.append({"path": str(level), "coordinateTransformations": [scale]})
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    labels = [{"label": f"marker {c}"} for c in range(N_CHANNELS)]
    about: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets}],
        "omero": {"channels": labels},
    }
    group.attrs["ome"] = about


def run(command: str, slide: Path, folder: Path) -> dict[str, Any]:
    """Run a command by itself; seconds, bytes read, largest memory, and what it printed."""
    options = [] if command == "info" else ["--membrane", "marker 0", "--image", "none"]
    out = [] if command == "info" else [str(folder / "out")]
    report = folder / "report.json"
    json_to = ["--json", str(report)] if command == "info" else ["--json"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, command, str(slide), *out, *options, *json_to],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    read, peak_mb = map(int, done.stderr.split()[-2:])
    return {"seconds": round(seconds, 2), "bytes_read": read, "peak_mb": peak_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="a slide of 4096 by 4096 px")
    given = parser.parse_args()
    side = 4096 if given.quick else 50_000
    side_tissue = TILE * (2 if given.quick else N_TISSUE)
    field = Region(0, 0, side_tissue, side_tissue)
    tissue = render(Tissue(side_tissue, side_tissue, seed=1), field)[0][0]
    record: dict[str, Any] = {
        "quick": given.quick, "side_px": side, "channels": N_CHANNELS, "cores": os.cpu_count(),
        "densebatch": version("densebatch"), "files": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, write, suffix in (
            ("OME-TIFF, tiles as they are", write_tiff, "ome.tif"),
            ("OME-Zarr 0.5, shards", write_zarr, "ome.zarr"),
        ):
            small, large = folder / f"small.{suffix}", folder / f"large.{suffix}"
            write(small, 2 * TILE, tissue[: 2 * TILE, : 2 * TILE])
            write(large, side, tissue)
            told: dict[str, Any] = {"bytes_of_a_channel": 2 * side**2}
            for command in ("info", "plan"):
                before, found = run(command, small, folder), run(command, large, folder)
                found["bytes_read"] -= before["bytes_read"]
                found["seconds_of_a_small_slide"] = before["seconds"]
                told[command] = found
                print(f"{kind}, {command}: {found}", flush=True)
            record["files"][kind] = told
    if given.output is not None:
        given.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
