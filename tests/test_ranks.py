"""The main process works, the others wait; results and errors reach all of them."""

import json
import os
import subprocess
import sys

import pytest

from d2kd.ranks import on_main_process


def test_one_process_just_calls():
    assert on_main_process(lambda: 7) == 7
    with pytest.raises(KeyError):
        on_main_process(lambda: {}["x"])


def main(folder: str) -> None:
    """A process of torchrun: a slow result, an error, and an audit that repairs a set."""
    import time

    from detectron2.data import DatasetCatalog
    from detectron2.utils import comm

    from d2kd.audit import audit_in_all_processes
    from d2kd.data import register_all
    from tests.audit.test_run import config

    calls = []

    def slow():
        calls.append(1)
        time.sleep(1.5)
        return {"a": 7}

    told = {"value": on_main_process(slow), "calls": len(calls)}
    try:
        on_main_process(lambda: int("no number"))
    except ValueError as error:
        told["error"] = str(error)
    register_all(f"{folder}/data")
    cfg = config(train="farm_train", test="farm_val")
    audit_in_all_processes(cfg)
    told["images"] = len(DatasetCatalog.get("farm_train"))  # it could not be loaded before
    cfg.model.num_classes = 2
    try:
        audit_in_all_processes(cfg)
    except ValueError as error:
        told["refused"] = str(error)
    with open(f"{folder}/{comm.get_rank()}.json", "w") as f:
        json.dump(told, f)


def test_two_processes_share_results_errors_and_repaired_sets(tmp_path):
    from tests.data.audit import sets

    def same_ids(content):
        for annotation in content["annotations"]:
            annotation["id"] = 1

    for split in ("train", "val"):
        sets.write(tmp_path / "data", "farm", split, same_ids)
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node=2", "-m", "tests.test_ranks", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first["calls"], second["calls"]) == (1, 0)
    for told in (first, second):
        assert told["value"] == {"a": 7} and told["images"] == 6
        assert "no number" in told["error"]
        assert "model.num_classes: expected at least the 3 classes" in told["refused"]


if __name__ == "__main__":
    from d2kd.launch import launch

    launch(main, sys.argv[1])
    os._exit(0)  # as in tests/ranks.py: gloo may abort while the interpreter shuts down
