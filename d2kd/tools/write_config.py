"""`d2kd train`: train_net.py, which can write the distiller's config first.

With --config-file, this is train_net.py with all its flags. With --student, --teacher and
--weights, it writes the config of the README's "Distill your detector", prints where the file is,
and trains with it. --method names one method; without it, the config has d2kd's recommended recipe.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("write_config", "d2kd train", sys.argv[1:]))

import argparse
import difflib
import inspect
import keyword
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from d2kd import methods
from d2kd.commands import parse_arguments
from d2kd.files import write_file
from d2kd.launch import launch
from d2kd.loading import (
    load_detector_config,
    load_student_config,
    mapper_format,
    node_input_format,
    zoo_weights,
)
from d2kd.tools import train

__all__ = ["RECOMMENDED", "config_text", "main", "method_classes", "write_config"]

RECOMMENDED = "recommended"  # what --method is by default: d2kd.methods.recommended

SECTIONS = ("dataloader", "lr_multiplier", "model", "optimizer", "train")

EXAMPLES = """\
examples:
  d2kd train --config-file my_distilled.py --num-gpus 8 train.amp.enabled=True
  d2kd train --student my_student.py --teacher COCO-Detection/retinanet_R_101_FPN_3x.yaml \\
      --weights zoo --inherit
"""


def method_classes() -> dict[str, type[methods.Method]]:
    """Name for --method -> class. The name is the name of the method's file in d2kd/methods."""
    classes = (getattr(methods, name) for name in methods.__all__)
    return {
        cls.__module__.rsplit(".", 1)[-1]: cls
        for cls in classes
        if inspect.isclass(cls)
        and issubclass(cls, methods.Method)
        and cls not in (methods.Method, methods.FeatureMethod)
    }


def config_text(
    path: Path,
    student: str,
    teacher: str,
    weights: str,
    method: str,
    *,
    inherit: bool = False,
    input_format: str | None = None,
    dataset_train: Sequence[str] = (),
    output: str | None = None,
    setup: str | None = None,
) -> str:
    """The text of a distiller's LazyConfig.

    Args:
        path: absolute path of the file that will have this text.
        student: absolute path of the student's config, or a name in Detectron2's model zoo. A
            Python file in the same folder is imported, as in the README; any other config is loaded
            by its path or name.
        teacher: absolute path of the teacher's config, or a name in Detectron2's model zoo.
        weights: absolute path or URL of the teacher's checkpoint, or "zoo".
        method: a key of `method_classes()`, or "recommended".
        inherit: start the student with its teacher's neck and head where they fit.
        input_format: channel order of the images; None where the student's config says it.
        dataset_train: names of the data sets to train on. If empty, the student's config says them.
        output: `train.output_dir`. Default: output/ and the name of the file.
        setup: dotted name of the function that adds a project's keys to yacs configs.
    """
    if method == RECOMMENDED:
        imported = ["recommended"]
        node = "recommended()"
    else:
        class_name = method_classes()[method].__name__
        imported = sorted([class_name, "Methods"], key=lambda name: (name != name.upper(), name))
        node = f"L(Methods)({method}=L({class_name})())"
    folder, stem = os.path.split(os.path.splitext(student)[0])
    # LazyConfig.load reads files only.
    python = student.endswith(".py") and os.path.isabs(student)
    imports = [
        "from detectron2.config import LazyCall as L",
        "from d2kd import Distiller, Teacher",
        f"from d2kd.methods import {', '.join(imported)}",
    ]
    importable = python and stem.isidentifier() and not keyword.iskeyword(stem)
    if folder == str(path.parent) and importable:
        names = ", ".join(name for name in SECTIONS if name != "model")
        lines = [*imports, f"from .{stem} import {names}, model as student", ""]
    else:
        load = "LazyConfig.load" if python else "load_student_config"
        imports[0 if python else 1] += ", LazyConfig" if python else f", {load}"
        names = ", ".join("student" if name == "model" else name for name in SECTIONS)
        source = repr(student) + _setup_argument(student, setup)
        lines = [
            *imports,
            "",
            f"_config = {load}({source})",
            f"{names} = (_config[section] for section in {SECTIONS!r})",
        ]
    given = f"model={teacher!r}, weights={weights!r}{_setup_argument(teacher, setup)}"
    lines += [
        "model = L(Distiller)(",
        "    student=student,",
        f"    teacher=L(Teacher)({given}),",
        f"    methods={node},",
    ]
    lines += ["    inherit=True,"] if inherit else []
    lines += [f"    input_format={input_format!r},"] if input_format else []
    lines += [")"]
    if dataset_train:
        lines += [f"dataloader.train.dataset.names = {list(dataset_train)!r}"]
    lines += [f"train.output_dir = {output or f'output/{path.stem}'!r}"]
    return "\n".join(lines) + "\n"


