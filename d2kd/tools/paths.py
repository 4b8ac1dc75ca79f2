"""Where d2kd's configs lie: in a checkout and in an installed package. It imports no PyTorch."""

from __future__ import annotations

from pathlib import Path

import d2kd

__all__ = ["configs_folder", "find_config"]


def configs_folder() -> Path:
    """The folder of the configs that come with d2kd."""
    package = Path(d2kd.__file__).parent
    packaged = package / "model_zoo" / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def find_config(name: str) -> Path:
    """Find a config in the current folder or, if there is none of that path, among d2kd's.

    Args:
        name: a path, or a name below d2kd's configs with or without "configs/" in front, for
            example "configs/demo/student.py".

    Returns:
        the absolute path.

    Raises:
        FileNotFoundError: there is no such file.
    """
    own = configs_folder() / name.removeprefix("configs/")
    for path in (Path(name), own):
        if path.is_file():
            return path.absolute()
    raise FileNotFoundError(
        f"expected the path of a config, found no file {name!r} in {Path.cwd()} or among d2kd's "
        f"configs in {configs_folder()}"
    )
