"""What is bolted on or sits inside, from seats and mirrors to roof box and wipers (metres)."""

import numpy as np
from meshes import both_sides, cut, lathe, merge, prism, superellipsoid, tube

SEAT_SHARE = 0.40  # seats stand at this share of half the car's width


def add_fittings(parts, panels):
    for step in (
        _underbody_and_seats,
        _mirrors_and_handles,
        _plates_and_badges,
        _roof,
        _tail,
        _wipers,
    ):
        step(parts, panels, panels.body, panels.shape)


def _upright_quad(x, half_width, low, high):
    """Rectangle across the car at x."""
    return [
        (x, -half_width, low),
        (x, half_width, low),
        (x, half_width, high),
        (x, -half_width, high),
    ]


def _at(function, position):
    """Value of one of the body's curves at a single position."""
    return float(function(np.array([position]))[0])


def _underbody_and_seats(parts, panels, body, shape):
    clearance, belt = body.clearance, body.belt_z
    parts["black#floor"] = prism(
        [
            _upright_quad(x, body.half_width * 0.72, clearance + 0.03, clearance + 0.25)
            for x in (body.tail_x + 0.25, body.nose_x - 0.25)
        ]
    )
    inner, cushion = body.half_width - 0.14, belt - 0.30
    rear = body.tail_x + 0.2 if body.two_box else body.rear_foot_x
    inside = [
        prism(
            [
                _upright_quad(x, inner, clearance + 0.1, cushion)
                for x in (rear + 0.05, body.cowl_x - 0.05)
            ]
        )
    ]
    first_row = panels.door_end_x + 0.02
    rows = [first_row]
    if shape["doors"] == 4 or body.kind == "coupe":
        rows.append(first_row - 0.85)
    if body.kind == "van":
        rows.append(first_row - 1.6)
    seat_y = SEAT_SHARE * body.half_width
    for number, row in enumerate(rows):
        for y in (seat_y, -seat_y):
            top = min(belt + 0.16, body.roof_z - 0.42) if number == 0 else belt + 0.05
            inside.append(
                superellipsoid(
                    [row - 0.02, y, (cushion + top) / 2],
                    (0.10, 0.24, (top - cushion) / 2 + 0.10),
                    (0.4, 0.5),
                    14,
                )
            )
            inside.append(
                superellipsoid([row - 0.06, y, top + 0.10], (0.055, 0.13, 0.085), (0.5, 0.6), 12)
            )
    inside.append(
        superellipsoid(
            [body.cowl_x - 0.28, 0, belt - 0.06], (0.30, inner * 0.95, 0.12), (0.6, 0.4), 16
        )
    )
    # whatever would stick out through the skin is cut away
    parts["interior#seats"] = cut(merge(inside), lambda v, n: body.skin(*v.T) + 0.035)[0]
    angle = np.linspace(0, 2 * np.pi, 33)
    rim = np.stack(
        [
            body.cowl_x - 0.62 + 0.07 * np.sin(angle),
            seat_y + 0.18 * np.cos(angle),
            belt - 0.02 + 0.17 * np.sin(angle),
        ],
        1,
    )
    parts["black#steering"] = tube(rim, 0.016, 8)
    parts["black#inner_mirror"] = superellipsoid(
        [body.cowl_x - shape["screen_run"] * 0.78, 0, body.roof_z - 0.17],
        (0.02, 0.11, 0.03),
        (0.6, 0.6),
        10,
    )


def _mirrors_and_handles(parts, panels, body, shape):
    z, x = body.belt_z + 0.10, body.cowl_x - 0.42
    side = body.window_side(x, z)
    size = 1.25 if body.tall else 1.0
    parts["paint#mirror"] = both_sides(
        superellipsoid(
            [x, side + 0.13 * size, z + 0.01],
            (0.075 * size, 0.115 * size, 0.072 * size),
            (0.7, 0.6),
            20,
            yaw=-0.18,
        )
    )
    stalk = [(x, side - 0.05, z - 0.06), (x, side + 0.05, z - 0.045), (x, side + 0.10, z - 0.02)]
    parts["black#stalk"] = both_sides(tube(stalk, [0.035, 0.028, 0.025]))
    parts["mirror#glass"] = both_sides(
        superellipsoid(
            [x - 0.068 * size, side + 0.13 * size, z + 0.01],
            (0.012, 0.098 * size, 0.058 * size),
            (0.5, 0.5),
            14,
            yaw=-0.18,
        )
    )
    handles = [panels.door_end_x + 0.14]
    if shape["doors"] == 4:
        handles.append(
            panels.door_end_x - 0.12 if body.kind == "van" else panels.second_door_end_x + 0.22
        )
    name = "chrome#handle" if shape["chrome_handles"] else "paint#handle"
    for x in handles:
        z = body.belt_z - 0.09
        y = float(body.flank(np.array([x]), np.array([z]))[0]) + 0.004
        parts.setdefault(name, []).append(
            both_sides(superellipsoid([x, y, z], (0.105, 0.024, 0.017), (0.6, 0.6), 12))
        )


