"""Load LazyConfigs and apply overrides, with errors that name the line or the override.

`resolve_target` says what a node of a config stands for.
"""

from __future__ import annotations

import builtins
import os
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import yaml
from detectron2.config import LazyConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from .plain_errors import describe_error

__all__ = ["apply_overrides", "load_lazy_config", "resolve_target"]

# Detectron2 gives the configs that it executes packages whose names begin so.
_CONFIG_PACKAGE = "detectron2._cfg_loader"


def load_lazy_config(path: str | os.PathLike) -> DictConfig:
    """Load a LazyConfig from a .py or .yaml file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no config, or its code stops with an error. The message has the file
            and the line.
        Exception: errors from other code that the config calls are raised unchanged.
    """
    path = str(path)
    if not path.endswith((".py", ".yaml", ".yml")):
        raise ValueError(f"{path}: expected a config (.py or .yaml), found another kind of file.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"expected a config, found no file at {path!r}.")
    own_import = builtins.__import__
    try:
        cfg = LazyConfig.load(path)
    except Exception as error:
        if describe_error(error) is not None and not isinstance(error, ImportError):
            raise
        found = _describe(path, error)
        if found is None:
            raise
        raise ValueError(found) from error
    finally:
        builtins.__import__ = own_import  # Detectron2 does not restore it after an error
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{path}: expected named sections, found {type(cfg).__name__}.")
    if cfg._is_none():
        raise ValueError(f"{path}: expected named sections, found an empty file.")
    return cfg


def _describe(path: str, error: Exception) -> str | None:
    """What is wrong with a config; None if the error comes from other code."""
    syntax = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error
    if isinstance(syntax, SyntaxError):
        # Detectron2 parses a text without a name, and names the file in a second error.
        words = str(error).split()
        file = next((word for word in words if word.endswith(".py")), syntax.filename or path)
        line = (syntax.text or "").strip()
        return (
            f"{file}, line {syntax.lineno}: expected Python, found {line[:100]!r} ({syntax.msg})."
        )
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "another text"
        return f"{path}{where}: expected YAML, found: {problem}."
    if isinstance(error, UnicodeDecodeError):
        return f"{path}: expected a text in UTF-8, found other bytes ({error.reason})."
    where, own = path, False
    for file, number, in_config in _frames(error.__traceback__):
        own = in_config
        if in_config:
            where = f"{file}, line {number}"
    message = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, KeyError) and not own and _last_file(error).endswith("config/lazy.py"):
        return f"{where}: expected a name that the imported config has, found {message}."
    # Errors from deeper code are the user's, too, if they are about names and modules.
    if not own and not isinstance(error, (ImportError, OmegaConfBaseException)):
        return None
    return f"{where}: expected a config that runs, found {type(error).__name__}: {message}"


def _last_file(error: Exception) -> str:
    """File of the code that raised an error."""
    files = [file for file, _, _ in _frames(error.__traceback__)]
    return files[-1].replace(os.sep, "/") if files else ""


def _frames(tb: TracebackType | None) -> Iterator[tuple[str, int, bool]]:
    """File, line, and whether it is a config, of each frame from the outside in."""
    for frame, line in traceback.walk_tb(tb):
        file = frame.f_code.co_filename
        if file.startswith("<"):  # frozen code of Python's import system
            continue
        package = str(frame.f_globals.get("__package__") or "")
        yield file, line, package.startswith(_CONFIG_PACKAGE)


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Change fields of a config in place.

    Args:
        cfg: the config.
        overrides: changes such as "train.max_iter=1000", in Hydra's syntax.

    Raises:
        ValueError: an override is malformed, or does not fit the config.
    """
    for override in overrides:
        try:
            if override.startswith("="):
                raise ValueError("expected a field before the sign, found none")
            LazyConfig.apply_overrides(cfg, [override])
        except Exception as error:  # Hydra's and OmegaConf's errors have no common class
            message = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                f"override {override!r}: expected FIELD=VALUE, found {type(error).__name__}: "
                f"{message} Put a value with special characters into quotes: 'FIELD=\"VALUE\"'."
            ) from error
    return cfg


def resolve_target(node) -> Any:
    """The function or class that a LazyConfig node names in `_target_`."""
    target = node["_target_"]
    if isinstance(target, str):
        from detectron2.utils.registry import locate

        return locate(target)
    return target
