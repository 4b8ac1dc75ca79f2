"""Write the quality report: report.json, report.md and samples.png."""

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
from ..fuse import Labels
from .assess import BINS, FEW, assess
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
    left_out: Mapping[str, int] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write report.json, report.md and samples.png to a folder, each in one step.

    Args:
        images, labels, classes, teachers, truth, options: see `d2kd.pseudo.quality.assess.assess`.
        samples: number of images to draw, chosen at random; 0 for no picture.
        seed: for this choice.
        left_out: reason -> number of files that could not be labeled.

    Returns:
        the content of report.json.
    """
    folder = Path(folder)
    report = assess(images, labels, classes, teachers, truth=truth, **options)
    report["left_out"] = dict(left_out or {})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write_file(folder / "report.md", markdown(report))
    kept = [i for i in images if i.image_id in labels and is_kept(labels[i.image_id])]
    if samples and kept:
        order = np.random.RandomState(seed).permutation(len(kept))[:samples]
        chosen = [kept[i] for i in np.sort(order)]
        truths = truth.select_images(images) if truth else {}
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
    """Format the result of `d2kd.pseudo.quality.assess.assess` as Markdown."""
    images, truth, reference = report["images"], report.get("truth"), report.get("reference")
    parts = ["# Quality of the labels\n"]
    if report["warnings"]:
        parts += ["**Warnings**\n", "".join(f"- {line}\n" for line in report["warnings"])]
    else:
        parts.append("No warnings.\n")
    parts.append(
        f"{images['labeled']} of {images['asked']} images are labeled, {images['empty']} of them "
        f"as empty. {images['unsure']} images are left out, because all of their boxes are between "
        f"the low and the high threshold. {report['boxes']} boxes and {report['ignore_regions']} "
        f"regions to ignore; {_number(report['boxes_per_image'], 2)} boxes per image.\n"
    )
    if left_out := report.get("left_out"):
        counts = "; ".join(f"{count} ({reason})" for reason, count in left_out.items())
        parts.append(f"Files that could not be labeled: {counts}.\n")
    if reference:
        parts.append(
            f"Labeled data ({reference['source']}) have "
            f"{_number(reference['expected_boxes_per_image'], 2)} boxes per image of the "
            f"{len(reference['classes'])} classes that are labeled in all images of both. These "
            f"labels have {_number(reference['ratio'], 2)} times as many. KL divergence of the "
            f"shares of the classes from labeled data: {_number(reference['class_divergence'])} "
            f"nats.\n"
        )
    else:
        parts.append("The number of boxes is not compared: no labeled data were given.\n")
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
        parts.append("Only boxes of classes that both teachers know are counted.\n")
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
        f"## Comparison with ground truth\n\n{truth['source']}: {truth['images']} images. AP of "
        f"the boxes, in percent: {', '.join(summary)}. It counts only boxes above the "
        f"high threshold: regions to ignore are no labels, so that it is lower than the AP of the "
        f"teacher, which has boxes of all scores. Images that are left out and crowds do not "
        f"count.\n"
    ]
    if truth["unknown_classes"]:
        parts.append(f"Not in the ground truth: {', '.join(truth['unknown_classes'])}.\n")
    rows = [
        [name, str(x["labels"]), str(x["objects"]), *(_number(x[k]) for k in keys)]
        + [str(n) for n in x["errors"].values()]
        + [str(x["missed"])]
        for name, x in (("high", high), ("low", low))
        if (keys := ("precision", "recall", "mean_iou"))
    ]
    head = ["threshold", "labels", "objects", "precision", "recall", "mean IoU", *high["errors"]]
    parts.append(_table([*head, "missed"], rows))
    parts.append(
        f"A label is correct if its IoU with an object of its class is at least {IOU:g} and no "
        f"label of higher score has taken the object. The first of these that holds names the "
        f"error of another label: duplicate, IoU {IOU:g} with an object of its class; class, IoU "
        f"{IOU:g} with an object of another class; localization, IoU {NEAR:g} with an object of "
        f"its class; background. At the low threshold, regions to ignore count as boxes.\n"
    )
    rows = [
        [
            size,
            *(_number(x["sizes"][size][k]) for x in (high, low) for k in ("precision", "recall")),
        ]
        for size in high["sizes"]
    ]
    head = ["size", "precision, high", "recall, high", "precision, low", "recall, low"]
    parts.append(_table(head, rows))
    if high["correct"] < FEW:
        return parts
    edges = high["edges"]
    places = [[_number(edges[name][k]) for name in edges] for k in ("mean", "std")]
    parts.append(
        _table(["edges of correct labels", *edges], [["mean", *places[0]], ["std", *places[1]]])
    )
    parts.append(
        "How far the edges of correct labels are from their objects' edges, in shares of the "
        "object's width or height. Right and down are positive.\n"
    )
    return parts


def _classes(report: Mapping[str, Any]) -> str:
    head, truth = ["class", "boxes", "regions to ignore", "mean score"], report.get("truth")
    if truth:
        head += ["AP", "precision, high", "recall, high", "precision, low", "recall, low"]
    rows = []
    for name, x in report["classes"].items():
        row = [name, str(x["boxes"]), str(x["ignore_regions"]), _number(x["mean_score"])]
        if truth:
            row.append(_number(truth["classes"][name], 1))
            both = (truth[threshold]["classes"][name] for threshold in ("high", "low"))
            row += [_number(figures[k]) for figures in both for k in ("precision", "recall")]
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
    """Draw images with their boxes, regions to ignore (dashed) and true boxes (dotted), as a PNG.

    Args:
        path: the PNG file.
        images: the images to draw, row by row.
        labels: image id -> labels.
        classes: the student's K class names.
        truths: image id -> ground truth, if there is any.
        columns: images in a row.
        side: size of the square for each image, in pixels.
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
    FigureCanvasAgg(figure)  # unlike pyplot, this has no window and no global state to clean up
    casing = [patheffects.Stroke(linewidth=3, foreground=_CASING), patheffects.Normal()]

    def outline(ax, box: np.ndarray, color: str, style: Any) -> None:
        x1, y1, x2, y2 = box.tolist()
        frame = Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linewidth=1.6, linestyle=style
        )
        frame.set_path_effects(casing)
        ax.add_patch(frame)

    for n, image in enumerate(images):
        left, bottom = n % columns * side + 4, height - (n // columns + 1) * side + 4
        place = (left / width, bottom / height, (side - 8) / width, (side - 8) / height)
        ax, shown = figure.add_axes(place), labels[image.image_id]
        ax.imshow(read_image(image.file_name, "RGB"), extent=(0, image.width, image.height, 0))
        ax.set(xlim=(0, image.width), ylim=(image.height, 0))
        ax.axis("off")
        if truths and image.image_id in truths:
            for box in truths[image.image_id].boxes:
                outline(ax, box, TRUTH, (0, (1, 2)))
        for i in np.argsort(shown.scores, kind="stable"):
            color, style = (REGION, (0, (4, 2))) if shown.ignore[i] else (BOX, "-")
            outline(ax, shown.boxes[i], color, style)
            text = f"{classes[shown.classes[i]]} {100 * shown.scores[i]:.0f}%"
            back = {"facecolor": color, "edgecolor": "none", "pad": 1}
            x, y = shown.boxes[i, :2].clip(0, None)
            over = "bottom" if y > 0.05 * image.height else "top"  # above the box, if there is room
            ax.text(x, y, text, size=7, va=over, bbox=back, clip_on=True)
    kinds: list[tuple[str, Any, str]] = [
        (BOX, "-", "box"),
        (REGION, (0, (4, 2)), "region to ignore"),
    ]
    kinds += [(TRUTH, (0, (1, 2)), "true box")] if truths else []
    handles = [
        Patch(facecolor="#45494d", edgecolor=color, linestyle=style, linewidth=1.6, label=label)
        for color, style, label in kinds
    ]
    figure.legend(handles=handles, loc="lower left", ncol=len(kinds), frameon=False, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_file(path, content.getvalue())
