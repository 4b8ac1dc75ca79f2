"""`d2kd compare --summarize`: the demo's results of several seeds."""

import json

import pytest

from d2kd.tools import compare
from tests.tools.tables import cells


def write(path, teacher: float, alone: float, distilled: float) -> str:
    figures = dict(teacher=teacher, alone=alone, distilled=distilled)
    path.write_text(json.dumps({m: dict(AP=v, AP50=v, AP75=v) for m, v in figures.items()}))
    return str(path)


def test_mean_spread_and_share_of_the_gap(tmp_path, capsys):
    one = write(tmp_path / "1.json", 60.0, 10.0, 40.0)  # closes 30 of 50
    two = write(tmp_path / "2.json", 60.0, 20.0, 44.0)  # closes 24 of 40
    assert compare.main(["--summarize", one, two]) == 0
    table = capsys.readouterr().out
    assert "15.0 ± 7.1" in table and "42.0 ± 2.8" in table  # sample standard deviations
    assert "27.0 ± 4.2" in table  # of the paired differences, 30 and 24
    assert "60.0 ± 0.0" in table
    assert cells(table, "share of the gap closed, %")["AP"] == "60.0 ± 0.0"  # 30 / 50 and 24 / 40
    assert cells(table, "teacher")["AP50"] == "60.0 ± 0.0"


def test_no_share_where_a_student_alone_reaches_its_teacher(tmp_path, capsys):
    one = write(tmp_path / "1.json", 60.0, 10.0, 40.0)
    two = write(tmp_path / "2.json", 60.0, 60.0, 61.0)
    compare.main(["--summarize", one, two])
    table = capsys.readouterr().out
    assert cells(table, "share of the gap closed, %")["AP"] == "no gap"
    assert "In 1 of 2 files the student alone is as good as its teacher" in table


def test_one_seed_is_no_spread(tmp_path):
    path = write(tmp_path / "1.json", 60.0, 10.0, 40.0)
    with pytest.raises(ValueError, match=r"expected two or more results\.json .*found 1"):
        compare.main(["--summarize", path])
