"""Pictures of detections, and of what each method compares.

maps.py         what one detector looks at: attention, key regions, uncertainty
networks.py     students, teacher and methods, and what they show about an image
pictures.py     the images, their objects and their pseudo labels
panels.py       which panels a config has
draw.py         drawings on Matplotlib's axes
sheet.py        a grid of drawings
training.py     the same while a student trains, for TensorBoard
"""

from .draw import (
    CORRECT,
    LABEL,
    MISSED,
    WRONG,
    draw_candidates,
    draw_detections,
    draw_gaussians,
    draw_heat,
    draw_labels,
    draw_levels,
    draw_message,
    draw_ranks,
)
from .maps import key_regions, spatial_attention, uncertainty, upsample
from .networks import Networks
from .panels import columns
from .pictures import Picture, PseudoLabels, image_format, make_picture, spread
from .sheet import Column, compose_sheet, render_sheet
from .training import TrainingPictures, training_pictures

__all__ = [
    "CORRECT",
    "LABEL",
    "MISSED",
    "WRONG",
    "Column",
    "Networks",
    "Picture",
    "PseudoLabels",
    "TrainingPictures",
    "columns",
    "compose_sheet",
    "draw_candidates",
    "draw_detections",
    "draw_gaussians",
    "draw_heat",
    "draw_labels",
    "draw_levels",
    "draw_message",
    "draw_ranks",
    "image_format",
    "key_regions",
    "make_picture",
    "render_sheet",
    "spatial_attention",
    "spread",
    "training_pictures",
    "uncertainty",
    "upsample",
]
