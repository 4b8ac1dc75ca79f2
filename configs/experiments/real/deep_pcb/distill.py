"""The student learns from its teacher. The method is given on the command line.

For example: model.methods.pkd._target_=d2kd.methods.PKD
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import Methods

from .student import dataloader, lr_multiplier, optimizer, train
from .student import model as student
from .teacher import model as teacher

teacher.backbone.bottom_up.pretrained = False  # the checkpoint has all weights

model = L(Distiller)(
    student=student,
    teacher=L(Teacher)(
        model=teacher, weights="output/real/deep_pcb/teacher/model_final.pth", dtype="bfloat16"
    ),
    methods=L(Methods)(),
)

train.output_dir = "output/real/deep_pcb/distilled"
