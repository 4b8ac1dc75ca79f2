"""Pictures of fixed test images while a student trains."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from detectron2.config import instantiate
from detectron2.engine import HookBase
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..data.classes import classes_of_test_set
from ..random_state import keep_random_state
from ..readers import get_reader
from .networks import Networks
from .panels import columns
from .pictures import Picture, image_format, make_picture, spread
from .sheet import render_sheet

__all__ = ["TrainingPictures", "training_pictures"]

logger = logging.getLogger(__name__)


class TrainingPictures(HookBase):
    """Puts a sheet of each picture into the event storage, from where TensorBoard gets it.

    The run stays as it is without this hook, bit for bit: random numbers, statistics of batch norms
    and the mode of each module do not change. An error while drawing, such as too little memory, is
    logged, and the training goes on.

    Args:
        pictures: the images.
        networks: what is drawn; the students are those in training.
        names: of the classes.
        period: steps between two drawings. There is one after the last step, too.
        threshold: least score of a detection that is drawn.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        networks: Networks,
        names: Sequence[str],
        *,
        period: int,
        threshold: float = 0.3,
    ):
        self.pictures, self.networks, self.names = pictures, networks, names
        self.period, self.threshold = period, threshold

    def after_step(self) -> None:
        step = self.trainer.iter + 1
        if step % self.period and step != self.trainer.max_iter:
            return
        try:
            with keep_random_state(), evaluation_mode(self.networks.students.values()):
                for number, picture in enumerate(self.pictures):
                    self._draw(number, picture, step)
        except Exception:
            logger.exception(
                "train.pictures: the pictures of step %d could not be drawn; the training goes on.",
                step,
            )

    def _draw(self, number: int, picture: Picture, step: int) -> None:
        sheet = columns([picture], self.networks, self.names, threshold=self.threshold)
        pixels = render_sheet(
            sheet,
            title=Path(picture.inputs.get("file_name", f"image {number}")).name,
            subtitle=f"after step {step}",
            caption=f"Detections with a score of at least {self.threshold:g}.",
            legend=picture.truth is not None,
        )
        self.trainer.storage.put_image(f"pictures/{number}", pixels.transpose(2, 0, 1))


@contextlib.contextmanager
def evaluation_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """In the block, all modules are in evaluation mode; then each has its own mode again."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def training_pictures(cfg: DictConfig, model: nn.Module) -> TrainingPictures | None:
    """The hook of `train.pictures`; None if its period is 0.

    Args:
        cfg: the config of the run.
        model: the distiller or the detector in training, without DDP's wrapper.

    Raises:
        TypeError: no reader knows the detector.
        ValueError: the config has no test images, or one of them cannot be read.
    """
    fields = cfg.train.pictures
    if not fields.period:
        return None
    test = OmegaConf.select(cfg, "dataloader.test")
    missing = [x for x in ("dataset", "mapper") if test is None or test.get(x) is None]
    if missing:
        raise ValueError(
            f"train.pictures: expected dataloader.test with a dataset and a mapper, found none of "
            f"{' and '.join(missing)}. Set train.pictures.period=0 for no pictures."
        )
    mapper = instantiate(test.mapper)
    records = spread(instantiate(test.dataset), fields.images)
    if not records:
        raise ValueError("train.pictures: expected images in dataloader.test.dataset, found none.")
    networks = Networks.of(model, image_format(mapper))
    (student,) = networks.students.values()
    return TrainingPictures(
        [make_picture(record, mapper) for record in records],
        networks,
        classes_of_test_set(cfg, get_reader(student).num_classes),
        period=fields.period,
        threshold=fields.threshold,
    )
