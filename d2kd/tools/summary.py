"""Mean and spread over seeds of the demo's results.

python tools/summary.py output/seed1/results.json output/seed2/results.json ...
"""

import json
import sys
from pathlib import Path

from tabulate import tabulate

from d2kd.tools.seeds import spread

METRICS = ("AP", "AP50", "AP75")


def summary(runs: list[dict]) -> str:
    """A Markdown table of {teacher, alone, distilled} over runs, and of the paired difference.

    Args:
        runs: contents of two or more results.json, one for each seed.
    """
    models = ("teacher", "alone", "distilled")
    rows = [[m, *(spread([run[m][k] for run in runs]) for k in METRICS)] for m in models]
    gains = {k: [run["distilled"][k] - run["alone"][k] for run in runs] for k in METRICS}
    rows.append(["distilled - alone", *(spread(gains[k]) for k in METRICS)])
    closed = [
        100 * gain / (run["teacher"]["AP"] - run["alone"]["AP"])
        for gain, run in zip(gains["AP"], runs, strict=True)
    ]
    rows.append(["part of the gap closed, %", spread(closed), "", ""])
    return tabulate(rows, ["", *METRICS], tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("expected two or more results.json files, found "
                 f"{len(sys.argv) - 1}.\n{__doc__}")  # fmt: skip
    print(summary([json.loads(Path(path).read_text()) for path in sys.argv[1:]]))
