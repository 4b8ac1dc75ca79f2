"""Mean and spread over seeds of the demo's results, for `d2kd compare --summarize`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from .statistics import share_of_gap, spread

__all__ = ["summarize"]

METRICS = ("AP", "AP50", "AP75")
MODELS = ("teacher", "alone", "distilled")


def summarize(paths: Sequence[Path]) -> str:
    """A Markdown table of the demo's three detectors over seeds, and of the paired difference.

    Args:
        paths: two or more results.json of the demo, one for each seed.

    Raises:
        ValueError: there are fewer than two files.
    """
    if len(paths) < 2:
        raise ValueError(
            f"--summarize: expected two or more results.json files of the demo, one for each seed, "
            f"found {len(paths)}"
        )
    runs: list[Mapping] = [json.loads(path.read_text()) for path in paths]
    rows = [[m, *(spread([run[m][k] for run in runs]) for k in METRICS)] for m in MODELS]
    gains = {k: [run["distilled"][k] - run["alone"][k] for run in runs] for k in METRICS}
    rows.append(["distilled - alone", *(spread(gains[k]) for k in METRICS)])
    shares = [share_of_gap(*(run[model]["AP"] for model in MODELS)) for run in runs]
    known = [100 * share for share in shares if share is not None]
    closed = spread(known) if len(known) == len(runs) else "no gap"
    rows.append(["share of the gap closed, %", closed, "", ""])
    text = tabulate(rows, ["", *METRICS], tablefmt="github", disable_numparse=True)
    without = len(runs) - len(known)
    if without:
        text += (
            f"\n\nIn {without} of {len(runs)} files the student alone is as good as its teacher: "
            f"there is no gap to close."
        )
    return text
