"""The `d2kd` command: its subcommands, its help, and errors without a traceback."""

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import d2kd
from d2kd import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch):
    """Put a function in the place of the main of `d2kd demo`."""

    def put(main) -> None:
        module = types.ModuleType("d2kd.tools.demo")
        module.main = main
        monkeypatch.setitem(sys.modules, "d2kd.tools.demo", module)

    return put


def command(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "d2kd", *argv]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True)


def test_help_lists_each_command_with_its_line(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in [
        "demo",
        "train",
        "evaluate",
        "label",
        "data",
        "weights",
        "compare",
        "benchmark",
        "visualize",
        "predict",
        "export",
        "doctor",
    ]:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert cli.COMMANDS[name].summary in line and len(line) <= 80
    assert sum(line.startswith("  d2kd ") for line in lines) == 2  # examples


def test_no_command_is_an_error_that_shows_the_help(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"d2kd {d2kd.__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("trian", "Did you mean `d2kd train`?"), ("xyzzy", "found 'xyzzy'.\n")]
)
def test_unknown_command_names_the_nearest(name, hint, capsys):
    assert cli.main([name]) == 2
    error = capsys.readouterr().err
    assert hint in error and error.count("\n") == 1


def test_arguments_and_exit_status_are_passed_on(tool):
    given = []
    tool(lambda argv: given.append(argv) or 1)
    assert cli.main(["demo", "--seed", "3"]) == 1 and given == [["--seed", "3"]]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("weights: expected a, found b"),
        TypeError("expected a detector, found a list"),
        FileExistsError("a.py: expected no file, found another text"),
    ],
)
def test_errors_of_the_user_are_two_plain_lines(error, tool, capsys):
    def main(argv):
        raise error

    tool(main)
    assert cli.main(["demo"]) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first == "d2kd demo stopped (--debug shows where in the code)." and last == str(error)


def test_an_error_of_the_system_names_the_file(tool, capsys):
    def main(argv):
        raise PermissionError(13, "Permission denied", "a.py")

    tool(main)
    assert cli.main(["demo"]) == 2
    expected = "expected to use 'a.py', found: Permission denied."
    assert capsys.readouterr().err.splitlines()[1] == expected


@pytest.mark.parametrize("error", [RuntimeError("shapes"), TypeError("'int' is not iterable")])
def test_errors_that_may_be_bugs_keep_their_traceback(error, tool):
    def main(argv):
        raise error

    tool(main)
    with pytest.raises(type(error)):
        cli.main(["demo"])


def test_interruption(tool, capsys):
    def main(argv):
        raise KeyboardInterrupt

    tool(main)
    assert cli.main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_threads_are_set_before_torch_is_imported():
    code = (
        "import sys, types, os; from d2kd import cli; import d2kd.files\n"
        "assert 'torch' not in sys.modules\n"
        "tool = types.ModuleType('d2kd.tools.demo')\n"
        "tool.main = lambda argv: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)\n"
        "sys.modules['d2kd.tools.demo'] = tool\n"
        "cli.main(['demo'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "1000 False\n", done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_each_tool_ends_with_two_examples(name, capsys):
    tool = importlib.import_module(f"d2kd.tools.{cli.COMMANDS[name].module}")
    with pytest.raises(SystemExit) as stop:
        tool.main(["--help"])
    assert stop.value.code == 0
    _, _, examples = capsys.readouterr().out.rpartition("examples:\n")
    commands = [line.split()[:2] for line in examples.splitlines()]
    assert commands.count(["d2kd", name]) == 2


def test_as_a_module_from_another_folder(tmp_path):
    done = command("--version", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == f"d2kd {d2kd.__version__}\n"


def test_missing_config_is_one_line():
    done = command("benchmark", "--config-file", "no.py", "--sizes", "9", "--output", "output/x")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "no.py" in done.stderr
    assert len(done.stderr.splitlines()) == 2
