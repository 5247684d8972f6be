"""Lettering for the booth's wall: an own stroke alphabet, drawn at any weight, width and slant.

Letters are lists of strokes in a unit box (x to the right, y up). Drawing strokes instead of
using a font keeps the set free of font files and licences, and lets the weight run from hairline
to poster. The strings are random letters: no word, no trademark.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def _arc(centre_x, centre_y, radius_x, radius_y, start_deg, end_deg, steps=24):
    angle = np.radians(np.linspace(start_deg, end_deg, steps))
    return [(centre_x + radius_x * np.cos(a), centre_y + radius_y * np.sin(a)) for a in angle]


STROKES = {
    "A": [[(0, 0), (0.5, 1), (1, 0)], [(0.2, 0.36), (0.8, 0.36)]],
    "B": [
        [(0, 0), (0, 1), (0.45, 1), *_arc(0.45, 0.76, 0.4, 0.24, 90, -90), (0, 0.52)],
        [(0.45, 0.52), *_arc(0.5, 0.26, 0.45, 0.26, 90, -90), (0, 0)],
    ],
    "C": [_arc(0.55, 0.5, 0.55, 0.5, 45, 315)],
    "D": [[(0, 0), (0, 1), (0.4, 1), *_arc(0.4, 0.5, 0.6, 0.5, 90, -90), (0, 0)]],
    "E": [[(0.85, 1), (0, 1), (0, 0), (0.85, 0)], [(0, 0.52), (0.7, 0.52)]],
    "F": [[(0.85, 1), (0, 1), (0, 0)], [(0, 0.5), (0.7, 0.5)]],
    "G": [[*_arc(0.55, 0.5, 0.55, 0.5, 45, 350), (1.05, 0.45), (0.6, 0.45)]],
    "H": [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 0.5), (1, 0.5)]],
    "I": [[(0.5, 0), (0.5, 1)]],
    "J": [[(0.8, 1), (0.8, 0.35), *_arc(0.42, 0.35, 0.38, 0.35, 0, -180)]],
    "K": [[(0, 0), (0, 1)], [(0.95, 1), (0, 0.42)], [(0.3, 0.6), (1, 0)]],
    "L": [[(0, 1), (0, 0), (0.8, 0)]],
    "M": [[(0, 0), (0.1, 1), (0.5, 0.25), (0.9, 1), (1, 0)]],
    "N": [[(0, 0), (0, 1), (1, 0), (1, 1)]],
    "O": [_arc(0.5, 0.5, 0.55, 0.5, 0, 360)],
    "P": [[(0, 0), (0, 1), (0.5, 1), *_arc(0.5, 0.74, 0.42, 0.26, 90, -90), (0, 0.48)]],
    "Q": [_arc(0.5, 0.5, 0.55, 0.5, 0, 360), [(0.6, 0.3), (1.05, -0.05)]],
    "R": [
        [(0, 0), (0, 1), (0.5, 1), *_arc(0.5, 0.75, 0.42, 0.25, 90, -90), (0, 0.5)],
        [(0.45, 0.5), (1, 0)],
    ],
    "S": [_arc(0.5, 0.75, 0.42, 0.25, 30, 270, 18) + _arc(0.5, 0.25, 0.45, 0.25, 90, -150, 18)],
    "T": [[(0, 1), (1, 1)], [(0.5, 1), (0.5, 0)]],
    "U": [[(0, 1), (0, 0.4), *_arc(0.5, 0.4, 0.5, 0.4, 180, 360), (1, 1)]],
    "V": [[(0, 1), (0.5, 0), (1, 1)]],
    "W": [[(0, 1), (0.25, 0), (0.5, 0.8), (0.75, 0), (1, 1)]],
    "X": [[(0, 0), (1, 1)], [(0, 1), (1, 0)]],
    "Y": [[(0, 1), (0.5, 0.5), (1, 1)], [(0.5, 0.5), (0.5, 0)]],
    "Z": [[(0, 1), (1, 1), (0, 0), (1, 0)]],
}


def random_style(rng):
    """A sign; sizes are fractions of the letter height, the weight changes at letter `switch`."""
    length = int(rng.integers(4, 10))
    weights = rng.choice(
        [rng.uniform(0.045, 0.09), rng.uniform(0.09, 0.17), rng.uniform(0.17, 0.27)], 2
    )
    return {
        "text": "".join(rng.choice(list(STROKES), length)),
        "weights": [float(w) for w in weights],
        "switch": int(rng.integers(0, length + 1)),
        "width": float(rng.uniform(0.5, 1.1)),
        "gap": float(rng.uniform(0.18, 0.5)),
        "slant": float(rng.choice([0, 0, 0, rng.uniform(0.1, 0.3)])),
        "crossbar": bool(rng.random() < 0.6),
        "outline": bool(rng.random() < 0.06),
    }


def draw_sign(style, height=128):
    """Coverage 0..1: letters `height` pixels tall, a margin of a quarter height around them."""
    margin = height // 4
    step = style["width"] + style["gap"]
    total_width = int(height * (step * len(style["text"]) + 0.4)) + 2 * margin
    canvas = Image.new("L", (total_width, height + 2 * margin), 0)
    pen = ImageDraw.Draw(canvas)
    for position, letter in enumerate(style["text"]):
        weight = style["weights"][int(position >= style["switch"])]
        line_width = max(2, int(weight * height))
        strokes = STROKES[letter]
        if letter == "A" and not style["crossbar"]:
            strokes = strokes[:1]
        for stroke in strokes:
            points = [
                (
                    margin
                    + height * (0.1 + position * step + style["width"] * x + style["slant"] * y),
                    margin + height * (weight / 2 + (1 - y) * (1 - weight)),
                )
                for x, y in stroke
            ]
            pen.line(points, fill=255, width=line_width, joint="curve")
    if style["outline"]:
        rim = int(max(style["weights"]) * height // 10)
        inside = canvas.filter(ImageFilter.MinFilter(2 * rim + 3))
        canvas = Image.fromarray(np.asarray(canvas) - np.asarray(inside))
    return np.asarray(canvas, np.float32) / 255
