"""Detectron2's yacs configs, and the `setup` that adds the keys of a project to them.

A project (PointRend, CenterNet2, TridentNet, ...) has keys and modules that Detectron2 does not
know. Its own training script calls a function that adds the keys. Importing the function's package
also registers the modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

__all__ = ["build_yacs", "read_yacs", "setup_without_yacs"]

Setup = Callable[[Any], Any] | str  # the function, or its dotted name


def read_yacs(source: str, setup: Setup | None) -> CfgNode:
    """Read a yacs file.

    Args:
        source: its path.
        setup: of the project, if the config belongs to one.

    Raises:
        ValueError: the file has a key that Detectron2 does not know, or there is no function of the
            name `setup`.
    """
    config = get_cfg()
    if setup is not None:
        _find_setup(setup)(config)
    try:
        config.merge_from_file(source)
    except KeyError as e:
        if "Non-existent config key" not in str(e):
            raise
        raise _unknown_to_detectron2(source, str(e.args[0])) from None
    return config


def build_yacs(config: CfgNode, source: str, setup: Setup | None) -> nn.Module:
    """Build the detector of a yacs config, without its weights.

    Args:
        config: from `read_yacs`, or of Detectron2's model zoo.
        source: its path or name, for the message.
        setup: with which it was read.

    Raises:
        ValueError: the config names a module that Detectron2 does not know.
    """
    try:
        return build_model(config)
    except KeyError as e:  # raised by a registry
        if setup is not None or "registry" not in str(e):
            raise
        raise _unknown_to_detectron2(source, str(e.args[0])) from None


def _find_setup(setup: Setup) -> Callable[[Any], Any]:
    from detectron2.utils.registry import locate

    found: Any = setup
    if isinstance(setup, str):
        try:
            found = locate(setup)
        except ImportError as e:
            raise ValueError(
                f"setup: expected the dotted name of a function that adds a project's keys to a "
                f"yacs config, found {setup!r}, which cannot be imported ({e}). Add the folder of "
                f"the project to PYTHONPATH."
            ) from e
    if not callable(found):
        raise ValueError(
            f"setup: expected a function that adds a project's keys to a yacs config, or its "
            f"dotted name, found {setup!r}."
        )
    return found


def _unknown_to_detectron2(source: str, problem: str) -> ValueError:
    return ValueError(
        f"{source}: expected a config of Detectron2 or of a project with its setup, found: "
        f"{problem.rstrip('!.')}. If the config belongs to a project, give the function that adds "
        f"the project's keys, such as setup='point_rend.add_pointrend_config'."
    )


def setup_without_yacs(found: str) -> ValueError:
    """The error of a `setup` for a config that is not yacs."""
    return ValueError(
        f"setup: expected the path of a yacs (.yaml) config beside it, because it adds keys to "
        f"that config, found {found}. Leave setup out."
    )
