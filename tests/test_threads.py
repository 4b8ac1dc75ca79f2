"""The number of threads and the wait policy that are set before PyTorch is imported."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2kd import threads
from d2kd.threads import available_cpus, child_environment, configure_threads, cpu_quota

NAMES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", threads._OURS)
CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        # Version 2: at the top of the visible hierarchy, below it, and without a quota.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n"}, 4.0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {  # a group above has the smaller quota
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "800000 100000\n",
            },
            2.0,
        ),
        # In a container: the path is the host's, the quota is at the top.
        (
            {
                "proc/self/cgroup": "0::/../../kubepods/pod1\n",
                "sys/fs/cgroup/cpu.max": "300000 100000\n",
            },
            3.0,
        ),
        # Version 1, with the controllers mounted together and apart, and without a quota.
        (
            {
                "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n2:cpuacct:/\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        # Files that cannot be understood are no reason to stop.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "a b c\n"}, None),
        ({"proc/self/cgroup": "nonsense", "sys/fs/cgroup/cpu.max": "x"}, None),
    ],
)
def test_cpu_quota(tmp_path, files, expected):
    assert cpu_quota(write(tmp_path, files)) == expected


def test_quota_bounds_the_number_of_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_cpus(tmp_path) == 8
    for quota, expected in (("150000", 2), ("20000", 1), ("6400000", 8)):
        files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"}
        assert available_cpus(write(tmp_path, files)) == expected


def test_hyperthreads_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5}, raising=False)
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    write(tmp_path, {siblings.format(cpu): f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)})
    assert available_cpus(tmp_path) == 2


def in_a_new_process(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in NAMES}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


CODE = f"""
import os, sys
from d2kd.threads import configure_threads
os.sched_setaffinity(0, {{{CPUS[0]}}})
configure_threads()
assert "torch" not in sys.modules
print(os.environ["OMP_NUM_THREADS"], os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_affinity_of_the_process_counts():
    assert in_a_new_process(CODE) == "1 1000"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, "3 1000"),
        ({"GOMP_SPINCOUNT": "5"}, "1 5"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "1 None"),
        ({"KMP_BLOCKTIME": "0"}, "1 None"),
        # A number that an outer d2kd has chosen is not the user's: this process chooses again.
        ({"OMP_NUM_THREADS": "3", threads._OURS: "3"}, "1 1000"),
        ({"OMP_NUM_THREADS": "4", threads._OURS: "3"}, "4 1000"),
    ],
)
def test_what_the_user_has_set_wins(given, expected):
    assert in_a_new_process(CODE, **given) == expected


def test_torch_takes_the_number_of_threads():
    code = "from d2kd.threads import configure_threads; configure_threads(); import torch; "
    code += "print(torch.get_num_threads())"
    assert in_a_new_process(code, OMP_NUM_THREADS="1") == "1"
    assert in_a_new_process(code) == str(available_cpus())


def test_nothing_changes_after_torch_is_imported(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch", sys)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.DEBUG, "d2kd.threads"):
        configure_threads()
    assert not any(name in os.environ for name in NAMES)
    assert "imported already" in caplog.text


def test_children_share_the_cpus(monkeypatch):
    monkeypatch.setattr(threads, "available_cpus", lambda: 8)
    child = child_environment(3, {"HOME": "x"})
    assert child == {"HOME": "x", "OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"}
    configure_threads(child)  # as the child does at its start
    assert child["OMP_NUM_THREADS"] == "2"
    assert child_environment(16, {})["OMP_NUM_THREADS"] == "1"
    # Our own number, which this process has inherited or set, is divided; the user's is not.
    ours = {"OMP_NUM_THREADS": "8", threads._OURS: "8"}
    assert child_environment(2, ours)["OMP_NUM_THREADS"] == "4"
    assert child_environment(2, {"OMP_NUM_THREADS": "8"})["OMP_NUM_THREADS"] == "8"
    with pytest.raises(ValueError, match="processes: expected at least 1, found 0"):
        child_environment(0, {})
