"""d2kd.data and d2kd.pseudo give what configs need, and d2kd.data imports it only on request."""

import subprocess
import sys

import pytest

from d2kd import data, pseudo


@pytest.mark.parametrize("package", [data, pseudo])
def test_every_exported_name_is_there(package):
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith(package.__name__)
        assert name in dir(package)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


def test_exports_are_all_that_the_table_of_modules_lists():
    listed = {name for names in data._MODULES.values() for name in names}
    assert listed | {"register_all"} == set(data.__all__)


def test_importing_data_does_not_import_torch():
    code = "import sys, d2kd.data, d2kd.data.demo; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
