"""What `d2kd doctor` says about this machine: versions, devices, threads and memory."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import d2kd
from d2kd.threads import available_cpus

from .report import Report

__all__ = ["check_machine", "check_output", "total_memory", "version_problems"]

_NAMES = {
    "torch": "PyTorch",
    "numpy": "NumPy",
    "PIL": "Pillow",
    "cv2": "OpenCV",
    "detectron2": "Detectron2",
}


def check_machine(report: Report) -> bool:
    """Report on versions, devices, threads and memory.

    Returns:
        whether everything that d2kd imports can be imported.
    """
    versions: dict[str, str] = {}
    failed = False
    for name in ("torch", "torchvision", "numpy", "PIL", "cv2", "pycocotools", "detectron2"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
                if name == "detectron2":
                    importlib.import_module("detectron2.data.transforms")
                    importlib.import_module("detectron2.modeling")
        except Exception as error:  # a broken installation can raise anything
            failed = True
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            report.problem("versions", f"{_NAMES.get(name, name)} cannot be imported: {reason}")
        else:
            versions[name] = str(getattr(module, "__version__", "of unknown version"))
    shown = [f"Python {platform.python_version()}"]
    shown += [f"{_NAMES.get(n, n)} {v}" for n, v in versions.items() if n != "pycocotools"]
    report.ok("versions", ", ".join([*shown, f"d2kd {d2kd.__version__}"]))
    found = version_problems(
        versions, sys.version_info[:2], _has_pkg_resources(), _torchvision_needs()
    )
    for problem in found:
        report.problem("versions", problem)
    if sys.version_info >= (3, 14):
        report.warning("versions", "d2kd is tested with Python 3.11 and 3.13.")
    if failed:
        return False
    with report.check("devices"):
        _check_devices(report)
    with report.check("threads"):
        _check_threads(report)
    return True


def version_problems(
    versions: dict[str, str],
    python: tuple[int, int],
    pkg_resources: bool,
    torchvision_needs: str = "",
) -> list[str]:
    """Pairs of versions that are known not to work together.

    Args:
        versions: name of the imported module -> its version.
        python: major and minor version.
        pkg_resources: whether this module can be imported.
        torchvision_needs: the versions of PyTorch that the package torchvision asks for, such as
            "==2.4.1"; "" if that is unknown.

    Returns:
        one sentence for each pair, with the fix.
    """
    problems = []
    numbers = {
        name: tuple(int(x) for x in re.findall(r"\d+", version)[:2])
        for name, version in versions.items()
    }
    torch = numbers.get("torch", ())
    # pip installs another PyTorch into an environment without looking at torchvision again.
    specifier = SpecifierSet(torchvision_needs)
    if torch and not specifier.contains(versions["torch"], prereleases=True):
        problems.append(
            f"torchvision needs PyTorch{torchvision_needs}, found PyTorch {versions['torch']}. "
            f"Install them together: pip install torch torchvision"
        )
    if torch and torch < (2, 3) and numbers.get("numpy", (0,)) >= (2,):
        problems.append(
            f"PyTorch {versions['torch']} is compiled for NumPy 1, found NumPy "
            f"{versions['numpy']}. Install numpy<2 or PyTorch 2.3 or later."
        )
    if python >= (3, 13) and torch and torch < (2, 5):
        problems.append(f"Python 3.13 needs PyTorch 2.5 or later, found {versions['torch']}.")
    if "detectron2" in versions and not pkg_resources:
        problems.append(
            "Detectron2's model zoo imports pkg_resources, which setuptools 81 and later does not "
            "have. Install 'setuptools<81'."
        )
    return problems


def _torchvision_needs() -> str:
    """The versions of PyTorch that the installed torchvision asks for; "" if it does not say."""
    try:
        needs = [Requirement(line) for line in metadata.requires("torchvision") or ()]
    except metadata.PackageNotFoundError:
        return ""
    return next((str(need.specifier) for need in needs if need.name == "torch"), "")


def _has_pkg_resources() -> bool:
    return importlib.util.find_spec("pkg_resources") is not None


def _check_devices(report: Report) -> None:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gpus = ", ".join(f"{x.name} ({x.total_memory / 2**30:.0f} GiB)" for x in names)
        count = f"{len(names)} GPU{'s' if len(names) > 1 else ''}"
        report.ok("devices", f"{count}: {gpus}; CUDA {torch.version.cuda}")
    elif torch.version.cuda:
        report.warning(
            "devices",
            f"no GPU, although this PyTorch is for CUDA {torch.version.cuda}. If the machine has "
            f"one, check `nvidia-smi` and the driver. Without one, train.device is cpu.",
        )
    else:
        report.ok("devices", "no GPU, and a PyTorch for CPUs: train.device is cpu")


def check_output(report: Report, folder: str) -> None:
    """Report whether a training can write to its folder, by a file that is gone at once."""
    path = Path(folder).absolute()
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir():
        report.problem("output", f"train.output_dir: expected a folder, found a file: {existing}")
        return
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        report.problem(
            "output",
            f"train.output_dir: expected a folder that can be written, found {str(path)!r}: "
            f"{error.strerror} in {str(existing)!r}",
        )
        return
    free = shutil.disk_usage(existing).free / 2**30
    report.ok("output", f"{folder} can be written; {free:.0f} GiB are free")


def _check_threads(report: Report) -> None:
    import torch

    cpus, threads = available_cpus(), torch.get_num_threads()
    waits = {
        name: os.environ[name]
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
        if name in os.environ
    }
    memory = total_memory()
    text = f"{threads} of PyTorch; this process may use {cpus} CPU cores"
    text += f" and {memory / 2**30:.0f} GiB of memory" if memory else ""
    text += "".join(f"; {name}={value}" for name, value in waits.items())
    if threads > cpus:
        report.warning("threads", f"{text}. More threads than cores: set OMP_NUM_THREADS={cpus}.")
    else:
        report.ok("threads", text)
    load = os.getloadavg()[0]
    if load > cpus / 2:
        report.warning(
            "threads",
            f"the load is {load:.1f}: other work runs here, and the times below are too long",
        )


def total_memory() -> int | None:
    """Bytes of memory of this machine; None where /proc does not say it."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemTotal:\s*(\d+) kB", text)
    return int(found[1]) * 1024 if found else None
