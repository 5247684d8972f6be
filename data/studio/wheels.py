"""Wheels: tyre, rim with spokes and brake disc (metres; the axle lies along y)."""

import numpy as np
from meshes import lathe, merge, mirror, prism

SINKING = 0.006  # the tyre's contact patch: how far its round lies below the floor


def add_wheels(parts, body):
    shape = body.shape
    width = 0.215 + 0.03 * body.tall
    wheel = build_wheel(body.wheel_radius, width, shape)
    for axle in body.axles:
        angle = shape["steer"] if axle == body.front_axle else 0.0
        cosine, sine = np.cos(angle), np.sin(angle)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        share = 0.975 if axle == body.front_axle else 0.99
        offset = body.half_width * share - width / 2 - 0.01
        for side in (1, -1):
            for name, mesh in wheel.items():
                vertices, normals, faces = mesh if side == 1 else mirror(mesh)
                moved = vertices @ turn.T + [axle, side * offset, body.wheel_radius - SINKING]
                parts.setdefault(name, []).append((moved, normals @ turn.T, faces))


def build_wheel(radius, width, shape):
    """Parts of a left wheel around the origin, outer side at +y."""
    outer, rim_radius = width / 2, radius * shape["rim_share"]
    wall = [
        (rim_radius - 0.004, outer - 0.018),
        (rim_radius + 0.006, outer - 0.004),
        (rim_radius + 0.022, outer + 0.002),
        ((radius + rim_radius) / 2, outer + 0.008),
        (radius - 0.030, outer - 0.002),
        (radius - 0.012, outer - 0.016),
        (radius - 0.003, outer - 0.035),
    ]
    tread = [(radius, y) for y in np.linspace(outer - 0.045, -outer + 0.045, 13)]
    tyre = wall + tread + [(r, -y) for r, y in wall[::-1]]
    lip = [
        (rim_radius - 0.030, -outer),
        (rim_radius - 0.030, outer - 0.05),
        (rim_radius - 0.018, outer - 0.020),
        (rim_radius - 0.012, outer - 0.008),
        (rim_radius - 0.004, outer - 0.004),
        (rim_radius + 0.004, outer - 0.006),
        (rim_radius + 0.004, outer - 0.02),
    ]
    hub = [
        (0.001, outer - 0.022),
        (0.028, outer - 0.022),
        (0.034, outer - 0.026),
        (0.062, outer - 0.034),
        (0.070, outer - 0.06),
    ]
    disc = [
        (rim_radius * 0.72, outer - 0.095),
        (rim_radius * 0.72, outer - 0.088),
        (0.06, outer - 0.088),
        (0.06, outer - 0.075),
        (0.001, outer - 0.075),
    ]
    return {
        "tire": lathe(tyre[::-1], 96),
        "rim#lip": lathe(lip[::-1], 96),
        "rim#hub": lathe(hub[::-1], 40),
        "rim#spokes": _spokes(outer, rim_radius, shape),
        "disc": lathe(disc, 48),
        "black#back": lathe([(rim_radius - 0.02, outer - 0.13), (0.001, outer - 0.13)], 32),
        "black#back2": lathe(
            [(rim_radius - 0.02, -outer + 0.01), (0.001, -outer + 0.01)][::-1], 32
        ),
    }


def _spokes(outer, rim_radius, shape):
    count = shape["spokes"]
    twins = shape["twin_spokes"] and count < 8
    base_width = shape["spoke_width"] * (0.030 if twins else 0.055) * (5 / count) ** 0.55
    spokes = []
    for number in range(count):
        for spread in (-0.055, 0.055) if twins else (0.0,):
            sections = []
            for t in np.linspace(0, 1, 6):
                distance = 0.055 + (rim_radius - 0.022 - 0.055) * t
                y = outer - 0.034 + 0.022 * t**0.8
                half = base_width * (1.05 - 0.30 * np.sin(t * 2.6))
                depth = 0.032 - 0.012 * t
                angle = 2 * np.pi * number / count + spread * (0.4 + t * 2.2) * 1.4
                radial = np.array([np.cos(angle), 0, np.sin(angle)])
                around = np.array([-np.sin(angle), 0, np.cos(angle)])
                sections.append(
                    [
                        distance * radial - half * around * 1.25 + [0, y - depth, 0],
                        distance * radial - half * around * 0.8 + [0, y, 0],
                        distance * radial + half * around * 0.8 + [0, y, 0],
                        distance * radial + half * around * 1.25 + [0, y - depth, 0],
                    ]
                )
            spokes.append(prism(sections))
    return merge(spokes)
