"""Train with distillation for three steps and write the losses to a JSON file.

The script runs with torchrun or as a single process.
"""

import json
import os
import sys

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from d2kd import Distiller, Teacher
from d2kd.launch import launch
from d2kd.methods import FGD, Methods, Mimic
from tests import toys


def main(args) -> None:
    torch.manual_seed(0)
    inputs = [toys.image(seed=0), toys.image(seed=1)]
    inputs = inputs[comm.get_rank() :: comm.get_world_size()]
    # Without batch norm and with equal boxes, one process with both images computes the same losses
    # as two processes with one image each. RetinaNet divides by a running mean of the positives in
    # each process's own batch.
    student = toys.retinanet(norm="")
    student.loss_normalizer = 100.0 * len(inputs)
    teacher = Teacher(toys.retinanet(width=6, channels=12, norm=""), None)
    methods = Methods(fgd=FGD(), mimic=Mimic(balance=0.5))
    model = Distiller(student=student, teacher=teacher, methods=methods)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model = create_ddp_model(model, device_ids=None)
    history = []
    with EventStorage():
        for _ in range(3):
            losses = model(inputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            ranks = comm.all_gather({k: v.item() for k, v in losses.items()})
            history.append({k: sum(r[k] for r in ranks) / len(ranks) for k in losses})
    if comm.is_main_process():
        with open(args, "w") as f:
            json.dump({"ranks": comm.get_world_size(), "history": history}, f)


if __name__ == "__main__":
    if len(sys.argv) == 3:  # a process of torchrun
        launch(main, sys.argv[1])
        # In about one of thirty runs, gloo in torch 2.15 aborted while the interpreter shut down,
        # after all results were written. This test is not about that.
        os._exit(0)
    else:
        main(sys.argv[1])
