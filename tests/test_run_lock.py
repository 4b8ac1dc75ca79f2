import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import pytest

from d2kd.run_lock import (
    check_run_folder,
    drop_kept_weights,
    keep_finished_run,
    lock_run_folder,
)

HOLD = """
import sys, time
from d2kd.run_lock import lock_run_folder
with lock_run_folder(sys.argv[1]):
    print("holds", flush=True)
    time.sleep(60)
"""


def hold(folder) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"holds\n"
    return process


def test_a_second_run_is_refused_with_the_first_ones_host_and_process(tmp_path):
    with hold(tmp_path) as first:
        try:
            with pytest.raises(ValueError) as error, lock_run_folder(tmp_path):
                pass
        finally:
            first.kill()
    owner = f"in use by process {first.pid} on {socket.gethostname()} since "
    assert f"train.output_dir {tmp_path}: expected" in str(error.value)
    assert owner in str(error.value)


def test_the_lock_of_a_killed_run_is_no_obstacle(tmp_path):
    with hold(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
    with lock_run_folder(tmp_path):
        assert json.loads((tmp_path / ".run_lock").read_text())["pid"] == os.getpid()


def _sleep(ready):
    ready.set()
    signal.pause()


def test_a_worker_that_outlives_its_run_does_not_hold_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    with lock_run_folder(tmp_path):
        worker = context.Process(target=_sleep, args=(ready,))
        worker.start()
        assert ready.wait(10)
    with hold(tmp_path) as second:  # the worker still has the open file
        assert worker.is_alive()
        second.kill()
    worker.kill()
    worker.join()


def test_a_run_that_ended_or_failed_leaves_the_folder_free(tmp_path):
    with pytest.raises(KeyError), lock_run_folder(tmp_path / "new"):
        raise KeyError
    with hold(tmp_path / "new") as second:
        second.kill()


def test_a_folder_elsewhere_is_not_locked():
    with lock_run_folder("s3://bucket/run"):
        pass


def test_resuming_a_finished_run_without_last_checkpoint_is_refused_with_a_command(tmp_path):
    check_run_folder(tmp_path / "new", training=True, resume=True)
    check_run_folder(tmp_path, training=True, resume=True)
    (tmp_path / "model_final.pth").touch()
    check_run_folder(tmp_path, training=True)
    check_run_folder(tmp_path, training=False)
    # Resuming without last_checkpoint would start from the beginning. The command mends it.
    with pytest.raises(ValueError, match=r"--resume: expected .*last_checkpoint, found") as error:
        check_run_folder(tmp_path, training=True, resume=True)
    command = str(error.value).split("run: ")[1].split(". For")[0]
    subprocess.run(command, shell=True, check=True)
    check_run_folder(tmp_path, training=True, resume=True)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]


@pytest.mark.parametrize("links", [True, False])
def test_what_a_finished_run_left_is_kept(tmp_path, monkeypatch, links):
    assert keep_finished_run(tmp_path) is None
    assert keep_finished_run("s3://bucket/run") is None
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    for i in (1, 2):
        (tmp_path / "new").write_text(f"weights {i}")
        (tmp_path / "new").rename(tmp_path / "model_final.pth")  # as checkpoints are written
        (tmp_path / "config.yaml").write_text(f"config {i}")
        (tmp_path / "new").write_text(f"average {i}")
        (tmp_path / "new").rename(tmp_path / "student_ema_final.pth")
        assert keep_finished_run(tmp_path) == tmp_path / f"previous_{i}"
        assert (tmp_path / "model_final.pth").exists()  # the new run may start from it
    for i in (1, 2):
        kept = tmp_path / f"previous_{i}"
        assert (kept / "model_final.pth").read_text() == f"weights {i}"
        assert (kept / "config.yaml").read_text() == f"config {i}"
        assert (kept / "student_ema_final.pth").read_text() == f"average {i}"
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()


def test_what_an_earlier_run_left_does_not_stay_beside_the_new_ones(tmp_path):
    weights = ["model_0000499.pth", "model_final.pth", "student_final.pth"]
    others = ["config.yaml", "events.out.tfevents.1.host", "metrics.json"]
    for name in (*weights, *others):
        (tmp_path / name).write_text(name)
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    kept = keep_finished_run(tmp_path)
    # Weights stay until the new run has loaded its own; the new run begins its curves at once.
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*weights, "last_checkpoint", "previous_1"}
    (tmp_path / "model_0000999.pth").write_text("new")
    (tmp_path / "metrics.json").write_text("new")
    drop_kept_weights(tmp_path, kept)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model_0000999.pth", "metrics.json", "previous_1"}
    assert sorted(os.listdir(kept)) == sorted([*weights, *others])
    assert all((kept / name).read_text() == name for name in (*weights, *others))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("below", [".", "deep/run"])
def test_a_file_in_place_of_the_folder_is_named_with_the_fix(tmp_path, training, below):
    (tmp_path / "run").touch()
    found = rf"output_dir {tmp_path}/run.*found that {tmp_path}/run is a file. Set another"
    with pytest.raises(ValueError, match=found):
        check_run_folder(tmp_path / "run" / below, training=training)
    check_run_folder("s3://bucket/run", training=training)
