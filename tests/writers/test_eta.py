"""The ETA of train_net.py's log and metrics, by the last minute."""

import json
import logging

import pytest
from detectron2.engine import hooks
from detectron2.utils.events import EventStorage, JSONWriter

from d2kd.writers import RecentETAPrinter, default_writers


def storage_of(*steps: tuple[int, float]) -> EventStorage:
    """A storage after some steps, given as (number, seconds of each)."""
    storage = EventStorage(0)
    for number, seconds in steps:
        for _ in range(number):
            storage.put_scalars(time=seconds, total_loss=1.0)
            storage.step()
    storage.iter = sum(number for number, _ in steps) - 1
    return storage


def test_the_eta_is_the_last_minutes_and_goes_to_metrics(tmp_path, caplog):
    # 900 quick steps, then 30 of 2 s, which are the last minute; 70 steps are left: 140 s.
    # Detectron2's median of the last 1000 steps would say 70 * 0.1 s = 7 s.
    with storage_of((900, 0.1), (30, 2.0)) as storage, caplog.at_level(logging.INFO):
        json_writer = JSONWriter(str(tmp_path / "metrics.json"))
        for writer in (RecentETAPrinter(1000), json_writer):
            writer.write()
        assert storage.history("eta_seconds").latest() == pytest.approx(140.0)
    (line,) = (tmp_path / "metrics.json").read_text().splitlines()
    assert json.loads(line)["eta_seconds"] == pytest.approx(140.0)
    assert "eta: 0:02:20  iter: 929" in caplog.text


def test_one_step_may_take_longer_than_the_window():
    with storage_of((5, 1.0), (1, 90.0)) as storage:
        RecentETAPrinter(10).write()
        assert storage.history("eta_seconds").latest() == pytest.approx(4 * 90.0)


def test_no_time_is_known_in_the_first_steps(caplog):
    with EventStorage(0) as storage, caplog.at_level(logging.INFO):
        storage.put_scalar("total_loss", 1.0)
        RecentETAPrinter(10).write()
        assert "eta_seconds" not in storage.histories()
    assert "iter: 0" in caplog.text and "eta" not in caplog.text


def test_the_last_step_has_nothing_left():
    with storage_of((10, 1.0)) as storage:
        RecentETAPrinter(10).write()
        assert storage.history("eta_seconds").latest() == 0.0


def test_writers_are_detectron2s_but_for_the_printer(tmp_path):
    writers = default_writers(str(tmp_path), 10)
    assert [type(w).__name__ for w in writers] == [
        *("RecentETAPrinter", "JSONWriter", "TensorboardXWriter")
    ]
    hooks.PeriodicWriter(writers)  # accepts them
    for writer in writers:
        writer.close()
