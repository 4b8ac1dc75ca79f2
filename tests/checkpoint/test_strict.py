import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from d2kd.checkpoint import Checkpointer, load_strictly
from tests import toys


@pytest.fixture
def saved(tmp_path):
    model = toys.retinanet()
    Checkpointer(model, str(tmp_path)).save("model", iteration=3)
    return model, tmp_path / "model.pth"


def test_saved_file_has_detectron2s_format(saved):
    model, path = saved
    other = toys.retinanet()
    rest = DetectionCheckpointer(other).load(str(path))
    assert rest["iteration"] == 3
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    assert (path.parent / "last_checkpoint").read_text() == "model.pth"


def test_killed_save_keeps_the_last_checkpoint(saved, monkeypatch):
    model, path = saved
    whole = path.read_bytes()

    def dies(data, f):
        f.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    for name in ("model", "later"):
        with pytest.raises(KeyboardInterrupt):
            Checkpointer(model, str(path.parent)).save(name)
    assert path.read_bytes() == whole and not (path.parent / "later.pth").exists()
    assert (path.parent / "last_checkpoint").read_text() == "model.pth"


def test_strict_load_counts_every_tensor(saved):
    model, path = saved
    counts = load_strictly(toys.retinanet(), str(path))
    assert (
        counts == f"{len(model.state_dict())} tensors matched, 0 missing, 0 unexpected, 0 of "
        "another shape"
    )


def test_a_distillers_checkpoint_is_read_without_its_adapters(saved):
    model, path = saved
    weights = {**model.state_dict(), "distillation.fgd.adapters.p3.weight": torch.zeros(1)}
    torch.save({"model": weights}, path)
    assert "0 unexpected" in load_strictly(toys.retinanet(), str(path))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("head.cls_score.weight"), r"1 missing.*\n  missing: head.cls_score"),
        (lambda w: w.update(more=torch.zeros(1)), r"1 unexpected.*\n  unexpected: more"),
        (
            lambda w: w.update({"head.cls_score.bias": torch.zeros(80)}),
            r"found 95 tensors matched, 0 missing, 0 unexpected, 1 of another shape(.|\n)*"
            r"head.cls_score.bias \(80,\) in the file, \(3,\) here(.|\n)*num_classes",
        ),
    ],
    ids=["missing", "unexpected", "other classes"],
)
def test_any_mismatch_is_an_error_that_names_it(saved, change, message):
    model, path = saved
    weights = dict(model.state_dict())
    change(weights)
    torch.save({"model": weights}, path)
    with pytest.raises(ValueError, match=message):
        load_strictly(toys.retinanet(), str(path))


def test_pixel_statistics_in_older_files_are_compared(saved):
    # The model zoo's RetinaNet contains pixel_mean and pixel_std. Detectron2 no longer saves them.
    model, path = saved
    means = {"pixel_mean": model.pixel_mean.clone(), "pixel_std": model.pixel_std.clone()}
    torch.save({"model": {**model.state_dict(), **means}}, path)
    assert "0 unexpected" in load_strictly(toys.retinanet(), str(path))
    means["pixel_mean"] += 1
    torch.save({"model": {**model.state_dict(), **means}}, path)
    with pytest.raises(ValueError, match=r"pixel_mean of RetinaNet: expected the config's \[110"):
        load_strictly(toys.retinanet(), str(path))


def test_incomplete_file_is_an_error_that_names_it(saved):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"weights of RetinaNet: .*model.pth.*cut off"):
        load_strictly(toys.retinanet(), str(path))


def test_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights of RetinaNet: expected .*nowhere.pth"):
        load_strictly(toys.retinanet(), str(tmp_path / "nowhere.pth"))


def test_model_zoo_pickle_loads(saved):
    model, path = saved
    arrays = {k: v.numpy() for k, v in model.state_dict().items()}
    zoo = path.with_suffix(".pkl")
    zoo.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    other = toys.retinanet()
    load_strictly(other, str(zoo))
    assert np.array_equal(other.head.cls_score.weight.detach(), arrays["head.cls_score.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(saved, value):
    model, path = saved
    weights = dict(model.state_dict())
    weights["head.cls_score.bias"] = torch.full((3,), value)
    torch.save({"model": weights}, path)
    message = (
        r"weights of RetinaNet: checkpoint .*model.pth: .* 1 of 96 tensors \(head.cls_score.bias"
    )
    with pytest.raises(ValueError, match=message):
        load_strictly(toys.retinanet(), str(path))


def test_a_wrapped_and_prefixed_file_is_loaded_and_the_counts_say_so(saved):
    model, path = saved
    weights = {f"module.{k}": v for k, v in model.state_dict().items()}
    weights["module.distillation.fgd.adapters.p3.weight"] = torch.zeros(1)
    torch.save({"state_dict": weights}, path)
    other = toys.retinanet()
    counts = load_strictly(other, str(path))
    assert counts.endswith("under 'state_dict', without the prefix 'module.'")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


class Malicious:
    def __reduce__(self):
        return print, ("code ran",)


def test_pickle_that_would_run_code_is_an_error(tmp_path, capsys):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"model": Malicious(), "__author__": "x"}))
    with pytest.raises(ValueError, match=r"refused: expected .* imports builtins.print"):
        load_strictly(toys.retinanet(), str(path))
    assert "code ran" not in capsys.readouterr().out
