"""The examples of the README work as they are shown."""

import glob
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from d2kd import Distiller
from d2kd.checkpoint import Checkpointer
from d2kd.config import check_config, load_config
from tests import toys

README = Path("README.md").read_text()

# A user's own config: Detectron2's RetinaNet, made small, on data that it has registered.
STUDENT = """
from detectron2 import model_zoo
from detectron2.data import DatasetCatalog

config = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
dataloader, lr_multiplier, model, optimizer, train = (
    config[k] for k in ("dataloader", "lr_multiplier", "model", "optimizer", "train")
)
model.backbone.bottom_up.stages.depth = {depth}
del model.backbone.bottom_up.stages.stride_in_1x1
model.backbone.top_block.in_channels = 512
train.device = "cpu"
dataloader.train.dataset.names = dataloader.test.dataset.names = "demo_val"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    snippet = re.search(r"```python\n# my_distilled.py\n(.*?)```", README, re.DOTALL).group(1)
    (tmp_path / "my_distilled.py").write_text(snippet)
    (tmp_path / "my_student.py").write_text(STUDENT.format(depth=18))
    (tmp_path / "my_teacher.py").write_text(STUDENT.format(depth=34))
    monkeypatch.chdir(tmp_path)
    teacher = instantiate(LazyConfig.load("my_teacher.py").model)
    Checkpointer(teacher, ".").save("my_teacher")
    return tmp_path


def test_ten_lines_distill_the_users_detector(folder):
    lines = (folder / "my_distilled.py").read_text().splitlines()
    assert len([line for line in lines if line]) <= 10
    configs = [load_config(f"my_{who}.py") for who in ("student", "distilled")]
    assert configs[0].train.output_dir != configs[1].train.output_dir
    torch.manual_seed(1)
    model = instantiate(load_config("my_distilled.py", ["model.methods.pkd.weight=0.2"]).model)
    assert isinstance(model, Distiller) and model.distillation.pkd.weight == 0.2
    balanced = load_config("my_distilled.py", ["model.methods.pkd.balance=0.5"])
    assert balanced.model.methods.pkd.balance == 0.5
    assert len(model.teacher.model.backbone.bottom_up.res4) == 6  # ResNet-34
    torch.manual_seed(1)
    alone = instantiate(LazyConfig.load("my_student.py").model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in alone.state_dict().items())

    Path("output/my_distilled").mkdir(parents=True)
    Checkpointer(model, "output/my_distilled").save("model_final")
    last = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[-1]
    assert "d2kd" not in last
    names: dict = {}
    exec(last, names)
    trained = model.student.state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in names["detector"].state_dict().items())


def test_its_config_passes_the_checks(folder, monkeypatch):
    from detectron2.data import DatasetCatalog

    monkeypatch.setattr(DatasetCatalog, "list", lambda: ["demo_val"])
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [{}])
    check_config(load_config("my_distilled.py"))


def test_the_detector_of_the_docs_is_the_users_with_another_head(tmp_path, monkeypatch):
    snippet = re.search(
        r"```python\n(.*?)```", Path("docs/detectors.md").read_text(), re.DOTALL
    ).group(1)
    (tmp_path / "my_retinanet.py").write_text(STUDENT.format(depth=18))
    (tmp_path / "my_atss.py").write_text(snippet)
    monkeypatch.chdir(tmp_path)
    model = instantiate(load_config("my_atss.py").model)
    assert type(model).__name__ == "ATSS" and model.input_format == "BGR"
    model.train()
    inputs = [toys.image(size=(64, 64))]
    assert sum(model(inputs).values()).isfinite()


def test_every_link_and_config_that_it_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert Path(target).exists(), target
    for name in re.findall(r"`(configs/[^`]+)`", README + Path("configs/README.md").read_text()):
        found = re.match(r"(.*)\{(.*)\}(.*)", name)
        names = [found[1] + x + found[3] for x in found[2].split(",")] if found else [name]
        assert all(glob.glob(n) for n in names), names


def test_it_names_the_two_commands_and_the_methods():
    assert "make demo" in README and "make test" in README
    import d2kd.methods

    for method in ("Mimic", "FGD", "PGD", "RankMimic", "PFI", "MCDropout"):
        assert f"`{method}`" in README and hasattr(d2kd.methods, method)
