"""Which errors are shown by their message, and that our messages can be."""

import ast
import errno
import os
from pathlib import Path

import pytest

from d2kd.plain_errors import describe_error

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "error, shown",
    [
        (ValueError("a: expected b, found c"), "a: expected b, found c"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pth"), "No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.py"), "'a.py', found: No such file"),
        (ModuleNotFoundError("no", name="torch"), "torch is not installed"),
        (FloatingPointError("loss: expected finite numbers, found nan"), "expected finite"),
        # in a worker of a data loader
        (
            ValueError(
                "Caught ValueError in DataLoader worker process 0.\n"
                "Original Traceback (most recent call last):\n  ...\n"
                "ValueError: 5.png: expected an image, found garbage\n"
            ),
            "5.png: expected an image, found garbage",
        ),
    ],
)
def test_errors_that_the_user_can_mend(error, shown):
    assert shown in describe_error(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("not enough values to unpack (expected 2, got 1)"),
        TypeError("expected str, bytes or os.PathLike object, not NoneType"),
        RuntimeError("expected scalar type Float but found Double"),
        RuntimeError("Expected all tensors to be on the same device, but found two"),
        KeyError("expected, found"),
        AssertionError("expected a, found b"),
        OSError(errno.EBADF, "Bad file descriptor"),
        ModuleNotFoundError("no", name="scipy"),
        ValueError("Caught\nTraceback (most recent call last):\nValueError: expected a"),
    ],
)
def test_errors_that_may_be_bugs(error):
    assert describe_error(error) is None


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_file_in_place_of_a_folder_is_named_with_the_fix(tmp_path, below):
    (tmp_path / "out").touch()
    with pytest.raises(OSError) as error:
        os.makedirs(f"{tmp_path}/out{below}")
    text = describe_error(error.value)
    assert f"found that '{tmp_path}/out' is a file. Give another path, or rename" in text
    with pytest.raises(OSError) as error:
        os.mkdir(tmp_path)  # a folder is there
    assert "found: File exists" in describe_error(error.value)


# These pass on the text of another error, which has both words. The test cannot see it.
PASS_ON = (
    "d2kd/audit/errors.py",
    "d2kd/audit/report.py",
    "d2kd/ranks.py",
    "d2kd/checkpoint",
    "d2kd/data/convert/coco.py",
    "d2kd/data/convert/splits.py",
    "d2kd/data/convert/text.py",
    "d2kd/data/convert/voc.py",
    "d2kd/data/convert/yolo.py",
    "d2kd/tools/compare/entries.py",
)


def messages() -> list[tuple[str, str]]:
    """Place and text of each ValueError, TypeError and FileNotFoundError that d2kd raises."""
    found = []
    for path in sorted((ROOT / "d2kd").rglob("*.py")):
        if "configs" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in (
                "ValueError",
                "TypeError",
                "FileNotFoundError",
                "FileExistsError",
                "PermissionError",
            ):
                parts = [
                    x.value
                    for x in ast.walk(call)
                    if isinstance(x, ast.Constant) and isinstance(x.value, str)
                ]
                if parts:
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", " ".join(parts)))
    return found


def test_the_name_of_a_file_is_no_part_of_our_message():
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "expected_rows.txt")
    assert "'expected_rows.txt', found: No such file" in describe_error(error)


def test_a_message_of_several_lines_from_a_loader_is_whole():
    error = ValueError(
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        "last):\n  ...\nValueError: a.json: expected boxes\nin pixels, found none\n"
    )
    assert describe_error(error) == "a.json: expected boxes\nin pixels, found none"


def test_each_message_says_what_was_expected_and_found():
    """`describe_error` knows our errors by these words."""
    assert len(messages()) > 200
    lacking = [place for place, text in messages() if "expected" not in text or "found" not in text]
    assert [place for place in lacking if not place.startswith(PASS_ON)] == []
