"""The meta-architecture that trains a student with a frozen teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .inherit import inherit_weights
from .knowledge import Knowledge
from .loading import build_detector, check_input_format
from .loss_weights import LossWeights
from .methods import Methods
from .partial_labels import mask_partial_labels
from .readers import check_same_anchors, get_reader
from .targets import Targets
from .teacher import Teacher

__all__ = ["Distiller"]

logger = logging.getLogger(__name__)


class Distiller(nn.Module):
    """The student with one more child, `distillation`.

    The student's own children, parameters and buffers are this module's, under the student's own
    names. Whatever goes by names (checkpoints, weight decay, layer-wise learning rates, freezing,
    EMA) works as for the plain student, and a checkpoint loads into the plain student's config.
    In training it gives the student's losses and one more for each method; in evaluation it is
    the student. Without methods it is the student in training too.

    Args:
        student: any detector that `d2kd.readers.get_reader` knows, or whatever `build_detector`
            takes.
        teacher: a `Teacher`; None only without methods.
        methods: the distillation methods by name.
        inherit: start the student from all of the teacher's tensors outside its bottom-up
            backbone that fit by name and shape (FGD and PGD do; see `inherit`).
        same_classes: refuse a teacher with another number of classes than the student's.
        teacher_assigns: assign the student's boxes by the teacher's predictions, as PGD does for
            DDOD; for students whose label assignment depends on predictions.
        input_format: channel order of the images that the data loader gives, "BGR" or "RGB".
            Default: the student's `input_format` where it has one, else "BGR", as in Detectron2.
        log_period: steps between two records of the methods' terms and ratios.
        balance_period: steps between two measurements of all gradients at the neck, which are
            made where a method has `balance`. One costs about the backward pass of the head and
            of the methods.

    Raises:
        TypeError: a detector that no reader knows.
        ValueError: student, teacher and methods do not fit.
    """

    def __init__(
        self,
        *,
        student: nn.Module | str,
        teacher: Teacher | None = None,
        methods: Methods | None = None,
        inherit: bool = False,
        same_classes: bool = True,
        teacher_assigns: bool = False,
        input_format: str | None = None,
        log_period: int = 20,
        balance_period: int = 20,
    ):
        super().__init__()
        built = build_detector(student)
        student = built.model
        self._reader = get_reader(student)
        if methods and teacher is None:
            raise ValueError(f"Distiller: methods {', '.join(methods)} need a teacher, found none")
        if inherit and teacher is None:
            raise ValueError("Distiller: inherit=True needs a teacher, found none")
        if "distillation" in student._modules:
            raise ValueError("Distiller: the student has a child named 'distillation' already")
        # Not a child: its children are. The dicts are shared, so that moving, casting or
        # loading this module does the same to the student.
        self.__dict__["student"] = student
        self._parameters = student._parameters
        self._buffers = student._buffers
        self._non_persistent_buffers_set = student._non_persistent_buffers_set
        self._modules.update(student._modules)
        self.distillation = methods if methods is not None else Methods()

        self.teacher = teacher
        self.input_format = check_input_format(input_format or built.input_format, student)
        methods = self.distillation.values()
        self._needs = frozenset({"features"}).union(*(m.needs for m in methods))
        # What the teacher is asked for.
        self.teacher_needs = frozenset({"features"}).union(*(m.teacher_needs for m in methods))
        if teacher is not None:
            classes = self._reader.num_classes, teacher.reader.num_classes
            if same_classes and classes[0] != classes[1]:
                raise ValueError(
                    f"student ({self._reader.name}) and teacher ({teacher.reader.name}): expected "
                    f"the same number of classes, found {classes[0]} and {classes[1]}. Set "
                    f"num_classes alike, or Distiller(same_classes=False) to distil features only."
                )
        for method in methods:
            method.setup(self._reader, teacher.reader)
        self.teacher_assigns = teacher_assigns
        if teacher_assigns:
            self._check_assignment()
            self.teacher_needs |= {"logits", "boxes"}
        self.loss_weights = LossWeights(self.distillation, log_period, balance_period)
        self._inherits = inherit
        self.inherit()

    def _check_assignment(self) -> None:
        if not self.distillation:
            raise ValueError("Distiller.teacher_assigns: expected a method at least, found none")
        if not hasattr(self._reader, "guide_assignment"):
            raise ValueError(
                f"Distiller.teacher_assigns: expected a student whose label assignment depends on "
                f"predictions (DDOD), found {self._reader.name}. Leave it out."
            )
        check_same_anchors(self._reader, self.teacher.reader, "Distiller.teacher_assigns")
        for name, method in self.distillation.items():
            if getattr(method, "assigner", "teacher") != "teacher":
                raise ValueError(
                    f"methods.{name}.assigner: expected 'teacher', by whose predictions "
                    f"teacher_assigns=True assigns the boxes of the student's own losses, found "
                    f"{method.assigner!r}."
                )

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        self.student.train(mode)
        return self

    def inherit(self) -> None:
        """Copy what fits of the teacher's neck and head into the student, if `inherit` is set.

        Call it again after loading any other initial weights, which would overwrite the copies;
        `train_net.py` does.
        """
        if self._inherits:
            report = inherit_weights(self._reader, self.teacher.reader)
            logger.info("Inherited from the teacher: %s", report)

    def forward(self, batched_inputs: Sequence[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: Detectron2's list of dicts, one for each image.

        Returns:
            in training, loss name -> scalar: the student's losses and, for each method,
            `loss_distill_<name>`; else the student's output.
        """
        if not self.training:
            return self.student(batched_inputs)
        device = next(self.student.parameters()).device
        # Once for both networks, which would copy them apart.
        batched_inputs = [{**x, "image": x["image"].to(device)} for x in batched_inputs]
        targets = Targets.from_inputs(batched_inputs, device, self._reader.num_classes)
        if not self.distillation:
            with mask_partial_labels(self.student, targets):
                return self.student(batched_inputs)
        scheduled = self.loss_weights.schedule_factors()
        taught: list[Knowledge] = []

        def teach(images: Tensor) -> None:
            taught.append(
                self.teacher.to(images.device)(
                    batched_inputs,
                    input_format=self.input_format,
                    padded_size=tuple(images.shape[-2:]),
                    needs=self.teacher_needs,
                )
            )
            if self.teacher_assigns:
                self._reader.guide_assignment(taught[0])

        # The teacher runs as soon as the student has padded its batch: its predictions may be
        # what the student's boxes are assigned by, and the peak of its memory is over before the
        # student's begins.
        asked = self.teacher_assigns or any(scheduled.values())
        with (
            self._reader.capture(self._needs, on_images=teach if asked else None) as seen,
            mask_partial_labels(self.student, targets),
        ):
            losses = self.student(batched_inputs)
        task = sum(losses.values())
        neck = list(seen.features.values())
        with torch.autocast(task.device.type, enabled=False):
            seen = self._reader.finalize(seen, self._needs)
            terms = {
                name: method(seen, taught[0], targets)
                for name, method in self.distillation.items()
                if scheduled[name]
            }
            weighted = self.loss_weights.weigh(scheduled, task, terms, neck)
        return {
            **losses,
            **{f"loss_distill_{name}": loss for name, loss in weighted.items()},
        }
