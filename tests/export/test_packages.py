import pytest
import torch

from d2kd.export.packages import check_exporter
from d2kd.plain_errors import describe_error


def test_an_old_pytorch_is_named_with_the_fix(monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, f: None)  # as before 2.5
    with pytest.raises(ImportError, match=r"ONNX: expected PyTorch 2\.5 .*--formats") as error:
        check_exporter()
    assert describe_error(error.value) == str(error.value)
