"""A train_net.py that is done at once, for the tests of the comparison, and a small model zoo."""

import sys
from pathlib import Path

import pytest

from d2kd.tools import runs
from d2kd.tools.compare import command
from d2kd.tools.compare.describe import Description
from tests.model_zoo.conftest import published, trained, zoo

__all__ = ["published", "trained", "zoo"]  # fixtures

# Gives an AP of 10 * scale + seed; a teacher has 40. Its options stay in calls.txt, a line for each
# time it ran.
TRAIN = """
import json, os, sys, time
from pathlib import Path

place = sys.argv.index("--config-file")
mode, options = "".join(sys.argv[1:place]), dict(o.split("=", 1) for o in sys.argv[place + 2 :])
folder = Path(options["train.output_dir"].strip('"'))
with open("calls.txt", "a") as calls:
    options["mode"] = mode
    options["cuda"] = os.environ["CUDA_VISIBLE_DEVICES"]
    options["threads"] = os.environ["OMP_NUM_THREADS"]
    options["start"] = time.time()
    memory = bytearray(int(options.get("memory", 0)) << 20)
    time.sleep(float(options.get("sleep", 0)))
    calls.write(json.dumps({**options, "end": time.time()}) + "\\n")
if mode not in ("", "--resume"):
    print("[11/26 10:00:00 d2.evaluation.testing]: copypaste: Task: bbox")
    print("[11/26 10:00:00 d2.evaluation.testing]: copypaste: AP,AP50,AP75,APs,APm,APl")
    print("[11/26 10:00:00 d2.evaluation.testing]: copypaste: "
          f"{options.get('ap', '40.0')}00,60.0000,30.0000,nan,8.0000,9.0000")
    sys.exit()
if "fail" in options and options["fail"] in options["train.seed"]:
    sys.exit("it went wrong")
ap = 10 * float(options.get("scale", 1)) + int(options["train.seed"])
box = {"AP": ap, "AP50": 2 * ap, "AP75": ap / 2, "APs": ap, "APm": ap, "APl": float("nan")}
steps = [{"iteration": i, "time": t, "data_time": t / 10, "total_loss": 1.0}
         for i, t in enumerate([9.0, 1.0, 3.0])]
with open(folder / "metrics.json", "a") as metrics:
    for line in [*steps, {f"bbox/{k}": v for k, v in box.items()}]:
        metrics.write(json.dumps(line) + "\\n")
(folder / "model_final.pth").touch()
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The current folder, with a train_net.py that is done at once."""
    (tmp_path / "train_net.py").write_text(TRAIN)
    for name in ("c.py", "d.py"):  # a student alone, and one that is distilled
        (tmp_path / name).touch()

    def describe(entries, seed, todo):
        teachers = {"d.py": "a digest", "e.py": "another"}
        return [Description(3, teachers.get(Path(entry.config).name, "")) for entry in entries]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "TRAIN", (sys.executable, str(tmp_path / "train_net.py")))
    # The real one asks a process that imports PyTorch, which would say that these files are empty.
    monkeypatch.setattr(command, "describe", describe)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path
