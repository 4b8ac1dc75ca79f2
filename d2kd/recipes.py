"""The configs that come with d2kd, by name, as Detectron2's `model_zoo` gives its own."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig

__all__ = ["CONFIGS", "config_path", "get_config", "get_config_file", "list_configs"]

CONFIGS = Path(__file__).parent / "model_zoo" / "configs"
"""The folder of the configs and of the students' weights."""


def get_config(config_path: str) -> DictConfig:
    """Load a config of d2kd.

    The fields of `train` that the config leaves out are not filled in; `d2kd.config.load_config`
    with the path from `get_config_file` does that.

    Args:
        config_path: name of the file relative to `configs/`, for example
            "gfl/gfl_R_50_FPN_1x_bs16_fgd.py".

    Raises:
        FileNotFoundError: no config has this name.
    """
    return LazyConfig.load(get_config_file(config_path))


def get_config_file(config_path: str) -> str:
    """The path of a config of d2kd, for `--config-file`, `Teacher.model` or `load_config`.

    Args:
        config_path: see `get_config`.

    Raises:
        FileNotFoundError: no config has this name.
    """
    path = CONFIGS / str(config_path)
    if path.suffix != ".py" or not path.is_file():
        raise FileNotFoundError(
            f"expected the path of a config, or the name of one of d2kd's, such as "
            f"'gfl/gfl_R_50_FPN_1x_bs16_fgd.py', found {config_path!r}.{_nearest(str(config_path))}"
        )
    return str(path)


def config_path(name: str) -> str:
    """The path of a config, or of one of d2kd's or of Detectron2's model zoo by its name.

    Raises:
        FileNotFoundError: there is none; the message has the nearest names.
    """
    if Path(name).is_file():
        return name
    try:
        return get_config_file(name.removeprefix("configs/"))
    except FileNotFoundError:
        from detectron2 import model_zoo  # imports pkg_resources, which is slow and warns

        with contextlib.suppress(RuntimeError):  # it has no such name
            return model_zoo.get_config_file(name)
        raise


def list_configs() -> list[str]:
    """Names of all configs that can be trained with or that label, sorted.

    Files that other configs import (schedules, models, shared parts) are left out.
    """
    paths = (path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.py"))
    return sorted(name for name in paths if "common" not in name)


def _nearest(config_path: str) -> str:
    names = list_configs()
    by_file = {name.rsplit("/", 1)[-1]: name for name in reversed(names)}
    file = config_path.rsplit("/", 1)[-1].removesuffix(".py") + ".py"
    near = difflib.get_close_matches(config_path, names, n=3)
    near += [by_file[x] for x in difflib.get_close_matches(file, by_file, n=3)]
    near = list(dict.fromkeys(near))[:3]
    return f" Did you mean {' or '.join(near)}?" if near else ""
