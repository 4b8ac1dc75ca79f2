"""Errors of datasets that cannot be loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..data.layout import missing_file_hint

__all__ = ["errors_of_loading"]


@contextlib.contextmanager
def errors_of_loading(where: str, name: str) -> Iterator[None]:
    """Say which set cannot be loaded."""
    try:
        yield
    except FileNotFoundError as e:
        if e.errno is None:  # our own message, which names the file and the fix
            raise ValueError(f"{where}: {e}") from e
        raise ValueError(
            f"{where}: expected the files of {name!r}, found no {e.filename or e}. "
            f"{missing_file_hint(str(e.filename or ''))}"
        ) from e
    except (AssertionError, KeyError) as e:
        raise ValueError(
            f"{where}: expected a set that can be loaded, found that loading {name!r} stops "
            f"with {type(e).__name__}: {e}"
        ) from e
