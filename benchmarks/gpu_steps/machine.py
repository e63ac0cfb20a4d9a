"""Does the GPU work here: a first trial, and the tests that need one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from densebatch.studies.benchmark_record import describe_machine, describe_versions
from gpu_steps.runner import ROOT
from gpu_steps.tell import tell, timed

if TYPE_CHECKING:
    import argparse

_GPU_TESTS = (
    "tests/engines/test_cuda.py",
    "tests/tracing/test_device.py",
    "tests/run/test_gpu.py",
)


def check(options: argparse.Namespace) -> None:
    """Does CUDA compute, and record graphs, with what is installed; what is there."""
    tell(machine=describe_machine(), versions=describe_versions())
    tell(triton=_find_version("triton"), compiler=shutil.which("cc") or shutil.which("gcc"))
    with timed("import_torch_s"):
        import torch
    tell(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    if options.device == "cpu":
        tell(headline="on a CPU: numbers are of no worth")
        return
    if not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, sees no GPU"
        )
    with timed("context_s"):
        torch.zeros(1, device="cuda")
    properties = torch.cuda.get_device_properties(0)
    tell(gpu=properties.name, gpu_mb=properties.total_memory // 10**6,
         capability=f"{properties.major}.{properties.minor}")  # fmt: skip
    torch.manual_seed(0)
    image, conv = torch.randn(4, 32, 224, 224), torch.nn.Conv2d(32, 32, 3, padding=1)
    expected = conv(image)
    on_gpu, conv = image.cuda(), conv.cuda()
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        conv(on_gpu)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = conv(on_gpu)
        graph.replay()
        torch.cuda.synchronize()
        difference = float((found.cpu() - expected).abs().max())
    tell(largest_difference=difference)
    if not difference < 1e-4:
        raise SystemExit(f"a convolution differs from a CPU's by {difference}")
    tell(headline=f"{properties.name}, torch {torch.__version__}, CUDA {torch.version.cuda}")


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_tests(options: argparse.Namespace) -> None:
    """The tests that need a GPU; elsewhere they are skipped, and say so."""
    junit = options.work / "tests.xml"
    # what libraries warn of on a new GPU is no failure of ours
    command = [sys.executable, "-m", "pytest", *_GPU_TESTS, "-k", "gpu or cuda", "-W", "default",
               "-q", "-p", "no:cacheprovider", f"--junitxml={junit}"]  # fmt: skip
    code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode
    suite = next(ET.parse(junit).getroot().iter("testsuite")).attrib
    counts = {name: int(suite[name]) for name in ("tests", "skipped", "failures", "errors")}
    ran = counts["tests"] - counts["skipped"]
    tell(**counts, headline=f"{ran} ran, {counts['skipped']} skipped")
    if code:
        raise SystemExit(f"pytest ended with {code}")
    if options.device == "cuda" and not ran:
        raise SystemExit("no test ran")
