"""Shut lines, mouldings, second paint and stickers, cut out of the panels' skin (metres)."""

import numpy as np
from meshes import cut, merge, push, sigmoid, smooth_max


def shut_lines(panels):
    """Thin dark bands around the lines of doors, bonnet, bumper and boot lid."""
    for line, region in _lines(panels):
        candidate, others = cut(panels.rest, region)
        before, after = cut(candidate, lambda v, n, line=line: line(v) + 0.0028)
        band, after = cut(after, lambda v, n, line=line: line(v) - 0.0028)
        panels.rest = merge([others, before, after])
        panels.add("gap#lines", push(band, -0.004))
    body, tail_x = panels.body, panels.body.tail_x
    if body.kind == "pickup":  # the open bed: dark, slightly sunk
        vertices, normals, faces = panels.take(
            lambda v, n: np.maximum(
                np.maximum(v[:, 0] - body.cab_x + 0.10, tail_x + 0.16 - v[:, 0]),
                np.maximum(np.abs(v[:, 1]) - body.half_width * 0.83, 0.6 - n[:, 2]),
            )
        )
        panels.parts["black#bed"] = (vertices - [0, 0, 0.03], normals, faces)


def _lines(panels):
    """Pairs of the function that is zero on a line and the region in which the line is drawn."""
    body, four_doors = panels.body, panels.shape["doors"] == 4
    half_width, nose_x, tail_x, sill_z, belt_z = (
        body.half_width,
        body.nose_x,
        body.tail_x,
        body.sill_z,
        body.belt_z,
    )
    front_x = body.front_axle - body.arch_radius - 0.07
    middle_x, rear_x = panels.door_end_x, panels.second_door_end_x
    bumper_z = body.level(0.62)

    def side(v, n):
        return np.maximum(
            np.maximum(sill_z + 0.05 - v[:, 2], v[:, 2] - body.roof(v[:, 0]) + 0.09),
            0.5 - np.abs(n[:, 1]),
        )

    def lower_side(v, n):
        return np.maximum(side(v, n), v[:, 2] - belt_z - 0.02)

    lines = [
        (lambda v: v[:, 0] - front_x - 0.05 * np.sin((v[:, 2] - sill_z) * 4), lower_side),
        (lambda v: v[:, 0] - middle_x + (v[:, 2] - belt_z) * 0.10 * (v[:, 2] > belt_z), side),
    ]
    if four_doors:  # the rear door's edge follows the wheel arch
        lines.append(
            (
                lambda v: smooth_max(
                    rear_x - v[:, 0],
                    body.arch_radius
                    + 0.07
                    - np.hypot(v[:, 0] - body.rear_axle, v[:, 2] - body.wheel_radius),
                    0.05,
                ),
                lambda v, n: np.maximum(lower_side(v, n), v[:, 0] - rear_x - 0.25),
            )
        )
    last_x = rear_x if four_doors else middle_x
    lines += [
        # lower edge of the doors
        (
            lambda v: v[:, 2] - sill_z - 0.075,
            lambda v, n: np.maximum(
                lower_side(v, n) - 0.04, np.maximum(v[:, 0] - front_x, last_x - v[:, 0])
            ),
        ),
        # bonnet: sides and front edge
        (
            lambda v: (
                np.abs(v[:, 1])
                - half_width * (0.80 - 0.12 * sigmoid((v[:, 0] - nose_x + 0.35) / 0.1))
            ),
            lambda v, n: np.maximum(
                np.maximum(body.cowl_x + 0.02 - v[:, 0], v[:, 0] - nose_x + 0.10), 0.5 - n[:, 2]
            ),
        ),
        (
            lambda v: v[:, 0] - body.front(body.nose_z) + 0.03 + 0.32 * body.across(v) ** 2.6,
            lambda v, n: np.maximum(0.3 - n[:, 2], np.abs(v[:, 1]) - 0.7 * half_width),
        ),
        # bumpers
        (lambda v: v[:, 2] - bumper_z, lambda v, n: v[:, 0] - tail_x - 0.42),
        (
            lambda v: (
                v[:, 0]
                - body.front_axle
                - body.arch_radius * 0.95
                - 0.1
                - 0.35 * (v[:, 2] - body.level(0.5))
            ),
            lambda v, n: np.maximum(
                np.maximum(v[:, 2] - body.nose_z + 0.12, body.front_axle - v[:, 0]),
                np.maximum(sill_z - v[:, 2], 0.4 - np.abs(n[:, 1])),
            ),
        ),
        # boot lid or tailgate
        (
            lambda v: np.abs(v[:, 1]) - half_width * 0.63,
            lambda v, n: np.maximum(
                np.maximum(bumper_z - v[:, 2], v[:, 0] - tail_x - 0.3), n[:, 0] + 0.35
            ),
        ),
    ]
    if body.kind == "pickup":  # between cab and bed, a wider one
        lines.append(
            (
                lambda v: (v[:, 0] - body.cab_x + 0.045) / 2.2,
                lambda v, n: np.maximum(0.3 - np.abs(n[:, 1]), v[:, 2] - 1.5),
            )
        )
    return lines


