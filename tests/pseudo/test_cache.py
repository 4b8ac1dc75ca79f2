import errno
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from d2kd.matching import Detections
from d2kd.pseudo.cache import RawCache, Unit


def found(count, seed=0):
    rng = np.random.RandomState(seed)
    return Detections(
        boxes=(100 * rng.rand(count, 4)).astype(np.float32),
        scores=np.sort(rng.rand(count).astype(np.float32))[::-1],
        classes=rng.randint(0, 80, count),
    )


def unit(seed=0):
    sizes = {3: (480, 640), 5: (10, 20), 8: (7, 9)}
    boxes = {3: found(4, seed), 5: found(0), 8: found(2, seed + 1)}
    return Unit(sizes, boxes, {4: "OSError: image file is truncated (3 bytes not processed) é"})


@pytest.fixture
def cache(tmp_path):
    return RawCache(tmp_path, {"score_floor": 0.05, "batch_size": 8})


def test_reading_returns_what_was_written(cache):
    cache.write(2, unit())
    again = cache.read(2)
    assert again.sizes == unit().sizes
    assert again.rejected == unit().rejected
    assert list(again.detections) == [3, 5, 8]
    for image_id, expected in unit().detections.items():
        for name in ("boxes", "scores", "classes"):
            value = getattr(again.detections[image_id], name)
            np.testing.assert_array_equal(value, getattr(expected, name))
            assert value.dtype == getattr(expected, name).dtype
    assert cache.counts(2) == dict(images=3, boxes=6, rejected=1)


@pytest.mark.parametrize(
    "content", [Unit({}, {}, {7: "gone"}), Unit({1: (4, 5)}, {1: found(0)}, {})]
)
def test_unit_without_boxes(cache, content):
    cache.write(0, content)
    again = cache.read(0)
    assert (again.sizes, again.rejected) == (content.sizes, content.rejected)
    assert [f.boxes.shape for f in again.detections.values()] == [(0, 4)] * len(content.detections)


def test_same_content_has_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    one, two = (RawCache(tmp_path / name, {"a": 1}) for name in "xy")
    one.write(0, unit())
    monkeypatch.setattr("time.time", lambda: 2e9)
    two.write(0, unit())
    for name in ("unit_00000.npz", "unit_00000.json", "settings.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    with zipfile.ZipFile(one.folder / "unit_00000.npz") as archive:
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_other_settings_use_another_folder_but_another_record_does_not(tmp_path):
    settings = {"a": 1, "b": {"c": 2.5}}
    one = RawCache(tmp_path, settings)
    assert RawCache(tmp_path, {"b": {"c": 2.5}, "a": 1}).folder == one.folder
    assert RawCache(tmp_path, settings, {"torch": "9.9"}).folder == one.folder
    assert RawCache(tmp_path, {"a": 1, "b": {"c": 2.25}}).folder != one.folder
    assert json.loads((one.folder / "settings.json").read_text()) == settings


def test_the_key_is_the_digest_of_the_settings_file(tmp_path):
    # printf '{\n "a": 1,\n "b": {\n  "c": 2.5\n }\n}' | sha256sum
    assert RawCache(tmp_path, {"b": {"c": 2.5}, "a": 1}).key == "38c8e6a8f6ff55a8"


def test_record_is_in_the_marker(tmp_path):
    cache = RawCache(tmp_path, {}, {"torch": "9.9"})
    cache.write(0, unit())
    assert json.loads((cache.folder / "unit_00000.json").read_text())["record"] == {"torch": "9.9"}


# The code of a process that claims unit 3. To start fast, it does not import d2kd.
HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 3)
print("held", flush=True)
time.sleep(0 if sys.argv[2:] else 60)
"""


def damage_cut(file, marker):
    file.write_bytes(file.read_bytes()[:-40])


def damage_bit(file, marker):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_cut,
        damage_bit,
        lambda file, marker: file.unlink(),
        lambda file, marker: marker.unlink(),
        lambda file, marker: marker.write_text(marker.read_text()[:30]),
    ],
)
def test_a_damaged_unit_is_missing(cache, damage):
    for i in range(3):
        cache.write(i, unit(i))
    assert cache.missing(4) == [3]
    damage(cache.folder / "unit_00001.npz", cache.folder / "unit_00001.json")
    assert cache.missing(4) == [1, 3]
    with pytest.raises(
        ValueError, match=r"unit_00001\.npz: expected a complete unit with its marker"
    ):
        cache.read(1)
    cache.write(1, unit(1))
    assert cache.missing(4) == [3]


def test_killed_while_writing_leaves_the_unit_missing(cache, monkeypatch):
    rename = os.replace

    def killed(source, target):
        if str(target).endswith(".npz"):
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr("os.replace", killed)
        cache.write(0, unit())
    assert not cache.done(0)
    assert not list(cache.folder.glob(".unit_*"))  # an exception leaves no partial file
    (cache.folder / ".unit_00000.npz.other-host.1.tmp").touch()  # SIGKILL leaves one
    cache.write(0, unit())
    assert cache.done(0)
    assert not list(cache.folder.glob(".unit_*"))


def test_old_marker_is_removed_before_a_unit_is_replaced(cache, monkeypatch):
    cache.write(0, unit())
    names = []
    rename = os.replace

    def watched(source, target):
        names.append((target.name, cache.marked(0)))
        rename(source, target)

    monkeypatch.setattr("os.replace", watched)
    cache.write(0, unit(5))
    assert names == [("unit_00000.npz", False), ("unit_00000.json", False)]


def test_units_of_other_settings_are_refused(tmp_path, cache):
    other = RawCache(tmp_path, {"score_floor": 0.1, "batch_size": 8})
    other.write(0, unit())
    for file in other.folder.glob("unit_*"):
        file.rename(cache.folder / file.name)
    with pytest.raises(ValueError, match=f"expected a unit of key {cache.key}, found one of"):
        cache.missing(1)


def test_folder_of_other_settings_is_refused(tmp_path, cache):
    (cache.folder / "settings.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"settings\.json: expected the settings whose hash is the folder"
    ):
        RawCache(tmp_path, cache.settings)


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"a folder that can be written, found .*file"):
        RawCache(tmp_path / "file", {})


def test_claim_excludes_other_processes_until_its_process_ends(cache):
    file = cache.folder / "claims"
    command = [sys.executable, "-c", HOLD, str(file)]
    with cache.claims() as claims, subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            assert not claims.take(3)
            assert claims.take(4)
        finally:
            other.kill()
        other.wait()
        assert claims.take(3)


def test_released_claim_is_free(cache):
    claims, command = cache.claims(), [sys.executable, "-c", HOLD, str(cache.folder / "claims")]
    with claims:
        claims.take(3)
        taken = subprocess.run([*command, "once"], capture_output=True)
        assert b"BlockingIOError" in taken.stderr
        claims.release(3)
        assert subprocess.run([*command, "once"], capture_output=True).stdout == b"held\n"


def test_every_unit_can_be_claimed_on_a_file_system_without_locks(cache, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    with cache.claims() as claims:
        assert claims.take(0)
        claims.release(0)
