"""The networks of a picture, and what they show about one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from ..distiller import Distiller
from ..knowledge import Knowledge
from ..matching import Detections
from ..methods import PFI, PGD, MCDropout, Method, RankMimic
from ..readers import get_reader
from ..teacher import Teacher

__all__ = ["Networks"]

M = TypeVar("M", bound=Method)


@dataclass(frozen=True)
class Networks:
    """Students, their teacher, and the methods between them.

    Attributes:
        students: role, such as "student" -> detector. All have one architecture.
        teacher: None without one. A `FeatureTeacher` has no detections.
        methods: name -> method, after its `setup` with a student and the teacher.
        input_format: channel order of the images that all of them get, and that students expect.
    """

    students: Mapping[str, nn.Module]
    teacher: Teacher | None = None
    methods: Mapping[str, Method] = field(default_factory=dict)
    input_format: str = "BGR"

    @classmethod
    def of(cls, model: nn.Module, input_format: str) -> Networks:
        """The networks of a model in training: a distiller or a detector.

        Args:
            input_format: channel order of the images; a distiller knows it by itself.
        """
        if not isinstance(model, Distiller):
            return cls({"detector": model}, input_format=input_format)
        methods: Any = dict(model.distillation.items())
        return cls({"student": model.student}, model.teacher, methods, model.input_format)

    def find(self, kind: type[M]) -> M | None:
        """The first method of a class; None if there is none."""
        return next((m for m in self.methods.values() if isinstance(m, kind)), None)

    @property
    def detectors(self) -> list[str]:
        """Roles of the networks that find boxes: all but a `FeatureTeacher`."""
        detects = self.teacher is not None and self.teacher.reader.num_classes
        return [*self.students, *(["teacher"] if detects else [])]

    @property
    def dropout(self) -> MCDropout | None:
        """UET's stage of the first method that has one."""
        stages = (getattr(m, "uncertainty", None) for m in self.methods.values())
        return next((stage for stage in stages if isinstance(stage, MCDropout)), None)

    def detect(self, role: str, inputs: Mapping[str, Any]) -> Detections | None:
        """What a network detects in an image; None if it finds no boxes.

        Args:
            role: "teacher", or the role of a student.
        """
        if role not in self.detectors:
            return None
        if role != "teacher":
            (output,) = self.students[role]([dict(inputs)])
        else:
            assert self.teacher is not None
            (output,) = self.teacher.detect([dict(inputs)], input_format=self.input_format)
        found = output.get("instances")
        if found is None or not found.has("pred_boxes"):
            return None
        return Detections.from_instances(found)

    def look(self, inputs: Mapping[str, Any], *, with_objects: bool) -> dict[str, Knowledge]:
        """What each network shows about an image: "teacher" or a student's role -> knowledge.

        Args:
            with_objects: whether the methods that need the objects of the image are drawn.
        """
        needs = {"features"}
        if self.students and self.find(PFI):
            needs |= {"logits"}
        if self.students and with_objects and self.find(RankMimic):
            needs |= {"logits", "boxes"}
        teacher_needs = needs | ({"logits", "boxes"} if with_objects and self.find(PGD) else set())
        seen: dict[str, Knowledge] = {}
        padded: tuple[int, int] = (inputs["image"].shape[-2], inputs["image"].shape[-1])
        for role, model in self.students.items():
            reader = get_reader(model)
            seen[role] = reader.run(reader.images([dict(inputs)]), needs)
            padded = seen[role].padded_size
        if self.teacher is not None:
            seen["teacher"] = self.teacher(
                [dict(inputs)],
                input_format=self.input_format,
                padded_size=padded,
                needs=teacher_needs,
            )
        return seen

    def reader(self, role: str) -> Any:
        """The reader of "teacher", or of the student with this role."""
        if role == "teacher":
            assert self.teacher is not None
            return self.teacher.reader
        return get_reader(self.students[role])

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        if self.students:
            return next(next(iter(self.students.values())).parameters()).device
        assert self.teacher is not None
        return self.teacher.device
