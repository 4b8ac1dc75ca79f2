import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toys

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))  # a script, not part of a package
compare = importlib.import_module("compare")


def metrics(ap: float) -> dict[str, float]:
    return {"AP": ap, "AP50": 2 * ap, "AP75": ap / 2}


def test_entries_have_a_name_a_config_and_overrides():
    entry = compare.parse_entry("PGD x 2: configs/demo/distill.py a.b=2 'c=[1, 2]'")
    assert entry == ("PGD x 2", "configs/demo/distill.py", ("a.b=2", "c=[1, 2]"))
    assert compare.parse_entry("configs/demo/student.py")[0] == "student"
    with pytest.raises(ValueError, match=r"no file configs/nothing.py"):
        compare.parse_entry("a: configs/nothing.py")


def test_table_pairs_runs_by_seed():
    text = compare.table(
        {
            "alone": [metrics(10.0), metrics(14.0)],
            "method": [metrics(11.0), metrics(17.0)],
        },
        against="alone",
    )
    # Differences 1 and 3: mean 2, sample deviation sqrt(2); means of the rows 12 and 14.
    _, _, alone, method = text.splitlines()
    assert [cell.strip() for cell in alone.split("|")[2:6]] == [
        "12.0 ± 2.8",
        "24.0 ± 5.7",
        "6.0 ± 1.4",
        "",
    ]
    assert [cell.strip() for cell in method.split("|")[2:6:3]] == ["14.0 ± 4.2", "2.0 ± 1.4"]


def run(folder: Path, **fields) -> compare.Run:
    values = dict(name="a", config="c.py", overrides=("x=1",), seed=3, folder=folder / "a/seed3")
    return compare.Run(**{**values, **fields})


def test_a_run_is_finished_with_its_last_metrics(tmp_path):
    one = run(tmp_path)
    one.check()
    assert one.result() is None
    last = {f"bbox/{k}": v for k, v in metrics(20.0).items()}
    (one.folder / "metrics.json").write_text('{"total_loss": 1}\n' + json.dumps(last) + "\n")
    assert one.result() is None
    (one.folder / "model_final.pth").touch()
    assert one.result() == metrics(20.0)


def test_a_folder_of_other_options_is_refused(tmp_path):
    run(tmp_path).check()
    run(tmp_path).check()
    with pytest.raises(ValueError, match=r"expected a run of c.py x=2 train.seed=3, found.*x=1"):
        run(tmp_path, overrides=("x=2",)).check()


@pytest.mark.slow
def test_it_trains_compares_and_does_not_train_twice(tmp_path):
    path, folder = toys.coco_dataset(tmp_path / "data")
    config = tmp_path / "student.py"
    config.write_text(
        "from detectron2.config import LazyConfig\n"
        "from detectron2.data.datasets import register_coco_instances\n"
        "from detectron2.data import DatasetCatalog\n"
        "if 'toy' not in DatasetCatalog:\n"
        f"    register_coco_instances('toy', {{}}, {str(path)!r}, {str(folder)!r})\n"
        f"cfg = LazyConfig.load({str(ROOT / 'configs/demo/student.py')!r})\n"
        "dataloader, model, optimizer, lr_multiplier, train = (\n"
        "    cfg[k] for k in ('dataloader', 'model', 'optimizer', 'lr_multiplier', 'train'))\n"
        "dataloader.train.dataset.names = dataloader.test.dataset.names = 'toy'\n"
        "train.max_iter = 2\n"
    )
    command = [
        sys.executable,
        "tools/compare.py",
        f"first: {config}",
        f"lr: {config} optimizer.lr=0",
    ]
    command += ["--output", str(tmp_path / "out"), "--seeds", "1", "2", "--jobs", "2"]
    outputs = [
        subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        ).stdout
        for _ in range(2)
    ]
    assert outputs[0].count("AP\n") == 4 and outputs[1].count("AP\n") == 0
    table = (tmp_path / "out/results.md").read_text()
    assert table in outputs[0] and "| first" in table and "| lr" in table