def write_config(args: argparse.Namespace) -> Path:
    """Check the arguments and write the config.

    Args:
        args: from the parser of `main`.

    Returns:
        absolute path of the file. It is not written again if it has this text already.

    Raises:
        FileNotFoundError: a file is missing, or a name is not in the model zoo.
        FileExistsError: there is a file with another text.
        ValueError: an unknown method, or a student's config that lacks a section.
    """
    known = [*method_classes(), RECOMMENDED]
    if args.method not in known:
        near = difflib.get_close_matches(args.method.lower(), known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"--method: expected {', '.join(known)}, found {args.method!r}.{hint}")
    student, teacher = (
        os.path.abspath(x) if os.path.isfile(x) else x for x in (args.student, args.teacher)
    )
    student_config = _check_student(student, bool(args.dataset_train), args.setup)
    if args.setup and not any(_setup_for(x, args.setup) for x in (student, teacher)):
        raise ValueError(
            f"--setup: expected the file of a yacs config (.yaml) as --student or --teacher, found "
            f"{args.student} and {args.teacher}."
        )
    # raises unless it is a file or a name in the zoo
    load_detector_config(teacher, _setup_for(teacher, args.setup))
    weights = args.weights
    if weights == "zoo":
        zoo_weights(teacher)
    elif "://" not in weights:
        if not os.path.isfile(weights):
            raise FileNotFoundError(f"--weights: expected a file, found none at {weights!r}.")
        weights = os.path.abspath(weights)
    own = student if os.path.isabs(student) else os.path.basename(student)
    default = f"{os.path.splitext(own)[0]}_{args.method}.py"
    path = Path(os.path.abspath(args.write_to or default))
    text = config_text(
        path,
        student,
        teacher,
        weights,
        args.method,
        inherit=args.inherit,
        input_format=_input_format(student_config),
        dataset_train=args.dataset_train,
        output=os.path.abspath(args.output) if args.output else None,
        setup=args.setup,
    )
    if path.exists():
        if path.read_text() == text:
            print(f"{path} has this config already")
            return path
        raise FileExistsError(
            f"{path}: expected no file or the same config, found another text. Train with that "
            f"file (d2kd train --config-file {path}), or write to another one (--write-to FILE)."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)
    print(f"Written to {path}:\n\n{text}")
    return path


def _setup_for(config: str, setup: str | None) -> str | None:
    """`setup` for a YAML file; None for a LazyConfig or a name in Detectron2's model zoo."""
    return setup if config.endswith((".yaml", ".yml")) and os.path.isfile(config) else None


def _setup_argument(config: str, setup: str | None) -> str:
    given = _setup_for(config, setup)
    return f", setup={given!r}" if given else ""


def _check_student(source: str, names_data: bool, setup: str | None = None) -> DictConfig:
    if not source.endswith((".py", ".yaml", ".yml")):
        raise ValueError(
            f"--student: expected a LazyConfig (.py) or a yacs config (.yaml), found "
            f"{os.path.basename(source)!r}."
        )
    config = load_student_config(source, _setup_for(source, setup))
    missing = [name for name in SECTIONS if name not in config]
    if missing:
        raise ValueError(
            f"--student: expected a LazyConfig with {', '.join(SECTIONS)}, found no "
            f"{', '.join(missing)} in {source}."
        )
    if "student" in config.model:
        raise ValueError(
            f"--student: expected the config of a detector, found a distiller's in {source}. Train "
            f"with it by --config-file."
        )
    if names_data and OmegaConf.select(config, "dataloader.train.dataset.names") is None:
        raise ValueError(
            f"--dataset-train: expected a student with dataloader.train.dataset.names, found none "
            f"in {source}."
        )
    return config


def _input_format(student: DictConfig) -> str | None:
    """The channel order of the images, where the student's model does not say it."""
    loaded = mapper_format(student, "train")
    return loaded if node_input_format(student.model) is None and loaded != "BGR" else None


def argument_parser() -> argparse.ArgumentParser:
    """The arguments of train_net.py, and those that write a config."""
    parser = train.argument_parser()
    parser.prog, parser.description, parser.epilog = "d2kd train", __doc__, EXAMPLES
    group = parser.add_argument_group("a config for people who have none")
    add = group.add_argument
    zoo = "or a name in Detectron2's model zoo"
    add("--student", help=f"yacs config, LazyConfig with {', '.join(SECTIONS)}, {zoo}")
    add("--teacher", help=f"yacs config, LazyConfig, {zoo}")
    add("--weights", help="the teacher's checkpoint; zoo for the model zoo's")
    add("--setup", metavar="FUNCTION",
        help="function of a project that adds its keys to the yacs configs, such as "
        "point_rend.add_pointrend_config")  # fmt: skip
    add("--method", help=f"{', '.join(method_classes())}; default: {RECOMMENDED}, d2kd's recipe")
    add("--inherit", action="store_true", help="start with the teacher's neck and head")
    add("--dataset-train", nargs="+", default=[], metavar="NAME", help="registered data sets")
    add("--output", metavar="DIR", help="train.output_dir; default: output/<name of the config>")
    add("--write-to", metavar="FILE",
        help="default: <student>_<method>.py, next to the student's config; "
        "in the current folder for a student from the model zoo")  # fmt: skip
    add("--config-only", action="store_true", help="write the config and do not train")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser()
    args = parse_arguments(parser, argv, config=False)
    # Options with several values also swallow the overrides that follow them.
    args.opts = [x for x in args.dataset_train if "=" in x] + args.opts
    args.dataset_train = [x for x in args.dataset_train if "=" not in x]
    required = {flag: getattr(args, flag) for flag in ("student", "teacher", "weights")}
    given = [f"--{flag}" for flag in (*required, "method") if getattr(args, flag)]
    if args.config_file:
        others = given + [
            f"--{name.replace('_', '-')}"
            for name in ("inherit", "setup", "dataset_train", "output", "write_to", "config_only")
            if getattr(args, name)
        ]
        if others:
            parser.error(
                f"expected --config-file alone or --student, found {', '.join(others)} too"
            )
    elif not all(required.values()):
        missing = ", ".join(f"--{flag}" for flag, value in required.items() if not value)
        parser.error(
            f"expected --config-file, or --student, --teacher and --weights; missing: "
            f"{missing if given else '--config-file'}"
        )
    else:
        args.method = args.method or RECOMMENDED
        args.config_file = str(write_config(args))
        if args.config_only:
            return 0
    launch(train.main, args)
    return 0