def mouldings_and_sunroof(panels):
    body, shape = panels.body, panels.shape
    if shape["moulding"]:
        strip_z = body.level(0.33)
        door = panels.take(
            lambda v, n: np.maximum(
                np.maximum(
                    np.abs(v[:, 0]) - shape["wheelbase"] / 2 + body.arch_radius + 0.06,
                    0.5 - np.abs(n[:, 1]),
                ),
                np.abs(v[:, 2] - strip_z) - 0.05,
            )
        )
        below, door = cut(door, lambda v, n: v[:, 2] - strip_z + 0.016)
        strip, above = cut(door, lambda v, n: v[:, 2] - strip_z - 0.016)
        panels.rest = merge([panels.rest, below, above])
        panels.parts["chrome#moulding" if shape["chrome_trim"] else "black#moulding"] = push(
            strip, 0.006
        )
    if shape["sunroof"]:
        panels.parts["darkglass#sunroof"] = panels.take(
            lambda v, n: np.maximum(
                smooth_max(
                    np.abs(v[:, 0] - body.screen_top_x + 0.52) - 0.34,
                    np.abs(v[:, 1]) - 0.40,
                    0.06,
                ),
                0.8 - n[:, 2],
            )
        )


def second_paint_and_stickers(panels):
    body, shape = panels.body, panels.shape
    at_x, at_level, half_length, half_height = shape["sticker_at"]
    at_z = body.level(at_level)

    def on_side(n):
        return 0.6 - np.abs(n[:, 1])

    stickers = {
        "door": lambda v, n: np.maximum(
            on_side(n),
            np.maximum(np.abs(v[:, 0] - at_x) - half_length, np.abs(v[:, 2] - at_z) - half_height),
        ),
        "patch": lambda v, n: np.maximum(
            on_side(n), np.hypot((v[:, 0] - at_x) / 2.2, v[:, 2] - at_z) - half_height
        ),
        "side band": lambda v, n: np.maximum(
            on_side(n), np.abs(v[:, 2] - at_z) - 0.5 * half_height
        ),
        "stripe": lambda v, n: np.maximum(
            np.abs(np.abs(v[:, 1]) - 0.19) - 0.4 * half_length, body.level(0.5) - v[:, 2]
        ),
    }
    tones = {
        "roof": lambda v, n: body.belt_z + shape["wedge"] * 0.5 + 0.015 - v[:, 2],
        "sill": lambda v, n: v[:, 2] - body.level(0.34),
        "bonnet": lambda v, n: np.maximum(
            np.maximum(body.cowl_x + 0.06 - v[:, 0], 0.35 - n[:, 2]),
            np.abs(v[:, 1]) - 0.78 * body.half_width,
        ),
    }
    if shape["sticker"] in stickers:
        panels.parts["decal#sticker"] = panels.take(stickers[shape["sticker"]])
    if shape["second_tone"] in tones:
        panels.parts["paint2#tone"] = panels.take(tones[shape["second_tone"]])
