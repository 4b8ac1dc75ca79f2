"""Run a function in each process of a training: on several GPUs, or started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

from .processes import launch_processes

__all__ = ["launch"]


def _check_processes(count: int) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 1 or (gpus and count > gpus):
        most = f" and at most {gpus}, the GPUs of this machine" if gpus else ""
        raise ValueError(f"--num-gpus: expected at least 1{most}, found {count}.")


def launch(main: Callable, args) -> None:
    """Run `main(args)` in each process.

    The processes are started by torchrun, or else by Detectron2's `launch` as the flags say.
    """
    if "RANK" not in os.environ or "LOCAL_WORLD_SIZE" not in os.environ:
        _check_processes(args.num_gpus)

        def start(function: Callable) -> None:
            detectron2_launch(
                function,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )

        launch_processes(start, main, args.num_gpus, args.num_machines)
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        comm.synchronize()
        main(args)
        comm.synchronize()  # torchrun ends all processes as soon as one of them leaves
    finally:
        torch.distributed.destroy_process_group()
