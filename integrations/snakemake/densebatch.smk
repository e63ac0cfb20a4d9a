# Slides of a sample sheet to labels and tables of cells, a job for each slide.
#
# Include this file; it needs `config` with
#
#     densebatch:
#       sheet: samples.csv        # columns sample, slide, and any of `densebatch segment`'s sheet
#       results: results          # results/SAMPLE gets labels and table
#       options:                  # of `densebatch segment`, for all slides; the sheet's cells win
#         membrane: CD3,CD8
#         nuclei: DAPI
#         compartments: true      # without a value
#       threads: 8                # workers of a job
#       mem_mb: 16000             # memory of a job
#       allow_partial: false      # whether a slide some of whose tiles failed is a result
#
# Other rules take `densebatch_record(sample)` as input, which says that the slide is done, and read
# labels and table where `densebatch_labels(sample)` and `densebatch_table(sample)` say. These are no
# outputs to Snakemake, because it removes the outputs of a job that was interrupted, and a run that
# was interrupted goes on with what there is. Neither is the folder itself.
import csv
import re
import shlex
from pathlib import Path

_SETTINGS = config["densebatch"]
_RESULTS = _SETTINGS.get("results", "results")


def _read_sheet():
    with open(_SETTINGS["sheet"], newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return {row["sample"]: row for row in rows}


DENSEBATCH_SAMPLES = _read_sheet()


def densebatch_record(sample):
    return f"{_RESULTS}/{sample}.json"


def densebatch_labels(sample):
    return f"{_RESULTS}/{sample}/segmentation.ome.zarr/labels/cells"


def densebatch_table(sample):
    return f"{_RESULTS}/{sample}/cells.parquet"


def _slide(wildcards):
    """A path of the sheet is relative to the sheet's folder."""
    return str(Path(_SETTINGS["sheet"]).parent / DENSEBATCH_SAMPLES[wildcards.sample]["slide"])


def _options(wildcards):
    """As `densebatch segment --sheet` takes a row: paths may be relative to the sheet's folder."""
    options = dict(_SETTINGS.get("options", {}))
    for key, value in DENSEBATCH_SAMPLES[wildcards.sample].items():
        if key in ("sample", "slide") or not value:
            continue
        place = Path(_SETTINGS["sheet"]).parent / value
        is_path = key in ("model", "roi", "exclude", "panel") and place.exists()
        options[key] = place if is_path else value
        if key == "diameter":
            options.pop("diameter_um", None)
    options = [
        f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
        for key, value in options.items()
    ]
    if _SETTINGS.get("allow_partial"):
        options.append("--allow-partial")
    return shlex.join(options)


# Exit code 3, of a slide some of whose tiles failed, fails the job, and the next `snakemake` tries
# these tiles again; with `allow_partial` it is a result, and its record lists them.
rule densebatch_segment:
    input:
        slide=_slide,
    output:
        record=f"{_RESULTS}/{{sample}}.json",
    params:
        out=f"{_RESULTS}/{{sample}}",
        options=_options,
    log:
        f"{_RESULTS}/{{sample}}.log",
    wildcard_constraints:
        sample="|".join(map(re.escape, DENSEBATCH_SAMPLES)),
    threads: _SETTINGS.get("threads", 4)
    resources:
        mem_mb=_SETTINGS.get("mem_mb", 16000),
    shell:
        "densebatch segment {input.slide:q} {params.out:q} {params.options} --workers {threads}"
        " > {log:q} 2>&1 && cp {params.out:q}/run.json {output.record:q}"
