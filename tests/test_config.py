import pytest
from detectron2 import model_zoo as detectron2_zoo
from detectron2.data import DatasetCatalog

from d2kd import model_zoo
from d2kd.config import check_config, check_files, load_config
from d2kd.recipes import config_path

STUDENT = "configs/demo/student.py"
HERE = ["train.device=cpu"]


@pytest.fixture
def dataset():
    """A registered data set."""
    DatasetCatalog.register("toy_images", lambda: [{"image_id": 0}])
    yield "toy_images"
    DatasetCatalog.remove("toy_images")


def config(*overrides: str, train: str = "toy_images", test: str = "toy_images"):
    names = [f"dataloader.train.dataset.names={train}", f"dataloader.test.dataset.names={test}"]
    return load_config(STUDENT, [*HERE, *names, *overrides])


def test_defaults_of_the_fields_that_d2kd_adds(dataset):
    cfg = config()
    assert cfg.train.accumulate == 1 and cfg.train.clip_grad_norm == 0
    assert cfg.train.amp.dtype == "float16" and not cfg.train.amp.enabled
    assert cfg.train.teacher_check.images == 0
    check_config(cfg)


def test_train_has_detectron2s_fields_with_its_defaults_and_ours():
    ours = model_zoo.get_config("common/train.py").train
    added = dict(
        seed=-1,
        accumulate=1,
        clip_grad_norm=0.0,
        ema=dict(decay=0.0),
        mean_teacher=None,
        best_metric="",
        teacher_check=dict(images=0, min_ap=0.0),
        pictures=dict(period=0, images=3, threshold=0.3),
        writers=dict(wandb=None, mlflow=None),
    )
    expected = detectron2_zoo.get_config("common/train.py").train
    expected.update(added)
    expected.amp.dtype = "float16"
    assert ours == expected


def test_only_missing_fields_of_train_are_filled_in(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "model, dataloader = {}, {}\n"
        "train = dict(max_iter=7, teacher_check=dict(images=4), amp=dict(enabled=True))\n"
        "mine = dict(own=1)\n"
    )
    cfg = load_config(str(config), ["train.teacher_check.min_ap=30"])
    train = cfg.train
    assert (train.max_iter, cfg.mine.own, train.log_period) == (7, 1, 20)
    assert train.teacher_check == dict(images=4, min_ap=30)
    assert train.amp == dict(enabled=True, dtype="float16")


def test_overrides_reach_fields_and_unset_arguments(dataset):
    cfg = config("train.max_iter=7", "model.test_score_thresh=0.3")  # the second was not set
    assert cfg.train.max_iter == 7 and cfg.model.test_score_thresh == 0.3
    check_config(cfg)


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.max_itr=7", r"override train.max_itr: .*found 'max_itr'. Did you mean max_iter"),
        ("modl.num_classes=7", r"expected a field of the config .*Did you mean model"),
        ("model.num_clases=7", r"field of model .*Did you mean num_classes"),
    ],
)
def test_unknown_override_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(STUDENT, [override])


def test_unknown_field_in_a_config_is_named(dataset):
    cfg = config()
    cfg.model.head.num_anchor = 1
    with pytest.raises(ValueError, match=r"model.head.num_anchor: expected a field of Retina.*"):
        check_config(cfg)


@pytest.mark.parametrize(
    "names, message",
    [
        (dict(train="toy_imges"), r"dataloader.train.*'toy_imges'. Did you mean toy_images"),
        (dict(test="toy_imges"), r"dataloader.test.*'toy_imges'. Did you mean toy_images"),
        (dict(test="my_images"), r"found 'my_images'. Put its folder into \$DETECTRON2_DATASETS"),
    ],
)
def test_misspelled_datasets_are_named(dataset, names, message):
    with pytest.raises(ValueError, match=message):
        check_config(config(**names))


def test_fields_of_a_detectors_base_are_checked_too(dataset):
    atss = "configs/experiments/dense/atss.py"
    names = [f"dataloader.{k}.dataset.names=toy_images" for k in ("train", "test")]
    check_config(load_config(atss, [*HERE, *names, "model.test_nms_thresh=0.5"]))
    with pytest.raises(ValueError, match=r"'test_nms_tresh'. Did you mean test_nms_thresh"):
        load_config(atss, ["model.test_nms_tresh=0.5"])
    with pytest.raises(ValueError, match=r"'qualty'. Did you mean quality"):
        load_config(atss, ["model.qualty=iou"])


