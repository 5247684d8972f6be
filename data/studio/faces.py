"""Front and rear of the car: lamps, grille, bumpers, cut out of the panels' skin (metres)."""

import numpy as np
from meshes import both_sides, cut, merge, push, smooth_max, superellipsoid


def head_lamps(panels):
    body, shape = panels.body, panels.shape
    middle_z = body.nose_z - 0.10 - 0.03 * body.tall
    height = (0.11 if body.tall else 0.085) * shape["lamp_height"]
    inner_y = shape["grille_width"] * body.half_width

    def lamp(v, n):
        x, y, z = v.T
        back = body.nose_x - x
        upper = middle_z + height * 0.55 + shape["lamp_rise"] * back * 1.1
        lower = middle_z - height * 0.55 + shape["lamp_rise"] * back * 0.8
        inside = smooth_max(z - upper, lower - z, 0.04)
        inside = smooth_max(
            inside, inner_y + 0.03 + 0.25 * (middle_z + height - z) - np.abs(y), 0.05
        )
        inside = smooth_max(inside, back - shape["lamp_length"], 0.10)
        return np.maximum(inside, 0.02 - np.maximum(n[:, 0], np.abs(n[:, 1]) * 0.4))

    lens, panels.parts["black#lamprim"] = panels.take_framed(lamp, 0.008)
    panels.parts["lens#head"] = lens
    if not len(lens[0]):
        return
    # behind the lens: a copy of it, in dark and mirrored strips, and two bulbs
    remaining = push(lens, -0.028)
    dark, bright = [], []
    for strip_y in np.arange(0.30, body.half_width, 0.095):
        before, remaining = cut(remaining, lambda v, n, y=strip_y: np.abs(v[:, 1]) - y + 0.030)
        strip, remaining = cut(remaining, lambda v, n, y=strip_y: np.abs(v[:, 1]) - y - 0.030)
        bright.append(before)
        dark.append(strip)
    panels.parts["reflector#head"] = merge(dark)
    panels.parts["black#lampin"] = merge([*bright, remaining])
    for share in (0.60, 0.78):
        bulb_y = inner_y + (body.half_width - inner_y) * (share - 0.42) * 1.5 + 0.02
        bulb_x = (
            body.front(middle_z) - shape["nose_curve"] * (bulb_y / body.half_width) ** 2.6 - 0.035
        )
        bulb_z = middle_z + shape["lamp_rise"] * (body.nose_x - bulb_x)
        panels.add(
            "chrome#bulb",
            both_sides(superellipsoid([bulb_x, bulb_y, bulb_z], (0.025, 0.042, 0.042))),
        )


def tail_lamps(panels):
    body, shape = panels.body, panels.shape
    upper = body.deck_z + (0.10 if body.two_box else -0.07)
    lower = (
        upper
        - (0.26 if body.tall else 0.15) * shape["tail_lamp_height"]
        - (0.06 if body.kind in ("suv", "van") else 0)
    )
    inner, wrap = (0.70, 0.16) if body.two_box else (0.60, 0.20)

    def lamp(v, n):
        x, y, z = v.T
        inside = smooth_max(z - upper, lower - z, 0.06)
        inside = smooth_max(inside, inner * body.half_width - np.abs(y) + 0.25 * (upper - z), 0.06)
        inside = smooth_max(inside, x - body.tail_x - wrap - 0.10 - 0.25 * (z - lower), 0.06)
        return np.maximum(inside, -0.02)

    outer = panels.take(lambda v, n: np.maximum(lamp(v, n), n[:, 0] - 0.5) - 0.006)
    lens, panels.parts["black#tailrim"] = cut(outer, lamp)
    reversing_z = lower * 0.65 + upper * 0.35
    panels.parts["lens_white#tail"], panels.parts["lens_red#tail"] = cut(
        lens,
        lambda v, n: np.maximum(
            np.abs(v[:, 2] - reversing_z) - 0.022, v[:, 0] - body.tail_x - 0.13
        ),
    )


def grille(panels):
    body, shape = panels.body, panels.shape
    upper = body.nose_z - 0.085
    height = (0.17 + 0.15 * body.tall + 0.08 * (body.kind == "pickup")) * shape["grille_height"]
    lower = upper - height

    def opening(v, n):
        inside = smooth_max(v[:, 2] - upper, lower - v[:, 2], 0.03)
        edge = (
            shape["grille_width"] * body.half_width * (0.82 + 0.18 * (v[:, 2] - lower) / height)
            - 0.02
        )
        return np.maximum(smooth_max(inside, np.abs(v[:, 1]) - edge, 0.05), 0.3 - n[:, 0])

    inside, panels.parts["chrome#grillerim" if shape["chrome_grille"] else "black#grillerim"] = (
        panels.take_framed(opening, 0.014)
    )
    pitch = height / shape["slats"]
    half = min(0.014, pitch * 0.2)
    slats, gaps = [], []
    for number in range(shape["slats"]):
        slat_z = lower + (number + 0.5) * pitch
        gap, inside = cut(inside, lambda v, n, z=slat_z: v[:, 2] - z + half)
        slat, inside = cut(inside, lambda v, n, z=slat_z: v[:, 2] - z - half)
        gaps.append(gap)
        slats.append(slat)
    panels.parts["black#grilleback"] = push(merge([*gaps, inside]), -0.02)
    panels.parts["black#slats" if shape["mesh_grille"] else "chrome#slats"] = merge(slats)
    panels.grille_middle_z = upper - height * 0.4


def bumpers(panels):
    level, half_width, tail_x = panels.body.level, panels.body.half_width, panels.body.tail_x

    def intake(v, n):
        inside = smooth_max(v[:, 2] - level(0.26), level(0.06) - v[:, 2], 0.03)
        inside = smooth_max(
            inside, np.abs(v[:, 1]) - 0.60 * half_width + 0.25 * (v[:, 2] - level(0.06)), 0.05
        )
        return np.maximum(inside, 0.2 - n[:, 0])

    panels.parts["black#intake"] = push(panels.take(intake), -0.015)
    panels.parts["black#fog"] = panels.take(
        lambda v, n: np.maximum(
            np.hypot((np.abs(v[:, 1]) - 0.75 * half_width) / 1.5, v[:, 2] - level(0.20)) - 0.045,
            0.2 - n[:, 0],
        )
    )
    panels.add(
        "black#diffuser",
        panels.take(
            lambda v, n: np.maximum(
                np.maximum(v[:, 2] - level(0.13), np.abs(v[:, 1]) - 0.62 * half_width),
                v[:, 0] - tail_x - 0.5,
            )
        ),
    )
    panels.add(
        "lens_red#reflector",
        panels.take(
            lambda v, n: np.maximum(
                np.maximum(
                    np.abs(v[:, 2] - level(0.30)) - 0.022,
                    np.abs(np.abs(v[:, 1]) - 0.66 * half_width) - 0.11,
                ),
                v[:, 0] - tail_x - 0.3,
            )
        ),
    )
    if panels.shape["valance"]:
        panels.add(
            "black#diffuser",
            panels.take(
                lambda v, n: np.maximum(
                    smooth_max(
                        v[:, 2] - level(0.36),
                        np.abs(v[:, 1])
                        - 0.80 * half_width
                        + 0.6 * np.maximum(v[:, 2] - level(0.2), 0),
                        0.05,
                    ),
                    v[:, 0] - tail_x - 0.5,
                )
            ),
        )
