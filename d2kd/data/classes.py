"""Names of the classes of a dataset."""

from __future__ import annotations

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

__all__ = ["classes_of_dataset", "classes_of_test_set"]


def classes_of_dataset(name: str) -> tuple[str, ...]:
    """`thing_classes` of a registered dataset, in the order of their numbers; () if it has none.

    Datasets of `register_coco_instances` get them when they are loaded, so this may load it.

    Raises:
        OSError: the dataset must be loaded, and its file is not there.
    """
    if MetadataCatalog.get(name).get("thing_classes", None) is None and name in DatasetCatalog:
        DatasetCatalog.get(name)
    return tuple(map(str, MetadataCatalog.get(name).get("thing_classes", None) or ()))


def classes_of_test_set(cfg: DictConfig, count: int, dataset: str | None = None) -> tuple[str, ...]:
    """Names of the classes of a detector where a dataset knows them, else their numbers.

    Args:
        cfg: a config.
        count: number of classes of the detector. A dataset of another number does not name them.
        dataset: a registered one. Default: the config's test set.
    """
    names = dataset or OmegaConf.select(cfg, "dataloader.test.dataset.names")
    name = names if isinstance(names, str) or not names else names[0]
    try:
        found = classes_of_dataset(name) if name else ()
    except OSError:  # a detector can be used where its data are not
        found = ()
    return found if len(found) == count else tuple(map(str, range(count)))
