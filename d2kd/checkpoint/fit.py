"""How the tensors of a file fit a model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from torch import nn

__all__ = ["PREFIX", "Fit"]

PREFIX = "distillation."
"""Prefix of the tensors that a distiller adds to the student's: adapters, methods' parameters."""

# A counter of BatchNorm. Old and converted files do not have it, and nothing here needs it.
_COUNTER = "num_batches_tracked"
# PyTorch and Detectron2 fill in these tensors of normalization layers where a file lacks them, and
# do not list them as missing.
_FILLED_IN = (_COUNTER, "running_mean", "running_var")


class Fit(NamedTuple):
    """Names of tensors, sorted by how a file and a model agree on them.

    Attributes:
        matched: number of the model's tensors that were loaded from the file.
        missing: in the model only.
        unexpected: in the file only.
        shapes: in both with different shapes, as "name (80,) in the file, (3,) here".
    """

    matched: int
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]

    @classmethod
    def of(cls, model: nn.Module, incompatible: Any, names: Collection[str]) -> Fit:
        """Read what fvcore's `Checkpointer._load_model` returns.

        Args:
            names: of the file's tensors, as they were given to the model.
        """
        other = {name for name, _, _ in incompatible.incorrect_shapes}
        # fvcore lists tensors of another shape as missing, too.
        missing = set(incompatible.missing_keys) - other
        matched = {
            name
            for name in set(model.state_dict()) - missing - other
            if name in names or not name.endswith(_FILLED_IN)
        }
        # Where nothing but counters fits, they are no sign of a match.
        if all(name.endswith(_COUNTER) for name in matched):
            matched = set()
        return cls(
            matched=len(matched),
            missing=sorted(name for name in missing if not name.endswith(_COUNTER)),
            unexpected=[k for k in incompatible.unexpected_keys if not k.endswith(_COUNTER)],
            shapes=[
                f"{name} {tuple(a)} in the file, {tuple(b)} here"
                for name, a, b in incompatible.incorrect_shapes
            ],
        )

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.unexpected or self.shapes)

    @property
    def fits_mostly(self) -> bool:
        """Whether the model takes at least half of the file's tensors."""
        return self.matched >= len(self.unexpected) + len(self.shapes)

    def without(self, prefix: str) -> Fit:
        """The same without the missing and unexpected tensors under a prefix."""
        return self._replace(
            missing=[k for k in self.missing if not k.startswith(prefix)],
            unexpected=[k for k in self.unexpected if not k.startswith(prefix)],
        )

    def __str__(self) -> str:
        return (
            f"{self.matched} tensors matched, {len(self.missing)} missing, {len(self.unexpected)} "
            f"unexpected, {len(self.shapes)} of another shape"
        )

    def examples(self) -> str:
        """The first names of each kind, one line for each kind."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "another shape": self.shapes,
        }
        return "\n".join(
            f"  {kind}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for kind, names in kinds.items()
            if names
        )
