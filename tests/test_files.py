import json
import os
import subprocess
import sys

import pytest

from d2kd.files import (
    open_to_replace,
    remove_partial_files,
    sha256_of_file,
    write_file,
    write_json,
)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"AP": 1.5})
    write_json(path, {"AP": 2.5})
    assert json.loads(path.read_text()) == {"AP": 2.5}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"AP": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"AP": float("nan")})
    assert json.loads(path.read_text()) == {"AP": 1.5}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch, error):
    path = tmp_path / "labels.json"
    write_file(path, "old")

    def fail(_):
        raise error

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        write_file(path, b"new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["labels.json"]


def test_the_content_is_on_disk_before_the_file_gets_its_name(tmp_path, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (steps.append(n), r(*a))[1])
    write_file(tmp_path / "a", "content")
    assert steps == ["fsync", "replace"]


def test_two_processes_use_different_temporary_names(tmp_path):
    # The second process runs while the first one is about to rename its file.
    path, seen = tmp_path / "a", tmp_path / "seen.txt"
    inner = f"""
import os
rename = os.replace
def replace(source, target):
    with open({str(seen)!r}, "a") as f:
        print(os.path.basename(source), file=f)
    rename(source, target)
os.replace = replace
from d2kd.files import write_file
write_file({str(path)!r}, "x" * 10)
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", inner], check=True)
    assert len(set(seen.read_text().split())) == 2


def test_a_stream_replaces_the_file_when_it_ends_and_not_before(tmp_path):
    path = tmp_path / "labels.json"
    write_file(path, "old")
    with open_to_replace(path) as f:
        f.write(b"new ")
        f.flush()
        assert path.read_text() == "old"
        f.write(b"content")
    assert path.read_text() == "new content"
    with pytest.raises(ZeroDivisionError), open_to_replace(path) as f:
        f.write(b"a part")
        raise ZeroDivisionError
    assert path.read_text() == "new content" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_temporary_files_of_killed_processes_are_removed_and_no_others(tmp_path):
    path = tmp_path / "unit[1].npz"
    killed = """
import os, signal, sys
from d2kd.files import open_to_replace
with open_to_replace(sys.argv[1]) as f:
    f.write(b"a part")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", killed, str(path)], check=False)
    (left,) = tmp_path.iterdir()
    others = [tmp_path / name for name in (".other.npz.host.1.tmp", "unit[1].npz.host.1.tmp")]
    for other in others:
        other.touch()
    write_file(path, "content")
    remove_partial_files(path)
    assert not left.exists()
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_sha256_of_a_file_longer_than_one_block(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * (1 << 20) + b"b")
    expected = subprocess.run(
        ["sha256sum", str(tmp_path / "a")], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert sha256_of_file(tmp_path / "a") == expected


def test_importing_d2kd_and_its_files_does_not_import_torch():
    # compare measures the memory of its runs, and the command sets threads before torch reads them.
    code = "import sys, d2kd.files; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