def test_missing_gpu_is_named(dataset, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"found 'cuda' but no GPU. Add train.device=cpu"):
        check_config(config("train.device=cuda"))


def test_channel_order_of_loader_and_distiller_must_agree(dataset):
    names = [f"dataloader.{k}.dataset.names=toy_images" for k in ("train", "test")]
    cfg = load_config("configs/demo/distill.py", [*HERE, *names])
    check_config(cfg)
    cfg.dataloader.train.mapper.image_format = "BGR"
    with pytest.raises(ValueError, match=r"mapper: expected images in 'RGB'.*found 'BGR'"):
        check_config(cfg)
    cfg.model.input_format = cfg.dataloader.test.mapper.image_format = "BGR"
    check_config(cfg)
    cfg.model.student = "configs/demo/student.py"  # which says RGB, and is not read here
    check_config(cfg)
    cfg.model.input_format = None
    with pytest.raises(ValueError, match=r"model.input_format: expected .* found none"):
        check_config(cfg)


def test_test_images_have_the_channel_order_of_the_training_images(dataset):
    cfg = config()
    cfg.dataloader.test.mapper.image_format = "BGR"
    with pytest.raises(ValueError, match=r"test.mapper: expected images in 'RGB'.*found 'BGR'"):
        check_config(cfg)


def test_unknown_precision_is_named(dataset):
    with pytest.raises(ValueError, match=r"train.amp.dtype: expected float16 or bfloat16"):
        check_config(config("train.amp.enabled=True", "train.amp.dtype=int8"))


@pytest.mark.parametrize("name", ["rgb", "XYZ"])
def test_image_format_that_does_not_exist_is_named(dataset, name):
    cfg = config(f"dataloader.train.mapper.image_format={name}")
    cfg.dataloader.test.mapper.image_format = cfg.model.input_format = name
    with pytest.raises(ValueError, match=rf"train.mapper.image_format: .* RGB, .*found '{name}'"):
        check_config(cfg)


def test_a_name_in_detectron2s_model_zoo_is_a_config():
    path = config_path("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    assert path == detectron2_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    assert load_config(path).optimizer.lr == 0.01  # SOLVER.BASE_LR of its base
    with pytest.raises(FileNotFoundError, match=r"expected the path of a config, .* found 'COCO"):
        config_path("COCO-Detection/retinanet_R_50.yaml")


PRETRAINED = (
    "model.backbone.bottom_up={_target_: d2kd.backbones.LibraryBackbone, "
    "name: torchvision/resnet18, pretrained: gone.pth}"
)


@pytest.mark.parametrize(
    "path, override, message",
    [
        (STUDENT, "train.init_checkpoint=gone.pth", r"^train\.init_checkpoint: .* at 'gone\.pth'"),
        (
            "configs/demo/distill.py",
            "model.teacher.weights=gone.pth",
            r"^model\.teacher\.weights: .* at 'gone\.pth'",
        ),
        (
            "configs/experiments/pseudo/share_pseudo.py",
            "dataloader.train.dataset.rest.dataset.path=gone.json",
            r"^dataloader\.train\.dataset\.rest\.dataset\.path: .*'gone\.json'.*`d2kd label`",
        ),
        (STUDENT, PRETRAINED, r"^model\.backbone\.bottom_up\.pretrained: .*`d2kd weights`"),
    ],
)
def test_files_that_a_training_lacks_are_named(path, override, message):
    cfg = load_config(path, ["train.init_checkpoint=''", override])
    with pytest.raises(FileNotFoundError, match=message):
        check_files(cfg, training=True, initial_weights=True)
    check_files(cfg, training=True, initial_weights=True, coming=["."])


def test_an_evaluation_lacks_no_files_of_the_training():
    cfg = load_config("configs/experiments/pseudo/share_pseudo.py", ["train.init_checkpoint=a.pth"])
    cfg.dataloader.train.dataset.rest.dataset.path = "gone.json"
    check_files(cfg, training=False, initial_weights=False)
