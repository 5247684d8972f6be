"""The car's outer skin as one implicit function: lower body and greenhouse, blended (metres).

x runs from tail to nose with 0 halfway between the axles, y to the car's left, z up from the
floor. Names ending in `_x` or `_z` are positions; `across` is |y| as a share of half the width.
"""

import numpy as np
from meshes import bell, curve, mesh_implicit, sigmoid, smooth_max, smooth_min


class Body:
    """Positions derived from a shape (see shapes.py) and the functions that describe the skin."""

    def __init__(self, shape):
        self.shape = shape
        self.kind = shape["kind"]
        self.tall = self.kind in ("suv", "van", "pickup")
        self.two_box = self.kind in ("suv", "van", "hatchback")
        self.half_width = shape["width"] / 2
        self.front_axle, self.rear_axle = shape["wheelbase"] / 2, -shape["wheelbase"] / 2
        self.axles = (self.front_axle, self.rear_axle)
        self.nose_x = self.front_axle + shape["front_overhang"]
        self.tail_x = self.nose_x - shape["length"]
        self.clearance, self.roof_z = shape["clearance"], shape["height"]
        self.wheel_radius = shape["wheel_radius"]
        self.arch_radius = self.wheel_radius + 0.045 + (0.02 if self.tall else 0)
        self.sill_z = self.clearance + (0.14 if shape["cladding"] else 0.06)
        self.belt_z, self.nose_z = shape["belt"], shape["nose"]
        # windscreen: from the cowl up to the front edge of the roof
        self.cowl_x, self.cowl_z = self.front_axle - shape["cowl"], shape["belt"] + 0.02
        self.screen_top_x = self.cowl_x - shape["screen_run"]
        # rear window: from the rear edge of the roof down to the deck
        if self.kind == "pickup":
            self.cab_x = self.rear_axle + shape["cab"]
            self.rear_top_x, self.rear_foot_x = self.cab_x + 0.10, self.cab_x
        elif self.two_box:
            self.rear_top_x, self.rear_foot_x = (
                self.tail_x + 0.10 + shape["rear_run"],
                self.tail_x + 0.10,
            )
        else:
            self.rear_top_x = self.tail_x + shape["boot_length"] + shape["rear_run"]
            self.rear_foot_x = self.tail_x + shape["boot_length"]
        self.deck_z = self.belt_z + shape["wedge"] if self.two_box else shape["deck"]
        self.bonnet_crown = shape["bonnet_crown"] * 1.3
        self.tumble = shape["tumble"] * (0.72 if self.tall else 1)
        self.screen_slope = (self.cowl_x - self.screen_top_x) / (self.roof_z - self.cowl_z)
        self.rear_slope = (self.rear_top_x - self.rear_foot_x) / (self.roof_z - self.deck_z)
        self._draw_curves()

    def _draw_curves(self):
        nose_x, tail_x, nose_z, deck_z = self.nose_x, self.tail_x, self.nose_z, self.deck_z
        cowl_x, cowl_z, rear_x, roof_z = self.cowl_x, self.cowl_z, self.rear_foot_x, self.roof_z
        level, wedge = self.level, self.shape["wedge"]
        # bonnet, belt line and deck, seen from the side
        self.top = curve(
            [
                (nose_x + 0.2, nose_z - 0.10),
                (nose_x - 0.10, nose_z),
                (nose_x - 0.45, nose_z + (cowl_z - nose_z) * 0.48),
                (cowl_x + 0.25, cowl_z - 0.035),
                (cowl_x - 0.1, cowl_z),
                ((cowl_x + rear_x) / 2, self.belt_z + wedge * 0.5),
                (rear_x + 0.35, deck_z - 0.03),
                (rear_x, deck_z),
                ((rear_x + tail_x) / 2 if rear_x - tail_x > 0.2 else tail_x + 0.02, deck_z + 0.004),
                (tail_x - 0.2, deck_z - 0.05),
            ]
        )
        # half width along the car, seen from above, as a share
        self.plan = curve(
            [
                (nose_x + 0.3, 0.80),
                (nose_x, 0.885),
                (nose_x - 0.35, 0.955),
                (self.front_axle - 0.2, 0.985),
                (0, 1.0),
                (self.rear_axle, 0.995),
                (tail_x + 0.35, 0.965),
                (tail_x, 0.915),
                (tail_x - 0.3, 0.84),
            ]
        )
        # how far the flank lies inside that width, by height
        self.section = curve(
            [
                (0, 0.10),
                (level(0.02), 0.075),
                (level(0.12), 0.035),
                (level(0.25), 0.028),
                (level(0.45), 0.012),
                (level(0.66), 0.0),
                (level(0.80), 0.010),
                (level(0.92), 0.032),
                (level(1.02), 0.065),
                (level(1.25), 0.16),
            ]
        )
        # front and rear end, seen from the side
        self.front = curve(
            [
                (0, nose_x - 0.20),
                (self.clearance + 0.02, nose_x - 0.09),
                (level(0.2), nose_x - 0.02),
                (level(0.40), nose_x),
                (level(0.52), nose_x - 0.012),
                (level(0.62), nose_x - 0.05),
                (nose_z, nose_x - (0.07 if self.tall else 0.13)),
                (nose_z + 0.2, nose_x - 0.40),
            ]
        )
        self.rear = curve(
            [
                (0, tail_x + 0.18),
                (self.clearance + 0.03, tail_x + 0.08),
                (level(0.2), tail_x + 0.025),
                (level(0.42), tail_x),
                (level(0.54), tail_x + 0.006),
                (level(0.60), tail_x + 0.028),
                (deck_z - 0.15, tail_x + 0.045),
                (deck_z + 0.05, tail_x + (0.075 if self.two_box else 0.10)),
                (roof_z, tail_x + 0.2),
            ]
        )
        self.roof = curve(
            [
                (cowl_x + 0.3, roof_z - 0.12),
                (self.screen_top_x, roof_z - 0.03),
                (self.screen_top_x * 0.65 + self.rear_top_x * 0.35, roof_z),
                (
                    self.rear_top_x,
                    roof_z - (0.07 if self.kind == "coupe" else 0.04) - self.shape["roof_drop"],
                ),
                (tail_x - 0.2, roof_z - (0.16 if self.two_box else 0.2)),
            ]
        )

    def level(self, share):
        """Height at a share of the way from the underside (0) to the belt line (1)."""
        return self.clearance + share * (self.belt_z - self.clearance)

    def across(self, vertices):
        return np.abs(vertices[:, 1]) / self.half_width

    def flank(self, x, z):
        """Half width of the lower body: plan, section, crease, scooped doors and flared arches."""
        shape = self.shape
        width = self.half_width * self.plan(x) - self.section(z)
        above = z - (
            shape["crease_height"] * self.belt_z / 0.95 - shape["crease_rise"] * x / shape["length"]
        )
        fade = sigmoid((x - self.tail_x - 0.25) / 0.06) * sigmoid((self.nose_x - 0.45 - x) / 0.08)
        width = (
            width
            + shape["crease"]
            * np.where(above > 0, np.exp(-above / 0.05), np.exp(above / 0.16))
            * fade
        )
        width = width - 1.2 * shape["sculpt"] * bell((z - self.level(0.36)) / 0.09) * bell(
            x / (shape["wheelbase"] * 0.36)
        )
        for axle in self.axles:
            radius = np.hypot(x - axle, z - self.wheel_radius)
            arch = bell((radius - self.arch_radius - 0.02) / 0.075) * sigmoid(
                (radius - self.arch_radius + 0.10) / 0.02
            )
            width = width + shape["flare"] * arch
        return width

    def lower(self, x, y, z):
        """Everything below the windows: flanks, bonnet and deck, nose, tail, underside."""
        shape, half_width = self.shape, self.half_width
        distance = np.abs(y)
        across = np.minimum(distance / half_width, 1.3)
        side = distance - self.flank(x, z)
        on_bonnet = sigmoid((x - self.cowl_x - 0.1) / 0.12)
        boot_lip = (
            shape["boot_lip"]
            * (not self.two_box)
            * bell((x - self.tail_x - 0.10 - shape["tail_curve"] * across**2.8) / 0.06)
        )
        bonnet_folds = (
            0.016
            * on_bonnet
            * bell((distance - 0.54 * half_width) / 0.06)
            * sigmoid((self.nose_x - 0.15 - x) / 0.1)
        )
        top = z - self.top(x) - boot_lip + self.bonnet_crown * across**2.2 - bonnet_folds
        front = x - self.front(z) + shape["nose_curve"] * across**2.6
        rear = self.rear(z) - x + shape["tail_curve"] * across**2.8
        skin = smooth_max(side, top, shape["shoulder"] + 0.07 * on_bonnet)
        skin = smooth_max(skin, front, 0.17)
        skin = smooth_max(skin, rear, 0.12)
        return smooth_max(skin, self.clearance - z, 0.06)

    def windscreen(self, x, z, across):
        """Distance in front of the windscreen's plane, bowed across the car."""
        return (
            x - (self.cowl_x - (z - self.cowl_z) * self.screen_slope) + 0.26 * across**2
        ) / np.hypot(1, self.screen_slope)

    def rear_window(self, x, z, across):
        bow = 0.03 if self.kind == "pickup" else 0.14
        return (
            (self.rear_foot_x + (z - self.deck_z) * self.rear_slope) - x + bow * across**2
        ) / np.hypot(1, self.rear_slope)

    def window_side(self, x, z):
        """Half width of the greenhouse, leaning inwards with height."""
        above = z - self.belt_z
        middle, half_length = (
            (self.cowl_x + self.rear_foot_x) / 2,
            (self.cowl_x - self.rear_foot_x) / 2,
        )
        ends = np.clip(np.abs((x - middle) / half_length), 0, 1.3) ** 2.6
        return (
            self.half_width * 0.995
            - 0.045
            - self.tumble * above
            - 0.12 * above * above * (above > 0)
            - 0.07 * ends
            - 0.02
        )

    def greenhouse(self, x, y, z):
        distance = np.abs(y)
        across = distance / self.half_width
        side = (distance - self.window_side(x, z)) * 0.93
        skin = smooth_max(self.windscreen(x, z, across), self.rear_window(x, z, across), 0.02)
        skin = smooth_max(skin, z - self.roof(x) + 0.07 * across**2, 0.16)
        skin = smooth_max(skin, side, 0.11)
        return smooth_max(skin, np.minimum(self.top(x) - 0.10, self.belt_z) - z, 0.05)

    def skin(self, x, y, z):
        """The whole body; negative inside."""
        skin = smooth_min(self.lower(x, y, z), self.greenhouse(x, y, z), 0.045)
        if self.shape["spoiler"] and self.two_box:
            edge_z = self.roof(self.tail_x + 0.15) - 0.075
            blade = smooth_max(
                np.abs(z - edge_z) - 0.018, np.abs(x - (self.rear_top_x - 0.02)) - 0.16, 0.02
            )
            skin = smooth_min(
                skin, smooth_max(blade, np.abs(y) - 0.56 * self.half_width / 0.92, 0.08), 0.05
            )
        return skin

    def mesh(self, cell):
        low = (self.tail_x - 0.15, -self.half_width - 0.12, self.clearance - 0.1)
        high = (self.nose_x + 0.15, self.half_width + 0.12, self.roof_z + 0.12)
        return mesh_implicit(self.skin, low, high, cell)
