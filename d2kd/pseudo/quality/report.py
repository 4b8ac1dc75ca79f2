"""The quality report as files: report.json, report.md and samples.png."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.manifest import Image
from ...files import write_file, write_json
from ..coco import is_kept
from ..records import Labels
from .assess import BINS, assess
from .truth import IOU, NEAR, TrueBoxes, TrueImage

__all__ = ["draw_samples", "markdown", "write_report"]

BOX, REGION, TRUTH, _CASING = "#19d3f3", "#ffb000", "#ffffff", "#111111"


def write_report(
    folder: str | Path,
    images: Sequence[Image],
    labels: Mapping[int, Labels],
    classes: Sequence[str],
    teachers: Sequence[str],
    *,
    samples: int = 12,
    seed: int = 0,
    truth: TrueBoxes | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write report.json, report.md and samples.png to a folder; each appears whole.

    Args:
        samples: number of images to draw, chosen at random by `seed`; 0: no PNG.
        truth, options: and all else: see `d2kd.pseudo.quality.assess`.

    Returns:
        what report.json says.
    """
    folder = Path(folder)
    report = assess(images, labels, classes, teachers, truth=truth, **options)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write_file(folder / "report.md", markdown(report))
    kept = [i for i in images if i.image_id in labels and is_kept(labels[i.image_id])]
    if samples and kept:
        order = np.random.RandomState(seed).permutation(len(kept))[:samples]
        chosen = [kept[i] for i in np.sort(order)]
        truths = truth.of(images) if truth else {}
        draw_samples(folder / "samples.png", chosen, labels, classes, truths)
    return report


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _histogram(head: Sequence[str], names: Sequence[str], columns: Sequence[Sequence[int]]) -> str:
    most = max([1, *columns[0]])
    rows = [
        [name, *map(str, counts), "█" * round(20 * counts[0] / most)]
        for name, *counts in zip(names, *columns, strict=True)
    ]
    return _table([*head, ""], rows)


def markdown(report: Mapping[str, Any]) -> str:
    """A report of `d2kd.pseudo.quality.assess` to be read."""
    images, truth, reference = (report.get(k) for k in ("images", "truth", "reference"))
    parts = ["# Quality of the labels\n"]
    if report["warnings"]:
        parts += ["**Warnings**\n", "".join(f"- {line}\n" for line in report["warnings"])]
    else:
        parts.append("No warnings.\n")
    parts.append(
        f"{images['labelled']} of {images['asked']} images are labelled, {images['empty']} of them "
        f"as empty; {images['unsure']} are left out, because all that was found in them is between "
        f"the bars. {report['boxes']} boxes and {report['ignore_regions']} regions to ignore; "
        f"{_number(report['boxes_per_image'], 2)} boxes per image.\n"
    )
    if reference:
        parts.append(
            f"Labelled data ({reference['source']}) have "
            f"{_number(reference['expected_boxes_per_image'], 2)} boxes per image of the "
            f"{len(reference['classes'])} classes that both label everywhere; these labels "
            f"{_number(reference['ratio'], 2)} times as many. Divergence of the classes' shares "
            f"(KL, labels from labelled data): {_number(reference['class_divergence'])} nats.\n"
        )
    else:
        parts.append("No labelled data given: the number of boxes is compared with none.\n")
    if truth:
        parts += _truth_parts(truth)
    parts += ["## Classes\n", _classes(report)]
    if report["agreement"]:
        head = ["teachers", "found by both", "found by either", "rate"]
        rows = [
            [", ".join(r["teachers"]), str(r["both"]), str(r["either"]), _number(r["rate"])]
            for r in report["agreement"]
        ]
        parts += ["## Agreement of teachers\n", _table(head, rows)]
        parts.append("Boxes of classes that both teachers know.\n")
    bins = [f"{low:.1f} to {high:.1f}" for low, high in itertools.pairwise(BINS)]
    scores = [report["score_histogram"], report["ignore_score_histogram"]]
    parts += ["## Scores\n", _histogram(["score", "boxes", "regions to ignore"], bins, scores)]
    counts = report["boxes_per_image_histogram"]
    shown = [*counts[:20], sum(counts[20:])] if len(counts) > 20 else counts
    names = [*map(str, range(min(len(counts), 20))), "20 or more"][: len(shown)]
    parts += ["## Boxes per image\n", _histogram(["boxes", "images"], names, [shown])]
    return "\n".join(parts)


