"""`dataloader.train` of a config, from any step of a training on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler

from ..lazy import resolve_target
from .masks import check_masks
from .named_errors import build_loader, name_errors
from .views import check_views

__all__ = ["TrainLoader"]

logger = logging.getLogger(__name__)


class _Sampler(TrainingSampler):
    """Detectron2's `TrainingSampler`, starting at a given position of its infinite stream."""

    def __init__(self, size: int, seed: int, start: int):
        super().__init__(size, seed=seed)
        self._start = start

    def __iter__(self) -> Iterator[int]:
        first = self._start + self._rank
        yield from itertools.islice(self._infinite_indices(), first, None, self._world_size)


class TrainLoader:
    """Builds `dataloader.train` of a config so that it starts at any step.

    A node of `build_detection_train_loader` without a sampler gets one that starts at the right
    position of the epoch. Any other loader is built once and continues through all segments. A
    resumed run starts such a loader from its beginning, and a warning says so.

    Args:
        node: the LazyConfig node.
        accumulate: number of batches in one step.
        dataset: what `node.dataset` gives, where it was loaded before.
    """

    def __init__(self, node, accumulate: int = 1, dataset: Any = None):
        self._node = node
        self._accumulate = accumulate
        self._loaded: Any = dataset
        self._dataset: Any = None
        self._stream: Any = None

    def prepare(self) -> None:
        """Read the dataset now, so that mistakes in it are found before anything else is done.

        Raises:
            ValueError: there are no images, or a file, masks or annotations that the mapper needs
                are missing.
        """
        if self._dataset is not None or self._stream is not None:
            return
        node = self._node
        try:
            if resolve_target(node) is build_detection_train_loader and not node.get("sampler"):
                dataset = instantiate(node.dataset) if self._loaded is None else self._loaded
                check_masks(node.get("mapper"), dataset)
                check_views(node.get("mapper"), dataset)
                if not isinstance(dataset, torch.utils.data.IterableDataset):
                    self._dataset = dataset
                    return
            self._stream = iter(build_loader(node))
        except (AssertionError, FileNotFoundError) as e:
            raise ValueError(f"dataloader.train: expected images to train on, found: {e}") from e
        logger.warning(
            "dataloader.train has its own sampler or target: a resumed run starts its data from "
            "the beginning, so that resuming is not exact."
        )

    def __call__(self, step: int, seed: int) -> Iterable:
        self.prepare()
        if self._dataset is None:
            return self._stream
        node = self._node
        rest = {k: instantiate(v) for k, v in node.items() if k not in ("_target_", "dataset")}
        rest["mapper"] = name_errors(rest.get("mapper"))
        rest["sampler"] = _Sampler(
            len(self._dataset), seed, step * self._accumulate * node.total_batch_size
        )
        return build_detection_train_loader(dataset=self._dataset, **rest)
