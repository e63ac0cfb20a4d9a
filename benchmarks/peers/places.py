"""AP of densebatch and its peers, same checkpoint, by where the image begins.

    python benchmarks/peers/places.py FIELDS --checkpoint MODEL --work SCRATCH

What the network says of a cell depends on where in its patch the cell lies, so one comparison on
one image is one draw. Here a window of one size, so that nobody's patches change theirs, is moved
over the mosaic of `run.py`, which puts all tissue elsewhere in everybody's patches, and the
differences in AP to the first of `--only` are averaged. The standard error is that over
the places: the tissue is the same, but for what the window leaves out at the mosaic's edges.
"""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mosaic import join_fields, write_mosaic
from run import begin_record, build_parser, list_contestants, read_options, run_once

# where the window begins, in px of the mosaic; each remainder of 8 comes once in both
PLACES = ((0, 0), (37, 59), (74, 30), (15, 97), (92, 4), (49, 87), (110, 122), (27, 45))
LEFT_OUT = (112, 128)  # rows and columns that the mosaic has and the window has not
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
                "ap_least_most": [min(values), max(values)],
                "ap_less_first": round(mean(less), 4),
                "standard_error": round(stdev(less) / sqrt(len(less)), 4),
                "less_least_most": [round(min(less), 4), round(max(less), 4)],
            }
        )
    return rows


def main() -> None:
    options = read_options(build_parser(__doc__, RESULT))
    options.only = options.only or ["stock", "densebatch"]
    joined = join_fields(options.fields, options.side)
    height, width = (n - less for n, less in zip(joined.truth.shape, LEFT_OUT, strict=True))
    record = begin_record(options, joined.fields, (height, width))
    draws: list[dict[str, Any]] = []
    for y, x in PLACES:
        mosaic = write_mosaic(joined.cut(y, x, height, width), options.work)
        draw: dict[str, Any] = {"begins": [y, x], "truth_cells": int(mosaic.truth.max())}
        draw |= {"ap": {}, "cells": {}, "cut_pairs": {}}
        for contestant in list_contestants(options, mosaic):
            row = run_once(contestant, mosaic, options.work / "run", options.threads)
            for key in ("ap", "cells", "cut_pairs"):
                draw[key][contestant.name] = row[key]
        draws.append(draw)
        print(json.dumps(draw), flush=True)
    record |= {"rows": summarize(draws, options.only), "draws": draws}
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["rows"], indent=1))


if __name__ == "__main__":
    main()
