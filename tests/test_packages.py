"""Packages that d2kd does not require."""

import sys

import pytest

from d2kd.packages import import_package


def test_a_package_that_is_not_there_comes_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gone", None)
    with pytest.raises(ImportError) as error:
        import_package("gone", "train.x", install="gone-small")
    assert str(error.value) == (
        "train.x: expected the package gone, found none. Run `pip install gone-small`. "
        "(Missing: gone.)"
    )


def test_a_package_that_is_there():
    assert import_package("json.decoder", "x", install="x").__name__ == "json.decoder"
