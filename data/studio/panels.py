"""Cutting pieces out of the car's skin, and the first of them: wheel arches and windows.

All cuts are exact level sets on the one smooth skin, so neighbouring parts meet without gaps. A
cut function takes (vertices, normals) and is negative inside the piece that is taken out.
"""

import numpy as np
from meshes import cut, flat, merge, smooth_max


class Panels:
    """Takes pieces out of the skin one after another; what is left at the end is painted."""

    def __init__(self, body, cell):
        self.body, self.shape = body, body.shape
        self.parts = {}
        self.rest = body.mesh(cell)
        shape = self.shape
        if body.kind == "pickup":
            self.door_end_x = body.cowl_x * 0.54 + body.rear_foot_x * 0.46
        elif shape["doors"] == 2:
            self.door_end_x = body.cowl_x * 0.30 + body.rear_foot_x * 0.70
        else:
            self.door_end_x = (
                body.cowl_x * 0.56 + body.rear_foot_x * 0.44 - (0.05 if body.kind == "van" else 0)
            )
        if body.kind == "pickup":
            self.second_door_end_x = body.cab_x + 0.06
        else:
            self.second_door_end_x = self.door_end_x - (1.02 if shape["doors"] == 4 else 1.0)

    def take(self, function):
        piece, self.rest = cut(self.rest, function)
        return piece

    def take_framed(self, function, border):
        """A piece and the frame of width `border` around it."""
        outer = self.take(lambda v, n: function(v, n) - border)
        return cut(outer, function)

    def add(self, name, mesh):
        self.parts.setdefault(name, []).append(mesh)

    def wheel_arches(self):
        body = self.body
        lip_width = 0.045 if self.shape["cladding"] else 0.012
        for axle in body.axles:

            def to_axle(v, axle=axle):
                return np.hypot(v[:, 0] - axle, v[:, 2] - body.wheel_radius) - body.arch_radius

            self.take(
                lambda v, n: np.where(np.abs(v[:, 1]) > 0.35 * body.half_width, to_axle(v), 9.0)
            )
            self.add(
                "black#lip" if self.shape["cladding"] else "paint#lip",
                self.take(lambda v, n: to_axle(v) - lip_width),
            )
            for side in (1, -1):
                self.add("black#well", self._well(axle, side))
        wheelbase = self.shape["wheelbase"]
        self.parts["black#sill"] = self.take(
            lambda v, n: v[:, 2] - body.sill_z - 0.02 * (np.abs(v[:, 0]) > wheelbase / 2)
        )

    def _well(self, axle, side):
        """Liner of a wheel arch: a dark drum, open downwards."""
        body = self.body
        angle = np.linspace(-0.25 * np.pi, 1.25 * np.pi, 40)
        depth = body.half_width * np.array([0.96, 0.9, 0.38, 0.36])
        radius = np.array(
            [body.arch_radius, body.arch_radius + 0.005, body.arch_radius + 0.005, 0.02]
        )
        vertices = np.stack(
            [
                axle + radius[:, None] * np.cos(angle),
                np.repeat(side * depth[:, None], 40, 1),
                body.wheel_radius + radius[:, None] * np.sin(angle),
            ],
            -1,
        )
        limit = body.flank(vertices[..., 0], vertices[..., 2]) - 0.004
        vertices[..., 1] = np.sign(vertices[..., 1]) * np.minimum(np.abs(vertices[..., 1]), limit)
        i, j = np.meshgrid(np.arange(3), np.arange(39), indexing="ij")
        a, b, c, d = (
            (40 * row + column).ravel()
            for row, column in ((i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j))
        )
        drum = flat(
            vertices.reshape(-1, 3),
            np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]),
        )
        return cut(drum, lambda v, n: body.clearance + 0.05 - v[:, 2])[0]

    def side_windows(self):
        body, shape = self.body, self.shape
        rear_pillar = {
            "sedan": 0.13,
            "coupe": 0.20,
            "hatchback": 0.22,
            "suv": 0.14,
            "van": 0.13,
            "pickup": 0.10,
        }[body.kind]
        front_pillar = 0.115 + 0.10 / np.hypot(1, body.screen_slope)

        def opening(v, n):
            x, _, z = v.T
            lower_edge = (
                np.maximum(body.top(x) - body.bonnet_crown * 0.62, body.belt_z - 0.06) + 0.045
            )
            upper_edge = body.roof(x) - 0.10 - (0.02 if body.tall else 0)
            inside = smooth_max(lower_edge - z, z - upper_edge, 0.05)
            inside = smooth_max(inside, body.windscreen(x, z, 0) + front_pillar, 0.05)
            inside = smooth_max(inside, body.rear_window(x, z, 0) + rear_pillar, 0.10)
            return np.maximum(inside, 0.45 - np.abs(n[:, 1]))

        glass, frame = self.take_framed(opening, 0.016)
        self.parts["chrome#windowframe" if shape["chrome_trim"] else "black#windowframe"] = frame
        pillars = [(self.door_end_x, 0.045)]
        if body.two_box:
            pillars.append((body.rear_axle + (0.0 if body.kind != "van" else -0.10), 0.05))
        for pillar_x, half in pillars:

            def behind(v, n, pillar_x=pillar_x):
                return v[:, 0] - pillar_x + 0.10 * (v[:, 2] - body.belt_z)

            rear, front = cut(glass, lambda v, n, h=half, f=behind: f(v, n) - h)
            pillar, rear = cut(rear, lambda v, n, h=half, f=behind: -(f(v, n) + h))
            glass = merge([front, rear])
            self.add("black#pillar", pillar)
        if shape["dark_rear"]:
            self.parts["glass#side"], self.parts["darkglass#side"] = cut(
                glass, lambda v, n: self.door_end_x - v[:, 0]
            )
        else:
            self.parts["glass#side"] = glass

    def front_and_rear_window(self):
        body, shape = self.body, self.shape

        def windscreen(v, n):
            x, y, z = v.T
            inside = smooth_max(
                body.cowl_z - 0.02 - z + 0.05 * body.across(v) ** 2,
                z - (body.roof(body.screen_top_x) - 0.065),
                0.05,
            )
            inside = smooth_max(inside, (np.abs(y) - body.window_side(x, z)) * 0.9 + 0.085, 0.06)
            return np.maximum(np.maximum(inside, 0.22 - n[:, 0]), body.screen_top_x - 0.35 - x)

        self.parts["glass#front"], frame = self.take_framed(windscreen, 0.018)
        self.add("black#frame", frame)
        foot_z = body.deck_z + (0.03 if body.two_box else 0.02)
        upper_gap, side_gap = (0.115, 0.10) if body.two_box else (0.06, 0.11)

        def rear(v, n):
            x, y, z = v.T
            inside = smooth_max(
                foot_z - z + 0.02 * body.across(v) ** 2,
                z - (body.roof(body.rear_top_x) - upper_gap),
                0.05,
            )
            inside = smooth_max(inside, (np.abs(y) - body.window_side(x, z)) * 0.9 + side_gap, 0.08)
            return np.maximum(np.maximum(inside, 0.10 + n[:, 0]), x - (body.rear_top_x + 0.2))

        self.parts["darkglass#rear" if shape["dark_rear"] else "glass#rear"], frame = (
            self.take_framed(rear, 0.014)
        )
        self.add("black#frame", frame)
