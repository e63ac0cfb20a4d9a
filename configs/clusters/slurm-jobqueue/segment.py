"""Workers as SLURM jobs of their own, which come and go while a run goes on (dask-jobqueue).

    pip install "densebatch[cluster]"
    python segment.py slide.ome.zarr out --membrane CD3 --nuclei DAPI

What follows the script's name is what `densebatch segment` takes. The script itself needs little:
run it where it may stay for as long as the run takes, as in a small job of its own. Other queues:
replace SLURMCluster by LSFCluster, PBSCluster or SGECluster.
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from dask_jobqueue import SLURMCluster

# Change: partition, size and time of one job of workers, and how many there may be at once.
JOB = {
    "queue": None,
    "account": None,
    "cores": 8,
    "processes": 8,  # workers of a job; one for each processor, or one where it has a GPU
    "memory": "32GB",
    "walltime": "01:00:00",
    "job_extra_directives": [],  # ["--gpus=1"]
    "job_script_prologue": [
        # "source /path/on/shared/storage/venv/bin/activate",
        "export MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=33554432",
        "export MALLOC_TRIM_THRESHOLD_=268435456",
    ],
}
MOST_JOBS = 20
# Workers end three minutes before their job does, not all at once, and give back what they have;
# SLURM is asked for new jobs as long as there are tasks.
LIFETIME = ["--lifetime", "57m", "--lifetime-stagger", "1m"]
LEAVE = ["--preload", "densebatch.workers.leave", "--preload-nanny", "densebatch.workers.leave"]


def main() -> int:
    """Run `densebatch segment` on a cluster that grows and shrinks; its exit code."""
    with (
        SLURMCluster(worker_extra_args=[*LIFETIME, *LEAVE], **JOB) as cluster,
        tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="densebatch-") as folder,
    ):
        cluster.adapt(minimum_jobs=1, maximum_jobs=MOST_JOBS)
        file = Path(folder) / "scheduler.json"
        file.write_text(f'{{"address": "{cluster.scheduler_address}"}}')
        run = subprocess.Popen(
            ["densebatch", "segment", "--scheduler-file", str(file), *sys.argv[1:]]
        )
        # densebatch finishes the tasks under way and ends with exit code 130.
        signal.signal(signal.SIGTERM, lambda *_: run.terminate())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches it as well
        return run.wait()


if __name__ == "__main__":
    sys.exit(main())