def _plates_and_badges(parts, panels, body, shape):
    if body.kind == "pickup":
        rear_z = body.level(0.42)
    else:
        rear_z = body.level(0.72) if body.two_box else body.deck_z - 0.24
    rear_x = _at(body.rear, rear_z)
    parts["plate#rear"] = prism(
        [
            _upright_quad(rear_x - 0.006 - e, 0.155, rear_z - 0.08, rear_z + 0.08)[::-1]
            for e in (-0.02, 0.004)
        ]
    )
    parts["plateband#rear"] = prism(
        [
            _upright_quad(rear_x - 0.010 - e, 0.12, rear_z - 0.03, rear_z + 0.03)[::-1]
            for e in (0, 0.004)
        ]
    )
    if shape["front_plate"]:
        z = body.level(0.36)
        parts["plate#front"] = prism(
            [
                _upright_quad(body.nose_x + 0.004 + e, 0.155, z - 0.08, z + 0.08)
                for e in (-0.02, 0.004)
            ]
        )
        parts["plateband#front"] = prism(
            [_upright_quad(body.nose_x + 0.006 + e, 0.12, z - 0.03, z + 0.03) for e in (0, 0.005)]
        )
    front_z = panels.grille_middle_z
    parts["chrome#badge"] = [
        superellipsoid([_at(body.front, front_z), 0, front_z], (0.016, 0.07, 0.05), rows=12),
        superellipsoid(
            [_at(body.rear, body.deck_z - 0.12), 0, body.deck_z - 0.10],
            (0.014, 0.055, 0.04),
            rows=12,
        ),
    ]


def _roof(parts, panels, body, shape):
    x = body.rear_top_x + 0.15
    roof_z = _at(body.roof, x)
    if shape["antenna"] == "fin":
        parts["paint#fin"] = superellipsoid(
            [x, 0, roof_z + 0.01], (0.11, 0.025, 0.055), (0.9, 0.9), 14
        )
    elif shape["antenna"] == "mast":
        mast = [(x, 0, roof_z - 0.01), (x - 0.06, 0, roof_z + 0.06), (x - 0.30, 0, roof_z + 0.35)]
        parts["black#mast"] = tube(mast, [0.012, 0.006, 0.004], 8)
    front_x, rear_x = body.screen_top_x, body.rear_top_x
    if shape["rails"]:
        x = np.linspace(rear_x + 0.05, front_x - 0.02, 24)
        y = body.window_side(x, body.roof_z - 0.06) - 0.055
        z = (
            body.roof(x)
            - 0.07 * (y / body.half_width) ** 2
            + 0.045 * (1 - np.linspace(-1, 1, 24) ** 8)
            - 0.02
        )
        parts["chrome#rails" if shape["chrome_rails"] else "black#rails"] = both_sides(
            tube(np.stack([x, y, z], 1), 0.017, 8)
        )
        if shape["crossbars"]:
            for i in (6, 17):
                bar = [(x[i], -y[i], z[i]), (x[i], 0, z[i] + 0.015), (x[i], y[i], z[i])]
                parts.setdefault("black#crossbars", []).append(tube(bar, 0.016, 8))
    if shape["roof_box"]:
        centre = [
            (front_x + rear_x) / 2,
            0.22 if shape["roof_box_left"] else -0.22,
            body.roof_z + 0.19,
        ]
        radii = (min(0.95, (front_x - rear_x) * 0.55), 0.36, 0.17)
        parts["black#roofbox" if shape["black_roof_box"] else "paint2#roofbox"] = superellipsoid(
            centre, radii, (0.5, 0.5), 20
        )
        for share in (0.3, 0.7):
            x, y = rear_x + (front_x - rear_x) * share, 0.55 * body.half_width
            bar = [
                (x, -y, body.roof_z - 0.05),
                (x, 0, body.roof_z + 0.05),
                (x, y, body.roof_z - 0.05),
            ]
            parts.setdefault("black#boxbars", []).append(tube(bar, 0.018, 8))


def _tail(parts, panels, body, shape):
    tail_x, deck_z, half_width = body.tail_x, body.deck_z, body.half_width
    if shape["boot_wing"]:
        parts["paint#wing"] = prism(
            [
                [
                    (tail_x + 0.04, y, deck_z + 0.09),
                    (tail_x + 0.26, y, deck_z + 0.06),
                    (tail_x + 0.26, y, deck_z + 0.085),
                    (tail_x + 0.04, y, deck_z + 0.12),
                ]
                for y in (-0.66 * half_width, 0.66 * half_width)
            ]
        )
        parts["black#wingfeet"] = [
            prism(
                [
                    [
                        (tail_x + 0.10, y + e, deck_z - 0.06),
                        (tail_x + 0.20, y + e, deck_z - 0.06),
                        (tail_x + 0.20, y + e, deck_z + 0.09),
                        (tail_x + 0.10, y + e, deck_z + 0.09),
                    ]
                    for e in (-0.02, 0.02)
                ]
            )
            for y in (-0.4 * half_width, 0.4 * half_width)
        ]
    if shape["exhaust"]:
        vertices, normals, faces = lathe([(0.03, 0), (0.038, 0), (0.038, -0.16)], 20)
        along_x = [1, 0, 2]  # the lathe turns about y; pipes lie along x
        pipe = (
            vertices[:, along_x] * [-1, 1, 1]
            + [tail_x + 0.20, 0.50 * half_width, body.clearance + 0.05],
            normals[:, along_x] * [-1, 1, 1],
            faces,
        )
        parts["chrome#exhaust"] = both_sides(pipe)


def _wipers(parts, panels, body, shape):
    t = np.linspace(0, 1, 8)
    for inner, outer in ((0.10, 0.62), (-0.52, 0.02)):
        y = inner + (outer - inner) * t
        z = body.cowl_z + 0.03 + 0.06 * t
        x = (
            body.cowl_x
            - (z - body.cowl_z) * body.screen_slope
            - 0.26 * (y / body.half_width) ** 2
            + 0.018
        )
        parts.setdefault("black#wipers", []).append(
            tube(np.stack([x, y * body.half_width / 0.92, z], 1), 0.009, 6)
        )
