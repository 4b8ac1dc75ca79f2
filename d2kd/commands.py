"""How a command runs: its arguments, its exit status, and what it says when it stops.

An error that the user can mend is shown as two or three lines, and the exit status is 2, see
`d2kd.plain_errors`. This module does not import PyTorch: the number of threads must be set first,
see `d2kd.threads`.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .plain_errors import DEBUG, debugging, describe_error, show_error
from .processes import Terminated, end_workers, sigterm_as_ctrl_c
from .threads import configure_threads

__all__ = ["add_debug", "call", "config_first", "parse_arguments", "run_tool"]


def run_tool(module: str, name: str, argv: Sequence[str]) -> int:
    """Import a module of `d2kd.tools` and call its `main(argv)`.

    Args:
        module: its name, such as "evaluate".
        name: of the command, for messages, such as "d2kd evaluate".
        argv: the arguments, which may contain --debug anywhere.

    Returns:
        exit status: what `main` returns; 2 for an error that the user can mend; 130 after an
        interruption.
    """
    configure_threads()
    # PyTorch warns about Detectron2's code and about its own. Our own warnings are shown.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    return call(
        name, lambda words: importlib.import_module(f"d2kd.tools.{module}").main(words), argv
    )


def call(name: str, main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> int:
    """Call `main` with the arguments, and show an error that the user can mend without a traceback.

    Args:
        name: of the command, for messages.
        main: function of the arguments without --debug.
        argv: default: the arguments of the process.

    Returns:
        exit status, see `run_tool`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Here and not in the parsers: the overrides of a config may come before it.
    debug = DEBUG in words
    words = [word for word in words if word != DEBUG]
    with debugging(debug):
        try:
            with sigterm_as_ctrl_c():
                return main(words) or 0
        except KeyboardInterrupt as stop:
            end_workers()
            advice = f". {stop}" if stop.args else ""  # how to go on, where a tool knows it
            print(f"{name}: interrupted{advice}", file=sys.stderr)
            return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        except Exception as error:
            message = describe_error(error)
            if message is None:
                raise
            show_error(name, message, error)
            return 2


def config_first(argv: Sequence[str] | None) -> list[str]:
    """The arguments, with the config in front if it is given as --config-file.

    Commands without Detectron2's parser take the config as their first argument. Users know the
    flag from `d2kd train` and from Detectron2.

    Args:
        argv: default: the arguments of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--config-file" and (equals or words[i + 1 :]):
            rest = words[i + 1 :] if equals else words[i + 2 :]
            return [value if equals else words[i + 1], *words[:i], *rest]
    return words


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add --debug to the help of a command. `call` takes it from the arguments."""
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of every error")


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, config: bool = True
) -> Any:
    """Parse the arguments of a parser that Detectron2's `default_argument_parser` made.

    Options may come before and after the overrides of the config, and the config may come without
    --config-file. Detectron2's parser takes everything after the first override for overrides.

    Args:
        parser: its `opts` are changed.
        argv: default: the arguments of the process.
        config: whether there must be a config.
    """
    for action in parser._actions:
        if action.dest == "opts":
            action.nargs, action.default = "*", []
            action.help = "fields of the config, key=value"
    add_debug(parser)
    args = parser.parse_intermixed_args(argv)
    first = args.opts[0] if args.opts else ""
    if not args.config_file and first.endswith((".py", ".yaml", ".yml")) and "=" not in first:
        args.config_file = args.opts.pop(0)
    if config and not args.config_file:
        parser.error("expected a config (--config-file FILE), found none")
    return args
