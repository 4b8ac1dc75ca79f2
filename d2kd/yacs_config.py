"""Detectron2's yacs configs, and the `setup` that adds the keys of a project to them.

A project (PointRend, CenterNet2, TridentNet, ...) has keys and modules that Detectron2 does not
know. Its own training script calls a function that adds the keys. Importing the function's package
also registers the modules.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from omegaconf import DictConfig, OmegaConf
from torch import nn

__all__ = [
    "Setup",
    "build_yacs",
    "build_yacs_model",
    "is_yacs_file",
    "name_of_setup",
    "read_yacs",
    "setup_without_yacs",
    "yacs_num_classes",
]

Setup = Callable[[Any], Any] | str  # the function, or its dotted name

_FIELD = "build_yacs_model.config"


def read_yacs(source: str, setup: Setup | None) -> CfgNode:
    """Read a yacs file.

    Args:
        source: its path.
        setup: of the project, if the config belongs to one.

    Raises:
        ValueError: the file is no YAML or empty, it has a key that Detectron2 does not know or a
            value of another kind, or there is no function of the name `setup`.
    """
    config = get_cfg()
    if setup is not None:
        _find_setup(setup)(config)
    with _mistakes_of(source, setup):
        config.merge_from_file(source)
    return config


@contextlib.contextmanager
def _mistakes_of(source: str, setup: Setup | None) -> Iterator[None]:
    """Say what is wrong with a config that is merged into Detectron2's defaults."""
    try:
        yield
    except KeyError as e:
        if "Non-existent config key" not in str(e):
            raise
        raise _unknown_to_detectron2(source, str(e.args[0]), setup) from None
    except yaml.YAMLError as e:
        raise ValueError(f"{source}: expected YAML, found: {e}") from None
    except (AttributeError, TypeError) as e:  # raised by yacs
        raise ValueError(
            f"{source}: expected sections with keys, such as MODEL, found nothing or a single "
            f"value in place of one. Is the config empty, or its _BASE_, or one of its sections?"
        ) from e
    except ValueError as e:  # a value of another kind
        raise ValueError(f"{source}: expected the kinds of Detectron2's values, found: {e}") from e


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
        if "registry" not in str(e):
            raise
        raise _unknown_to_detectron2(source, str(e.args[0]), setup) from None


def build_yacs_model(config: Mapping[str, Any], setup: str | None = None) -> nn.Module:
    """Build the detector of a yacs config that is a field of a LazyConfig.

    It is on the CPU, without its weights: `train.device` and `train.init_checkpoint` say these.

    Args:
        config: the whole yacs config, as dicts, lists, texts and numbers. Keys that are left out
            have Detectron2's defaults.
        setup: dotted name of the function that adds a project's keys, see `read_yacs`.

    Raises:
        ValueError: a key, the kind of a value or the name of a module is unknown.
    """
    values = OmegaConf.to_container(config) if isinstance(config, DictConfig) else dict(config)
    merged = get_cfg()
    if setup is not None:
        _find_setup(setup)(merged)
    with _mistakes_of(_FIELD, setup):
        merged.merge_from_other_cfg(CfgNode(values))
    merged.MODEL.DEVICE = "cpu"
    model = build_yacs(merged, _FIELD, setup)
    if not hasattr(model, "input_format"):  # a SemanticSegmentor; `Distiller` looks for it
        model.input_format = merged.INPUT.FORMAT
    return model


def is_yacs_file(path: str) -> bool:
    """Whether a file is a yacs config: YAML with a section in capitals, or with a base."""
    if not path.endswith((".yaml", ".yml")):
        return False
    with open(path, errors="replace") as f:
        return any(re.match(r"(_BASE_|[A-Z][A-Z0-9_]*)\s*:", line) for line in f)


def yacs_num_classes(config: Any) -> tuple[str, int] | None:
    """The key of a yacs config that says how many classes the detector has, and the number.

    Args:
        config: a `CfgNode`, or the field `config` of `build_yacs_model`.

    Returns:
        None for a detector without classes, and for one of a project, whose keys are not known.
    """
    sections = dict(RetinaNet="RETINANET", GeneralizedRCNN="ROI_HEADS", PanopticFPN="ROI_HEADS")
    section = sections.get(config["MODEL"]["META_ARCHITECTURE"])
    if section is None:
        return None
    return f"MODEL.{section}.NUM_CLASSES", int(config["MODEL"][section]["NUM_CLASSES"])


def name_of_setup(setup: Setup) -> str:
    """The dotted name of a setup, which a config can be saved with."""
    if isinstance(setup, str):
        return setup
    return f"{setup.__module__}.{setup.__qualname__}"


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


def _unknown_to_detectron2(source: str, problem: str, setup: Setup | None) -> ValueError:
    if setup is None:
        fix = (
            "If the config belongs to a project, give the function that adds the project's keys, "
            "such as setup='point_rend.add_pointrend_config'."
        )
    else:
        fix = (
            "The given setup does not add it: is it misspelled, or does the setup belong to "
            "another project or version?"
        )
    return ValueError(
        f"{source}: expected a config of Detectron2 or of a project with its setup, found: "
        f"{problem.rstrip('!.')}. {fix}"
    )


def setup_without_yacs(found: str) -> ValueError:
    """The error of a `setup` for a config that is not yacs."""
    return ValueError(
        f"setup: expected the path of a yacs (.yaml) config beside it, because it adds keys to "
        f"that config, found {found}. Leave setup out."
    )
