import json
import subprocess
import sys


def run(*paths) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "d2kd.tools.summary", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True)


def results(path, teacher: float, alone: float, distilled: float):
    figures = dict(teacher=teacher, alone=alone, distilled=distilled)
    path.write_text(json.dumps({m: dict(AP=v, AP50=v, AP75=v) for m, v in figures.items()}))
    return path


def test_mean_spread_and_part_of_the_gap(tmp_path):
    one = results(tmp_path / "1.json", 60.0, 10.0, 40.0)  # closes 30 of 50
    two = results(tmp_path / "2.json", 60.0, 20.0, 44.0)  # closes 24 of 40
    table = run(one, two).stdout
    assert "15.0 ± 7.1" in table and "42.0 ± 2.8" in table  # sample standard deviations
    assert "27.0 ± 4.2" in table  # of the paired differences, 30 and 24
    assert "60.0 ± 0.0" in table


def test_one_seed_is_no_spread(tmp_path):
    found = run(results(tmp_path / "1.json", 60.0, 10.0, 40.0))
    assert found.returncode and "expected two or more results.json files, found 1" in found.stderr
