"""A mean teacher: the average of the student labels images while the student trains.

The steps of Mean Teacher (arXiv 1703.01780) for detectors, as in Unbiased Teacher (2102.09480):

1. For `burn_in` steps, the student trains on the labels that there are.
2. From then on, in each batch, its average finds the objects in the weak view of each image that
   lacks labels. Thresholds and fusion turn them into labels as `d2kd label` does.
3. The student trains on the strong views. `train.ema` averages its weights after each step.

Ours: the low threshold and its regions to ignore; images that lack the labels of some classes only;
thresholds that are fitted again while the student trains; the warnings of `d2kd.pseudo.collapse`.

Shapes: K classes of the student, M labels of one image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ..ema import EMA
from ..matching import Detections
from ..partial_labels import mask_partial_labels
from ..targets import Targets
from ..values import check_number
from .coco import is_kept
from .collapse import CollapseWatch, agreement, divergence
from .fuse import Fusion
from .online_labels import detections, take_weak_view, truth, with_labels, without_slivers
from .refit import ThresholdFits
from .teachers import set_output_limits
from .thresholds import FixedThresholds, ThresholdRule

__all__ = ["MeanTeacher"]

Loader = Callable[[int, int], Iterable[list[dict]]]


class MeanTeacher(HookBase):
    """Labels images by the average of the student, while the student trains. See the module.

    An image lacks labels if its "annotated_classes" are not all classes, as in images of
    `load_unlabeled` and `random_subset(rest="unlabeled")`. The teacher labels the classes that are
    missing. Of an image that `d2kd.data.relabel` has marked, it replaces all labels. Images in
    which all boxes lie between the two thresholds keep the labels that they had.

    Set it as `train.mean_teacher`. It needs `train.ema.decay`, a `Distiller`, with or without
    methods, and `d2kd.data.TwoViewMapper` in `dataloader.train`.

    Args:
        burn_in: steps before the teacher begins to label. 0 suits a student that starts from a
            checkpoint of a trained one (`train.init_checkpoint`).
        thresholds: see `d2kd.pseudo.thresholds`. Default: fixed ones of 0.7 and 0.3. Others are
            fitted again every `refit_period` steps, and until the window is full, whenever the
            number of its images has doubled. Those that need labeled images take the ones of the
            batches. The student trains on these, so that thresholds fitted on them are low.
        fusion: conflicts between classes, and the weight of a label, see `Fusion`.
        refit_period: steps between two fits.
        window: fits use the detections in this many of the latest images.
        score_floor, max_detections: see `LabelTeacher`.
        log_period: steps between two records of the measurements, which also cost one more
            inference of the student. Default: `train.log_period`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        burn_in: int,
        *,
        thresholds: ThresholdRule | None = None,
        fusion: Fusion | None = None,
        refit_period: int = 100,
        window: int = 500,
        score_floor: float = 0.05,
        max_detections: int = 300,
        log_period: int | None = None,
    ):
        check_number("train.mean_teacher.burn_in", burn_in, whole=True)
        check_number("train.mean_teacher.score_floor", score_floor, below=1)
        counts = dict(refit_period=refit_period, window=window, max_detections=max_detections)
        if log_period is not None:
            counts["log_period"] = log_period
        for name, value in counts.items():
            check_number(f"train.mean_teacher.{name}", value, least=1, whole=True)
        self.burn_in = burn_in
        self.thresholds = FixedThresholds(0.7, 0.3) if thresholds is None else thresholds
        self.fusion = Fusion() if fusion is None else fusion
        parts = ("thresholds", self.thresholds, ThresholdRule), ("fusion", self.fusion, Fusion)
        for name, part, kind in parts:
            if not isinstance(part, kind):
                raise TypeError(
                    f"train.mean_teacher.{name}: expected an object of d2kd.pseudo, such as "
                    f"L({'FixedThresholds' if name == 'thresholds' else 'Fusion'})(...), found "
                    f"{part!r}."
                )
        self.refit_period, self.window = refit_period, window
        self.log_period = log_period
        self.score_floor, self.max_detections = score_floor, max_detections
        # True boxes, and the labeled images that have them, since the run began.
        self._objects, self._labeled_images = 0, 0
        # The teacher's labels and regions to ignore, and their images, since the last record.
        self._boxes, self._ignored, self._images = 0, 0, 0
        self._lacking = 0  # images that lacked labels since the last record
        # The weak views that were labeled last, with the teacher's detections in them.
        self._last: tuple[list[Tensor], list[Detections]] = ([], [])
        self._watch = CollapseWatch()

    def connect(
        self, student: nn.Module, ema: EMA | None, num_classes: int, log_period: int = 20
    ) -> None:
        """Give it the detector that is trained, and its average.

        Args:
            student: the student of a distiller, on its device.
            num_classes: K.
            log_period: `train.log_period`, used where the hook has none of its own.

        Raises:
            TypeError: the losses of this kind of detector cannot be masked.
            ValueError: there is no average, or fixed thresholds have impossible values.
        """
        if ema is None:
            raise ValueError(
                "train.ema.decay: expected a decay, because train.mean_teacher labels by the "
                "average of the student, found 0. Set train.ema=dict(decay=0.999)."
            )
        with mask_partial_labels(student, _nothing_known(num_classes)):
            pass  # refuses a detector whose losses cannot be masked
        self.num_classes = num_classes
        self.fits = ThresholdFits(self.thresholds, self.refit_period, self.window, num_classes)
        self._log_period = self.log_period or log_period
        self._ema = ema
        self._student = student
        self._evaluated_student = _share_weights(student)
        self._teacher = _share_weights(ema.model)
        for model in (self._evaluated_student, self._teacher):
            set_output_limits(model, self.score_floor, self.max_detections, num_classes)

    def label_batches(self, loader: Loader) -> Loader:
        """A loader like the given one, in whose batches the teacher has labeled the images."""

        def labeled(step: int, seed: int) -> Iterator[list[dict]]:
            self._ema.synchronize()  # here, because a resumed run does so at the same step
            return map(self._label, loader(step, seed))

        return labeled

    # One batch

    def _label(self, batch: list[dict]) -> list[dict]:
        batch = [dict(x) for x in batch]
        weak = [take_weak_view(x) for x in batch]
        missing = np.stack([self._missing(x) for x in batch])  # (N, K)
        for x, lacks in zip(batch, missing, strict=True):
            if not lacks.any():
                self._objects += len(x["instances"])
                self._labeled_images += 1
        if self.trainer.iter < self.burn_in:
            return batch
        unlabeled = [i for i, lacks in enumerate(missing) if lacks.any()]
        self._lacking += len(unlabeled)
        labeled = [i for i, lacks in enumerate(missing) if not lacks.any()]
        searched = unlabeled + (labeled if self.fits.needs_truths else [])
        found = dict(
            zip(searched, self._detect(self._teacher, [weak[i] for i in searched]), strict=True)
        )
        thresholds = self.fits.update(
            self.trainer.iter,
            [found[i] for i in unlabeled],
            [(found[i], truth(batch[i])) for i in labeled if i in found],
        )
        if thresholds is None:
            return batch
        self._last = [weak[i] for i in unlabeled], [found[i] for i in unlabeled]
        for i in unlabeled:
            own = found[i][missing[i][found[i].classes]]
            size = weak[i].shape[-2:]
            labels = self.fusion([own], missing[i][None], [thresholds], size)
            labels = without_slivers(labels)
            self._images += 1
            self._boxes += int((~labels.ignore).sum())
            self._ignored += int(labels.ignore.sum())
            if is_kept(labels):
                batch[i] = with_labels(batch[i], labels)
        return batch

    def _missing(self, x: dict) -> np.ndarray:
        """(K,) bool, the classes that an image lacks labels of."""
        missing = np.zeros(self.num_classes, dtype=bool)
        if x.get("relabel"):
            missing[:] = True
        elif x.get("annotated_classes") is not None:
            missing[:] = True
            missing[list(x["annotated_classes"])] = False
        return missing

    @torch.no_grad()
    def _detect(self, model: Any, images: Sequence[Tensor]) -> list[Detections]:
        if not images:
            return []
        inputs = [{"image": x, "height": x.shape[1], "width": x.shape[2]} for x in images]
        device = next(model.parameters()).device.type
        dtype = getattr(self.trainer, "amp_dtype", None)
        try:
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                outputs = model(inputs)
        except AssertionError as e:  # raised by Boxes.clip
            if "NaN" not in str(e):
                raise
            raise FloatingPointError(
                f"iteration {self.trainer.iter}: expected finite boxes of the mean teacher, found "
                f"NaN or infinite ones. The training diverged. Lower optimizer.lr, or lengthen the "
                f"warm-up."
            ) from e
        found = [detections(y["instances"]) for y in outputs]
        # A detector without such limits, such as DETR, returns a fixed number of boxes.
        return [x[x.scores > self.score_floor][: self.max_detections] for x in found]

    # What it logs

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._log_period:
            return
        # It does not label during the burn-in, nor in the whole interval in which that ends.
        if self._images and comm.is_main_process():
            self._record()
        elif self.trainer.iter >= self.burn_in + self._log_period and comm.is_main_process():
            self._watch.warn_of_nothing(self.trainer.iter, self._why_nothing())
        self._boxes = self._ignored = self._images = self._lacking = 0

    def _why_nothing(self) -> str:
        if not self._lacking:
            return (
                f"no image of the last {self._log_period} steps lacks labels. Add images without "
                f"labels (load_unlabeled), or let it replace labels (relabel)."
            )
        name = type(self.thresholds).__name__
        if self.fits.needs_truths and not self._labeled_images:
            return (
                f"{name} is fitted on images with the labels of all classes, and there was none. "
                f"Add such images, or use other thresholds."
            )
        return f"{name} has not found thresholds yet."

    def _record(self) -> None:
        thresholds = self.fits.thresholds
        assert thresholds is not None
        boxes = self._boxes / self._images
        objects = self._objects / self._labeled_images if self._labeled_images else None
        weak, found = self._last
        agrees = agreement(found, self._detect(self._evaluated_student, weak), thresholds)
        apart = divergence(self._ema.model.parameters(), self._student.parameters())
        scalars = {
            "boxes_per_image": boxes,
            "ignored_per_image": self._ignored / self._images,
            "high_threshold": float(thresholds.high.mean()),
            "divergence": apart,
        }
        if agrees is not None:
            scalars["agreement"] = agrees
        self.trainer.storage.put_scalars(
            **{f"mean_teacher/{name}": value for name, value in scalars.items()}
        )
        self._watch.check(
            self.trainer.iter, boxes=boxes, objects=objects, agreement=agrees, divergence=apart
        )

    # Exact resume

    def state_dict(self) -> dict[str, Any]:
        return {
            "objects": self._objects,
            "labeled_images": self._labeled_images,
            "since_record": [self._boxes, self._ignored, self._images, self._lacking],
            "watch": self._watch.state_dict(),
            **self.fits.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._objects, self._labeled_images = state_dict["objects"], state_dict["labeled_images"]
        if "watch" in state_dict:  # not in a checkpoint of an earlier version
            counts = state_dict["since_record"]
            self._boxes, self._ignored, self._images, self._lacking = counts
            self._watch.load_state_dict(state_dict["watch"])
        self.fits.load_state_dict(state_dict)


def _share_weights(model: nn.Module) -> Any:
    """A copy in evaluation mode that has the same tensors, so that it changes with the model.

    Its settings, such as the score threshold of its inference, are its own.
    """
    tensors = {id(x): x for x in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, tensors).eval()


def _nothing_known(num_classes: int) -> Targets:
    """Targets of an image without labels."""
    none = torch.zeros(1, 0)
    return Targets(
        boxes=torch.zeros(1, 0, 4),
        classes=none.long(),
        valid=none.bool(),
        sizes=torch.ones(1, 2),
        counts=(0,),
        annotated=torch.zeros(1, num_classes, dtype=torch.bool),
    )
