"""Rates and ETAs against values worked out by hand, with a clock that the tests move."""

import io
import subprocess
import sys

import pytest

from d2kd.progress import ProgressLine, RecentRate, format_time, track


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def rate(clock):
    return RecentRate(clock=clock)


def run(rate, clock, steps: int, seconds: float, start: int = 0, every: int = 1) -> int:
    """Do steps of so many seconds each; return how many are finished."""
    for done in range(start + every, start + steps + 1, every):
        clock.now += every * seconds
        rate.update(done)
    return start + steps


def test_times_are_written_in_minutes():
    assert [format_time(s) for s in (0, 59.9, 130, 3730)] == ["0:00", "0:59", "2:10", "1:02:10"]


def test_an_eta_by_hand(rate, clock):
    # 10 steps of 3 s; 90 steps are left: 270 s = 4:30, and 10 s later 260 s.
    run(rate, clock, 10, 3.0)
    assert rate.seconds_per_step == pytest.approx(3.0)
    assert rate.eta(100) == pytest.approx(270.0) and rate.words(100) == "ETA 4:30"
    clock.now += 2.0
    assert rate.eta(100) == pytest.approx(268.0)


def test_a_machine_that_becomes_slow_is_followed_within_a_minute(rate, clock):
    # 500 steps of 0.1 s, then steps of 2 s. The median of all steps would stay at 0.1 s.
    done = run(rate, clock, 500, 0.1)
    assert rate.eta(1400) == pytest.approx(90.0)
    done = run(rate, clock, 30, 2.0, start=done)  # one minute
    assert rate.seconds_per_step == pytest.approx(2.0)
    assert rate.eta(1400) == pytest.approx(2.0 * 870)
    done = run(rate, clock, 610, 0.1, start=done)  # a minute, fast again
    assert rate.eta(1400) == pytest.approx(0.1 * 260)


def test_the_change_shows_before_the_minute_is_over(rate, clock):
    done = run(rate, clock, 1200, 0.1)  # two minutes
    run(rate, clock, 15, 2.0, start=done)  # half a minute
    # The last minute: 300 steps in 30 s and 15 steps in 30 s.
    assert rate.seconds_per_step == pytest.approx(60 / 315, rel=0.01)


def test_rare_reports_are_no_stall(rate, clock):
    # A report every 20 steps of 10 s, as a training's metrics.json.
    run(rate, clock, 60, 10.0, every=20)
    assert rate.seconds_per_step == pytest.approx(10.0)
    clock.now += 150
    assert rate.words(100) == "ETA 4:10"  # 400 s from the last report on


def test_a_late_report_raises_the_eta(rate, clock):
    run(rate, clock, 60, 1.0, every=20)
    clock.now += 50  # the report of step 80 should have come after 20 s
    # The last minute begins with the report of step 20: 40 + 50 s for 40 + 20 steps.
    assert rate.seconds_per_step == pytest.approx(90 / 60)
    assert rate.eta(100) == pytest.approx(1.5 * 40 - 50)


def test_a_stalled_run_says_so(rate, clock):
    run(rate, clock, 50, 1.0)
    clock.now += 130
    assert rate.stalled and rate.words(100) == "no step for 2:10"
    clock.now += 10
    rate.update(51)
    assert not rate.stalled and rate.words(100).startswith("ETA ")


def test_before_the_first_and_after_the_last_step(rate, clock):
    assert rate.eta(10) is None and rate.words(10) == "starting"
    clock.now += 130
    assert rate.words(10) == "starting, 2:10"
    rate.update(3)
    assert rate.eta(10) is None and rate.words(10) == ""  # one report is no rate
    clock.now += 7
    rate.update(10)
    assert rate.eta(10) == 0.0 and rate.words(10) == ""


def test_a_resumed_run_counts_from_where_it_begins(rate, clock):
    clock.now += 30  # starting takes time, which is no step
    run(rate, clock, 40, 1.0, start=300, every=20)
    assert rate.seconds_per_step == pytest.approx(1.0)


def test_a_file_gets_a_line_for_each_tenth_and_after_each_minute(clock):
    file = io.StringIO()
    line = ProgressLine(file, clock)
    for done in range(100):
        line.show(f"{done}", done / 100)
    assert file.getvalue().split() == [str(n) for n in range(0, 100, 10)]
    clock.now += 59
    line.show("still 99", 0.99)
    clock.now += 1
    line.show("99 after a minute", 0.99)
    line.show("and at once", 0.99)
    assert file.getvalue().splitlines()[10:] == ["99 after a minute"]
    line.note("a warning")
    line.close("all")
    assert file.getvalue().endswith("a warning\nall\n") and "\x1b" not in file.getvalue()


def test_a_terminal_has_one_line(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    terminal = Terminal()
    line = ProgressLine(terminal, clock)
    line.show("0123456789", 0)
    line.show("second", 0.01)
    line.note("warning")
    line.close()
    assert terminal.getvalue() == "\r\x1b[K012345678\r\x1b[Ksecond\r\x1b[Kwarning\n\r\x1b[K"


def test_items_are_tracked(clock):
    file = io.StringIO()

    def work():
        for i in range(20):
            yield i
            clock.now += 3

    assert list(track(work(), 20, "images", stream=file, clock=clock)) == list(range(20))
    lines = file.getvalue().splitlines()
    assert len(lines) == 10  # none for the start: the work may be done at once
    # Half of 20 items of 3 s are left, 30 s.
    assert lines[4] == f"images             {'#' * 12}{'.' * 12}    10/20  ETA 0:30"
    assert lines[-1] == f"images             {'#' * 24}    20/20  took 1:00"


def test_quick_work_has_one_line_in_a_file(clock):
    file = io.StringIO()
    for _ in track(range(1000), 1000, "images", stream=file, clock=clock):
        clock.now += 0.004
    assert file.getvalue() == f"images             {'#' * 24}  1000/1000  took 0:04\n"


def test_an_interrupted_loop_does_not_look_finished(clock):
    file = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        for i in track(range(10), 10, "images", stream=file, clock=clock):
            if i == 4:
                raise KeyboardInterrupt
    assert "10/10" not in file.getvalue()


def test_it_imports_no_torch():
    code = "import sys, d2kd.progress; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_a_terminal_is_written_to_when_the_line_changes(monkeypatch, clock):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    line = ProgressLine(terminal, clock)
    for text in ("one", "one", "two", "two"):
        line.show(text, 0.5)
    assert terminal.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo"
    line.note("a warning")  # removes the line
    line.show("two", 0.5)
    assert terminal.getvalue().endswith("\r\x1b[Ka warning\n\r\x1b[Ktwo")


def test_a_dumb_terminal_gets_lines(monkeypatch, clock):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    line = ProgressLine(terminal, clock)
    for done in range(20):
        line.show(f"{done}", done / 20)
    assert terminal.getvalue().split() == [str(n) for n in range(0, 20, 2)]