def _truth_parts(truth: Mapping[str, Any]) -> list[str]:
    high, low = truth["high"], truth["low"]
    summary = [f"{name} {_number(truth[name], 1)}" for name in ("AP", "AP50", "AP75")]
    summary += [f"{name} {_number(truth[name], 1)}" for name in ("APs", "APm", "APl")]
    parts = [
        f"## Beside the truth\n\n{truth['source']}: {truth['images']} images. AP of the boxes, in "
        f"percent: {', '.join(summary)}. Images that are left out and crowds do not count.\n"
    ]
    if truth["unknown_classes"]:
        parts.append(f"Not in the truth: {', '.join(truth['unknown_classes'])}.\n")
    rows = [
        [name, str(x["labels"]), str(x["objects"]), *(_number(x[k]) for k in keys)]
        + [str(n) for n in x["errors"].values()]
        + [str(x["missed"])]
        for name, x in (("high", high), ("low", low))
        if (keys := ("precision", "recall", "mean_iou"))
    ]
    head = ["bar", "labels", "objects", "precision", "recall", "mean IoU", *high["errors"]]
    parts.append(_table([*head, "missed"], rows))
    parts.append(
        f"A label is correct from IoU {IOU:g} with an object of its class that no surer label has. "
        f"Of the others, by the first that holds: duplicate, IoU {IOU:g} with an object of its "
        f"class; class, IoU {IOU:g} with one of another class; localisation, IoU {NEAR:g} with one "
        f"of its class; background. At the low bar, regions to ignore count as boxes.\n"
    )
    rows = [
        [
            size,
            *(_number(x["sizes"][size][k]) for x in (high, low) for k in ("precision", "recall")),
        ]
        for size in high["sizes"]
    ]
    head = ["size", "precision, high", "recall, high", "precision, low", "recall, low"]
    return [*parts, _table(head, rows)]


def _classes(report: Mapping[str, Any]) -> str:
    head, truth = ["class", "boxes", "regions to ignore", "mean score"], report.get("truth")
    if truth:
        head += ["AP", "precision, high", "recall, high", "precision, low", "recall, low"]
    rows = []
    for name, x in report["classes"].items():
        row = [name, str(x["boxes"]), str(x["ignore_regions"]), _number(x["mean_score"])]
        if truth:
            row.append(_number(truth["classes"][name], 1))
            bars = (truth[bar]["classes"][name] for bar in ("high", "low"))
            row += [_number(bar[k]) for bar in bars for k in ("precision", "recall")]
        rows.append(row)
    return _table(head, rows)


def draw_samples(
    path: str | Path,
    images: Sequence[Image],
    labels: Mapping[int, Labels],
    classes: Sequence[str],
    truths: Mapping[int, TrueImage] | None = None,
    *,
    columns: int = 4,
    side: int = 420,
) -> None:
    """Write a PNG of images with their boxes, regions to ignore (dashed) and true boxes (dotted).

    Args:
        images: those to draw, row by row.
        truths: image id -> true boxes, if any.
        side: of an image, in pixels.
    """
    from detectron2.data.detection_utils import read_image
    from matplotlib import patheffects
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    columns, dpi, foot = min(columns, len(images)), 100, 44
    rows = -(-len(images) // columns)
    width, height = columns * side, rows * side + foot
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)  # no window and no global state: nothing to close
    casing = [patheffects.Stroke(linewidth=3, foreground=_CASING), patheffects.Normal()]

    def outline(ax, box: np.ndarray, color: str, style: Any) -> None:
        size = box[2] - box[0], box[3] - box[1]
        frame = Rectangle(box[:2], *size, fill=False, color=color, linewidth=1.6, linestyle=style)
        frame.set_path_effects(casing)
        ax.add_patch(frame)

    for n, image in enumerate(images):
        left, bottom = n % columns * side + 4, height - (n // columns + 1) * side + 4
        place = (left / width, bottom / height, (side - 8) / width, (side - 8) / height)
        ax, found = figure.add_axes(place), labels[image.image_id]
        ax.imshow(read_image(image.file_name, "RGB"), extent=(0, image.width, image.height, 0))
        ax.set(xlim=(0, image.width), ylim=(image.height, 0))
        ax.axis("off")
        if truths and image.image_id in truths:
            for box in truths[image.image_id].boxes:
                outline(ax, box, TRUTH, (0, (1, 2)))
        for i in np.argsort(found.scores, kind="stable"):
            color, style = (REGION, (0, (4, 2))) if found.ignore[i] else (BOX, "-")
            outline(ax, found.boxes[i], color, style)
            text = f"{classes[found.classes[i]]} {100 * found.scores[i]:.0f}%"
            back = {"facecolor": color, "edgecolor": "none", "pad": 1}
            x, y = found.boxes[i, :2].clip(0, None)
            over = "bottom" if y > 0.05 * image.height else "top"  # above the box, if there is room
            ax.text(x, y, text, size=7, va=over, bbox=back, clip_on=True)
    kinds = [(BOX, "-", "box"), (REGION, (0, (4, 2)), "region to ignore")]
    kinds += [(TRUTH, (0, (1, 2)), "true box")] if truths else []
    handles = [
        Patch(facecolor="#45494d", edgecolor=color, linestyle=style, linewidth=1.6, label=label)
        for color, style, label in kinds
    ]
    figure.legend(handles=handles, loc="lower left", ncol=len(kinds), frameon=False, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_file(path, content.getvalue())
