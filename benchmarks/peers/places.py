"""AP of stock Cellpose and of densebatch, same checkpoint, by where the image begins.

    python benchmarks/peers/places.py FIELDS --checkpoint MODEL --work SCRATCH

What a network that pools says of a cell depends on where in a patch the cell lies, by whole pixels
modulo 8: one comparison on one image is one draw. Here the mosaic of `run.py` is segmented again
and again, each time without a few of its first rows and columns, which puts the patches of both
programs elsewhere, and the differences in AP are averaged. Contestants and options are those of
`run.py`; the differences are to the first of `--only`.
"""

from __future__ import annotations

import json
import shlex
import sys
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mosaic import build_mosaic
from run import list_contestants, parse_options, run_once

from densebatch.benchmark import describe_versions
from densebatch.models import find_model

# rows and columns left out; each remainder of 8 comes once in both
PLACES = ((0, 0), (37, 59), (74, 30), (15, 97), (92, 4), (49, 87), (110, 122), (27, 45))
RESULT = Path(__file__).parent.parent / "results/peers-places.json"


def summarize(draws: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Mean AP of each contestant, and its mean difference to the first with standard error."""
    rows = []
    for name in names:
        values = [draw["ap"][name] for draw in draws]
        less = [draw["ap"][name] - draw["ap"][names[0]] for draw in draws]
        rows.append(
            {
                "name": name,
                "ap": round(mean(values), 4),
                "ap_least": min(values),
                "ap_most": max(values),
                "ap_less_first": round(mean(less), 4),
                "standard_error": round(stdev(less) / sqrt(len(less)), 4),
            }
        )
    return rows


def main() -> None:
    options = parse_options(__doc__, RESULT)
    options.only = options.only or ["stock", "densebatch"]
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    draws = []
    for place in PLACES:
        mosaic = build_mosaic(options.fields, options.work, options.side, options.crop, place)
        contestants = list_contestants(options, mosaic)
        rows = {
            contestant.name: run_once(contestant, mosaic, options.work / "run", options.threads)
            for contestant in contestants
        }
        draws.append(
            {
                "left_out": list(place),
                "truth_cells": int(mosaic.truth.max()),
                "ap": {name: rows[name]["ap"] for name in options.only},
                "cells": {name: rows[name]["cells"] for name in options.only},
            }
        )
        print(json.dumps(draws[-1]), flush=True)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "versions": describe_versions(),
        "fields": mosaic.fields,
        "checkpoint_sha256": find_model(options.checkpoint).sha256,
        "rows": summarize(draws, options.only),
        "draws": draws,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["rows"], indent=1))


if __name__ == "__main__":
    main()
