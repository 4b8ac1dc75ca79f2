"""Every field of `train`, with its default. `load_config` fills in what a config leaves out.

Fields without a mark are Detectron2's, with the defaults of its own configs/common/train.py. Fields
marked [d2kd] are ours: Detectron2's own training script does not read them.
"""

train = dict(
    output_dir="./output",  # folder of checkpoints, logs, metrics and the config
    init_checkpoint="",  # path or URL of the student's initial weights; "" for none
    device="cuda",  # or "cpu"
    seed=-1,  # [d2kd] of the whole run; negative for a random one, which checkpoints remember
    max_iter=90000,  # steps of the optimizer
    # [d2kd] Batches whose mean gradient makes one step. A step sees `accumulate` times
    # `dataloader.train.total_batch_size` images.
    accumulate=1,
    # [d2kd] Largest L2 norm of the whole gradient, of student and methods together; 0 for no limit.
    clip_grad_norm=0.0,
    # Mixed precision of the student. `model.teacher.dtype` sets the teacher's.
    amp=dict(
        enabled=False,
        dtype="float16",  # [d2kd] "float16", which scales the loss, or "bfloat16"
    ),
    # [d2kd] Average of the student's weights, which keeps the share `decay`, such as 0.999, in each
    # step; 0: none. It is evaluated (`ema/bbox/AP`) and saved beside the student.
    ema=dict(decay=0.0),
    mean_teacher=None,  # [d2kd] L(MeanTeacher)(...) labels images by this average; docs/pseudo.md
    best_metric="",  # [d2kd] such as "bbox/AP": the best student is kept as student_best.pth
    # [d2kd] Before training, evaluate the teacher on the first `images` validation images, and stop
    # if its box AP (0 to 100) is below `min_ap`: its weights or channel order may be wrong. 0: no.
    teacher_check=dict(images=0, min_ap=0.0),
    checkpointer=dict(period=5000, max_to_keep=100),  # steps between checkpoints; how many to keep
    eval_period=5000,  # steps between evaluations on the validation images; 0: at the end only
    log_period=20,  # steps between two records of losses
    # [d2kd] Steps between two pictures of a few test images, 0: none; docs/pictures.md
    pictures=dict(period=0, images=3, threshold=0.3),
    writers=dict(wandb=None, mlflow=None),  # [d2kd] options of these, or {}; docs/pictures.md
    ddp=dict(  # options of DistributedDataParallel
        broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False
    ),
)
