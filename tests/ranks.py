"""A distilled run of three steps, under torchrun or alone; writes the losses to a JSON file."""

import json
import os
import sys

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from d2kd import Distiller, Teacher
from d2kd.engine import launch
from d2kd.methods import FGD, Methods, Mimic
from tests import toys


def main(args) -> None:
    torch.manual_seed(0)
    inputs = [toys.image(seed=0), toys.image(seed=1)]
    inputs = inputs[comm.get_rank() :: comm.get_world_size()]
    # No batch norm and equal boxes: what Detectron2 computes for each rank is then comparable.
    # RetinaNet divides by a running mean of the positives in its own batch.
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
    if len(sys.argv) == 3:  # torchrun's processes
        launch(main, sys.argv[1])
        # Torch 2.15's gloo aborted once in about thirty runs while the interpreter shut down, with
        # everything done and written. That is not what is tested here.
        os._exit(0)
    else:
        main(sys.argv[1])
