"""Choose the number of threads and their wait policy before PyTorch is imported.

OpenMP reads these settings once, when PyTorch loads it. Two of its defaults hurt where a training
does not have the machine for itself:

- It starts one thread for each CPU, and knows nothing of a container's CPU quota. A process that
  may use 2 of 64 CPUs then runs 64 threads, which the kernel stops most of the time.
- Between two operations, its threads spin: they wait in a loop that uses the CPU. With other
  processes on the same cores, the spinning threads take the time of the threads that work. This
  made a training 4 to 7 times slower.

This module does not import PyTorch. docs/performance.md has the measurements.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

__all__ = ["available_cpus", "child_environment", "configure_threads", "cpu_quota"]

logger = logging.getLogger(__name__)

SPIN_COUNT = "1000"
"""GNU OpenMP's threads check this many times for work before they sleep."""

# If the user has set one of these, the wait policy is left alone.
_WAIT_POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")

# Holds the number that we wrote to OMP_NUM_THREADS. A child process can so tell our number from a
# number that the user or torchrun has set.
_OURS = "D2KD_NUM_THREADS"


def configure_threads(environment: MutableMapping[str, str] | None = None) -> None:
    """Set OMP_NUM_THREADS and GOMP_SPINCOUNT where the user has not set them.

    Call it before anything imports PyTorch. After that, the call changes nothing and logs this at
    debug level. Child processes inherit the settings.

    Args:
        environment: the environment to change; default: the environment of this process.
    """
    if environment is None:
        if "torch" in sys.modules:
            logger.debug("PyTorch is imported already: its threads stay as they are.")
            return
        environment = os.environ
    if not any(name in environment for name in _WAIT_POLICIES):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
    threads = environment.get("OMP_NUM_THREADS")
    if threads is None or threads == environment.get(_OURS):
        environment["OMP_NUM_THREADS"] = environment[_OURS] = str(available_cpus())
    logger.debug(
        "threads: OMP_NUM_THREADS=%s, GOMP_SPINCOUNT=%s",
        environment["OMP_NUM_THREADS"],
        environment.get("GOMP_SPINCOUNT", "not set"),
    )


def child_environment(
    processes: int = 1, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment for one of several child processes that run at the same time.

    The children share the CPUs that this process may use: with 8 CPUs and 3 processes, each child
    gets 2 threads. A number that the user has set goes to each child unchanged.

    Args:
        processes: number of children that run at the same time, at least 1.
        environment: the environment to start from; default: the environment of this process.

    Raises:
        ValueError: `processes` is less than 1.
    """
    if processes < 1:
        raise ValueError(f"processes: expected at least 1, found {processes}")
    child = dict(os.environ if environment is None else environment)
    configure_threads(child)
    if child.pop(_OURS, None) is not None:  # from now on it is a given number
        child["OMP_NUM_THREADS"] = str(max(available_cpus() // processes, 1))
    return child


def available_cpus(root: str | Path = "/") -> int:
    """Number of CPUs that this process may use: by its affinity and by its CPU quota.

    CPUs that share a core (hyperthreads) count once, as they do in PyTorch.

    Args:
        root: where /proc and /sys are; tests give another folder.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    else:  # macOS
        cpus = set(range(os.cpu_count() or 1))
    cores = {_core_of(cpu, Path(root)) for cpu in cpus}
    quota = cpu_quota(root)
    return len(cores) if quota is None else max(min(len(cores), math.ceil(quota)), 1)


def _core_of(cpu: int, root: Path) -> str:
    siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return _read(siblings) or str(cpu)


def cpu_quota(root: str | Path = "/") -> float | None:
    """The CPU quota of this process in CPUs, such as 1.5; None if there is none.

    It is the smallest quota of the control groups that the process is in, of version 1 or 2, and of
    all groups above them.

    Args:
        root: where /proc and /sys are; tests give another folder.
    """
    root = Path(root)
    quotas: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:  # version 2
            hierarchy, read_quota = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            hierarchy, read_quota = _hierarchy_v1(root, controllers), _quota_v1
        else:
            continue
        # In a container, the path is often the host's path, and only the top folder is visible.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        folders = [hierarchy.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
        quotas += [quota for folder in folders if (quota := read_quota(folder)) is not None]
    return min(quotas, default=None)


def _hierarchy_v1(root: Path, controllers: str) -> Path:
    base = root / "sys/fs/cgroup"
    return next((base / name for name in (controllers, "cpu") if (base / name).is_dir()), base)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return _divide(quota, period)  # "max" for no quota


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return _divide(quota, period)  # -1 for no quota


def _divide(quota: str, period: str) -> float | None:
    try:
        cpus = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return cpus if cpus > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
