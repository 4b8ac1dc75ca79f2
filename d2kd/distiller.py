"""The meta-architecture that trains a student with a frozen teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from .frozen import check_input_format
from .inherit import Inherited, inherit_weights
from .knowledge import Knowledge
from .loading import build_detector
from .loss_weights import LossWeights
from .methods import Methods
from .partial_labels import mask_partial_labels
from .readers import check_same_anchors, get_reader, num_classes
from .resolution import check_fits_square
from .targets import Targets
from .teacher import Teacher
from .upright import check_upright
from .values import check_flag

__all__ = ["Distiller"]

logger = logging.getLogger(__name__)

# Below this share of the student's neck and head, `inherit=True` hardly does what its name says.
_INHERITS_LITTLE = 0.5


class Distiller(nn.Module):
    """A student detector with one more child module, `distillation`.

    The distiller shares the student's children, parameters and buffers, under the student's own
    names. So everything that depends on names (checkpoints, weight decay, layer-wise learning
    rates, freezing, EMA) works as for the student alone, and a checkpoint loads into the student's
    own config. In training, the distiller returns the student's losses and one more loss for each
    method. In evaluation, it is the student. Without methods, it is the student in training, too.

    Args:
        student: any detector that `d2kd.readers.get_reader` knows, or what `build_detector` takes.
            Without methods, any module that takes Detectron2's inputs and returns its losses.
        teacher: a `Teacher`. It may be None only without methods.
        methods: the distillation methods by name.
        inherit: start the student with the teacher's tensors outside the bottom-up backbone that
            fit by name and shape, as FGD and PGD do; see `inherit_weights`.
        same_classes: refuse a teacher whose number of classes differs from the student's.
        teacher_assigns: assign the student's boxes by the teacher's predictions, as PGD does for
            DDOD. This needs a student whose label assignment depends on predictions.
        input_format: channel order of the images that the data loader gives, "BGR" or "RGB".
            Default: the student's `input_format` if it has one, else "BGR", as in Detectron2.
        setup: for a student by the yacs config of a project; see
            `d2kd.loading.load_detector_config`.
        log_period: steps between two records of the methods' terms and ratios.
        balance_period: steps between two measurements of all gradients at the neck, for methods
            with `balance`. One measurement costs about as much as the backward pass of the head and
            of the methods.

    Raises:
        TypeError: no reader knows the student, and there are methods.
        ValueError: student, teacher and methods do not fit, or the student finds rotated boxes.
    """

    # A Detectron2 detector: nn.Module declares none of its attributes.
    student: Any
    distillation: Methods

    def __init__(
        self,
        *,
        student: nn.Module | DictConfig | str,
        teacher: Teacher | None = None,
        methods: Methods | None = None,
        inherit: bool = False,
        same_classes: bool = True,
        teacher_assigns: bool = False,
        input_format: str | None = None,
        setup: Callable[[Any], Any] | str | None = None,
        log_period: int = 20,
        balance_period: int = 20,
    ):
        super().__init__()
        for name, flag in dict(
            inherit=inherit, same_classes=same_classes, teacher_assigns=teacher_assigns
        ).items():
            check_flag(f"Distiller.{name}", flag)
        built = build_detector(student, setup=setup)
        check_upright(built.model, "student")
        # Without methods, the student only has to train by itself.
        needs_reader = bool(methods) or teacher is not None
        self._reader: Any = get_reader(built.model) if needs_reader else None
        if methods and teacher is None:
            raise ValueError(
                f"Distiller.teacher: expected one for the methods {', '.join(methods)}, which need "
                f"a teacher, found none"
            )
        if teacher is not None and not methods and not inherit:
            logger.warning(
                "Distiller.methods: expected at least one, since there is a teacher, found none. "
                "The student trains without distillation. Add methods, or leave out the teacher."
            )
        if inherit and teacher is None:
            raise ValueError(
                "Distiller.teacher: expected one, because inherit=True needs a teacher, found none"
            )
        self._adopt(built.model)
        self.distillation = Methods() if methods is None else methods
        self.teacher = teacher
        self.input_format = check_input_format(input_format or built.input_format, built.model)
        features = frozenset({"features"})
        self._needs = features.union(*(m.needs for m in self._methods))
        self.teacher_needs = features.union(*(m.teacher_needs for m in self._methods))
        self.teacher_assigns = teacher_assigns
        if teacher is not None:
            self._check_classes(teacher, same_classes)
            for name, method in zip(self.distillation, self._methods, strict=True):
                if teacher.image_size is not None:
                    teacher.check_needs(f"methods.{name}", method.teacher_needs)
                method.setup(self._reader, teacher.reader)
        if teacher_assigns:
            self._check_assignment()
            if teacher is not None and teacher.image_size is not None:
                teacher.check_needs("Distiller.teacher_assigns", ("boxes", "logits"))
            self.teacher_needs |= {"logits", "boxes"}
        self.loss_weights = LossWeights(dict(self.distillation.items()), log_period, balance_period)
        self._inherits = inherit
        self._inherited: Inherited | None = None
        self.inherit()

    @property
    def _methods(self) -> list[Any]:
        return list(self.distillation.values())

    def _adopt(self, student: nn.Module) -> None:
        """Share the student's children, parameters and buffers.

        The dicts of parameters and buffers are the same objects, so that moving, casting or loading
        the distiller does the same to the student. The student itself is not a child module.
        """
        if "distillation" in student._modules:
            raise ValueError(
                "Distiller: expected a student without a child named 'distillation', found one"
            )
        self.__dict__["student"] = student
        self._parameters = student._parameters
        self._buffers = student._buffers
        self._non_persistent_buffers_set = student._non_persistent_buffers_set
        self._modules.update(student._modules)

    def _check_classes(self, teacher: Teacher, same_classes: bool) -> None:
        counts = self._reader.num_classes, teacher.reader.num_classes
        if same_classes and all(counts) and counts[0] != counts[1]:
            raise ValueError(
                f"student ({self._reader.name}) and teacher ({teacher.reader.name}): expected "
                f"the same number of classes, found {counts[0]} and {counts[1]}. Set num_classes "
                f"alike, or Distiller(same_classes=False) to distill features only."
            )

    def _check_assignment(self) -> None:
        if self.teacher is None or not self.distillation:
            raise ValueError("Distiller.teacher_assigns: expected at least one method, found none")
        if not hasattr(self._reader, "guide_assignment"):
            raise ValueError(
                f"Distiller.teacher_assigns: expected a student whose label assignment depends on "
                f"predictions (DDOD), found {self._reader.name}. Leave it out."
            )
        check_same_anchors(self._reader, self.teacher.reader, "Distiller.teacher_assigns")
        for name, method in self.distillation.items():
            if getattr(method, "assigner", "teacher") != "teacher":
                raise ValueError(
                    f"methods.{name}.assigner: expected 'teacher', because teacher_assigns=True "
                    f"assigns the boxes of the student's own losses by the teacher's predictions, "
                    f"found {method.assigner!r}."
                )

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        self.student.train(mode)
        return self

    def inherit(self) -> None:
        """Copy the fitting tensors of the teacher's neck and head, if `inherit` is set.

        Call it again after loading other initial weights, because they overwrite the copies.
        `train_net.py` does this.
        """
        if not self._inherits or self.teacher is None:
            return
        inherited = inherit_weights(self._reader, self.teacher.reader)
        if inherited == self._inherited:
            return  # said before
        self._inherited = inherited
        logger.info("Inherited from the teacher: %s", inherited)
        if inherited.share < _INHERITS_LITTLE:
            logger.warning(
                "inherit=True copied little from the teacher: %s. Give the student the neck and "
                "head widths of its teacher, or set inherit=False.",
                inherited,
            )

    def forward(self, batched_inputs: Sequence[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: Detectron2's list of dicts, one for each image.

        Returns:
            in training, loss name -> scalar: the student's losses and, for each method,
            `loss_distill_<name>`; else the student's output.
        """
        check_fits_square(self.student, batched_inputs)
        if not self.training:
            return self.student(batched_inputs)
        if not self.distillation:
            return self._train_alone(batched_inputs)
        device = next(self.student.parameters()).device
        # Copy the images once for both networks. Each of them would make its own copy.
        batched_inputs = [{**x, "image": x["image"].to(device)} for x in batched_inputs]
        targets = Targets.from_inputs(batched_inputs, device, self._reader.num_classes)
        return self._distill(batched_inputs, targets)

    def _train_alone(self, batched_inputs: Sequence[dict]) -> dict[str, Tensor]:
        if not all("instances" in x and x["instances"].has("gt_boxes") for x in batched_inputs):
            # A semantic segmentor, for example. Without boxes, no label of a box is missing.
            return self.student(batched_inputs)
        device = next(self.student.parameters()).device
        targets = Targets.from_inputs(batched_inputs, device, num_classes(self.student))
        with mask_partial_labels(self.student, targets):
            return self.student(batched_inputs)

    def _distill(self, batched_inputs: Sequence[dict], targets: Targets) -> dict[str, Tensor]:
        factors = self.loss_weights.schedule_factors()
        teacher = Knowledge()

        def run_teacher(images: Tensor) -> None:
            nonlocal teacher
            assert self.teacher is not None
            teacher = self.teacher.to(images.device)(
                batched_inputs,
                input_format=self.input_format,
                padded_size=(images.shape[-2], images.shape[-1]),
                needs=self.teacher_needs,
            )
            if self.teacher_assigns:
                self._reader.guide_assignment(teacher)

        # The teacher runs as soon as the student has padded its batch. Its predictions may be what
        # the student's boxes are assigned by, and its peak of memory is over before the student's
        # begins. If all methods are paused by their schedules, it does not run.
        runs = self.teacher_assigns or any(factors.values())
        with (
            self._reader.capture(self._needs, on_images=run_teacher if runs else None) as captured,
            mask_partial_labels(self.student, targets),
        ):
            losses = self.student(batched_inputs)
        task = sum(losses.values())
        neck = list(captured.features.values())
        with torch.autocast(task.device.type, enabled=False):
            student = self._reader.finalize(captured, self._needs)
            terms = {
                name: method(student, teacher, targets)
                for name, method in self.distillation.items()
                if factors[name]
            }
            weighted = self.loss_weights.weigh(factors, task, terms, neck)
        return {
            **losses,
            **{f"loss_distill_{name}": loss for name, loss in weighted.items()},
        }
