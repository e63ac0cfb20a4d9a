"""The shipped SLURM profile on a real SLURM of one node: walltime, preemption, the same bytes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.dask_processes import dask_processes
from tests.helpers.other_users import open_folder
from tests.helpers.run_files import (
    assert_same_output,
    output_bytes,
    read_report,
    run_command,
    simulate,
    write_tiff,
)

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "configs" / "clusters" / "slurm"
NODE = Path(__file__).parent / "one_node_slurm"
OPTIONS = ("--membrane", "CD3", "--model", "dense-tiny", "--tile", "64")
# Tasks are small here. With this they take longer, so that a run does not fit into a job.
SLOWER = """
import fnmatch, time
from pathlib import Path
_replace = Path.replace
def _slow(self, target):
    if fnmatch.fnmatch(str(target), "*/journal/trace-*"):
        time.sleep(6)
    return _replace(self, target)
Path.replace = _slow
"""

needed = ("slurmctld", "slurmd", "munged", "setpriv", "sbatch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.name != "posix" or os.geteuid() != 0 or not all(map(shutil.which, needed)),
        reason="needs root and Debian's packages slurm-wlm and munge",
    ),
]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "a.ome.tif", simulate(512, 640, seed=3), ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def alone(slide, tmp_path_factory):
    """The bytes of a run in one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    code, _, err = run_command("segment", slide, out, *OPTIONS, "--workers", 0)
    assert code == 0, err
    return output_bytes(out)


@pytest.fixture(scope="module")
def slurm():
    """Settings of commands that reach it."""
    with open_folder() as folder:  # munge's own user has to reach its socket
        try:
            subprocess.run(["bash", NODE, "start", folder], check=True, timeout=120)
            yield {"SLURM_CONF": str(folder / "slurm.conf")}
        finally:
            subprocess.run(["bash", NODE, "stop", folder], check=False, timeout=60)


class Job:
    """A run of one slide as a job, and what becomes of it."""

    def __init__(self, slurm, folder, slide):
        self.folder, self.slide, self.out = folder, slide, folder / "out"
        hook = folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(SLOWER)
        paths = [str(hook), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.env = {**os.environ, **slurm, "PYTHONPATH": os.pathsep.join(paths)}
        self.story = []
        self.start = time.monotonic()

    def call(self, *command):
        return subprocess.run(
            [str(part) for part in command], env=self.env, cwd=self.folder, check=True,
            capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip

    def submit(self, script, *options):
        size = ("--nodes=1", "--cpus-per-task=2", "--mem=0", "--output=job-%j.txt")
        told = self.call("sbatch", "--parsable", *size, *options, script, self.slide, self.out,
                         *OPTIONS)  # fmt: skip
        self.number = told.strip()
        self.tell(f"submitted {script.name} {' '.join(options)} as job {self.number}")

    def tell(self, text):
        after = time.monotonic() - self.start
        self.story.append(f"{after:4.0f} s  {text}; {self.count_kept()} tiles in the journal")

    def ask(self):
        facts = self.call("scontrol", "show", "job", self.number)
        return dict(re.findall(r"(\w+)=(\S+)", facts))

    def wait_for(self, *states, seconds=180):
        deadline = time.monotonic() + seconds
        while (facts := self.ask())["JobState"] not in states:
            assert time.monotonic() < deadline, (facts, self.log())
            time.sleep(0.5)
        self.tell(f"job {self.number} is {facts['JobState']}, restarts {facts['Restarts']}, "
                  f"exit code {facts['ExitCode']}")  # fmt: skip
        return facts

    def wait_for_tiles(self, number):
        deadline = time.monotonic() + 120
        while self.count_kept() < number:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def start_now(self):
        """SLURM lets a job that was queued again wait two minutes."""
        self.call("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    def log(self):
        texts = (path.read_text() for path in sorted(self.folder.glob("job-*.txt")))
        return "\n".join(texts)

    def count_kept(self):
        """Tiles that are traced, as the journal of the unfinished run has them."""
        return len(list(self.out.glob("work/*/journal/trace-*")))


def test_jobs_that_end_at_their_walltime_and_are_preempted_continue(slurm, slide, alone, tmp_path):
    job = Job(slurm, tmp_path, slide)
    script = PROFILES / "segment.sbatch"

    # Killed at its walltime: no signal comes before, and workers know nothing of it.
    text = re.sub(r"#SBATCH --signal.*\n", "", script.read_text())
    unaware = tmp_path / "unaware.sbatch"
    unaware.write_text(text.replace('if [ -n "$end" ]', "if false"))
    job.submit(unaware, "--time=1", "--no-requeue")
    job.wait_for("TIMEOUT")
    kept = job.count_kept()
    assert kept > 0

    # Submitted again, without a signal: workers end by their lifetime, and the run with them.
    silent = tmp_path / "silent.sbatch"
    silent.write_text(text)
    job.submit(silent, "--time=1", "--no-requeue")
    facts = job.wait_for("FAILED", "TIMEOUT", "COMPLETED")
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "130:0")
    assert "the same command continues" in job.log()
    assert job.count_kept() >= kept
    kept = job.count_kept()

    # Submitted again, and told of its walltime, up to a minute earlier than asked for, as SLURM has
    # it: it queues itself again.
    job.submit(script, "--time=2", "--signal=B:USR1@30")
    job.wait_for("RUNNING")
    facts = job.wait_for("PENDING")
    assert facts["Restarts"] == "1"
    assert job.log().count("the same command continues") >= 2
    assert job.count_kept() >= kept
    kept = job.count_kept()

    # Preempted by another job.
    job.start_now()
    job.wait_for("RUNNING")
    job.wait_for_tiles(kept + 4)
    job.call("sbatch", "-p", "high", "--exclusive", "--output=none", "--wrap", "sleep 1")
    job.tell("a job of a higher partition is submitted")
    job.wait_for("PENDING", "COMPLETING")
    facts = job.wait_for("PENDING")
    assert facts["Restarts"] == "2"
    assert re.search(r"STEP \S+ ON \S+ CANCELLED", job.log())
    assert job.count_kept() >= kept + 4

    for _ in range(6):
        job.start_now()
        job.wait_for("RUNNING", "COMPLETED")
        if job.wait_for("PENDING", "COMPLETED")["JobState"] == "COMPLETED":
            break
    assert job.ask()["JobState"] == "COMPLETED", job.log()
    assert_same_output(job.out, alone)
    assert read_report(job.out)["failed_tiles"] == []
    job.tell("labels and table have the bytes of a run in one process")
    (tmp_path / "story.txt").write_text("\n".join([*job.story, "", job.log()]))


def test_workers_of_another_job_join_a_scheduler(slurm, slide, alone, tmp_path):
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, **slurm, "PYTHONPATH": paths}
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler()
        file = tmp_path / "scheduler.json"
        subprocess.run(
            ["sbatch", "--array=1-2", "--cpus-per-task=1", "--mem=0", "--time=10",
             f"--output={tmp_path}/workers-%a.txt", PROFILES / "workers.sbatch", file],
            check=True, env=env, capture_output=True,
        )  # fmt: skip
        code, _, err = run_command("segment", slide, tmp_path / "out", *OPTIONS,
                                   "--scheduler-file", file)  # fmt: skip
        assert code == 0, err
    assert_same_output(tmp_path / "out", alone)
    subprocess.run(["scancel", "--user", "root"], check=True, env=env)


def test_workers_that_dask_jobqueue_asks_for(slurm, slide, alone, tmp_path):
    pytest.importorskip("dask_jobqueue", reason="needs the extra cluster")
    text = (ROOT / "configs" / "clusters" / "slurm-jobqueue" / "segment.py").read_text()
    small = {'"cores": 8': '"cores": 1', '"processes": 8': '"processes": 1', '"32GB"': '"3GB"',
             '"job_extra_directives": []': '"job_extra_directives": ["--mem=0"]',
             "MOST_JOBS = 20": "MOST_JOBS = 2"}  # fmt: skip
    for old, new in small.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "segment.py").write_text(text)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "segment.py", slide, "out", *OPTIONS], cwd=tmp_path, timeout=300,
        capture_output=True, text=True, env={**os.environ, **slurm, "PYTHONPATH": paths},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert_same_output(tmp_path / "out", alone)
