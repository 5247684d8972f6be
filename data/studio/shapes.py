"""Body types and the random numbers that turn a type into one car (metres)."""

import numpy as np

# Typical cars of each type and variant, measures in the order of MEASURES: `belt`, `nose` and
# `deck` are heights, `cowl` is the windscreen's foot behind the front axle, runs are the lengths
# of the sloping windows, seen from above.
TABLE = """
sedan     saloon    4.84 1.84 1.46 2.82 0.93 0.17 0.340 0.94 0.75  0.40 0.98 0.38 0.78 1.06 4
sedan     compact   4.42 1.75 1.47 2.62 0.86 0.16 0.310 0.93 0.76  0.34 0.92 0.30 0.66 1.05 4
sedan     limousine 5.15 1.90 1.50 3.02 0.92 0.16 0.360 0.97 0.80  0.50 1.00 0.46 0.84 1.09 4
sedan     fastback  4.80 1.86 1.43 2.82 0.90 0.15 0.350 0.94 0.73  0.42 1.02 0.20 1.12 1.06 4
coupe     coupe     4.62 1.88 1.38 2.72 0.90 0.14 0.350 0.92 0.73  0.58 0.88 0.30 0.86 1.02 2
coupe     sports    4.35 1.86 1.30 2.58 0.92 0.12 0.345 0.88 0.68  0.66 0.86 0.26 0.92 0.96 2
coupe     muscle    4.80 1.91 1.40 2.74 0.92 0.15 0.360 0.98 0.84  0.68 0.74 0.40 0.72 1.06 2
hatchback hatch     4.22 1.77 1.48 2.62 0.86 0.16 0.320 0.96 0.78  0.34 0.88 0.20 0.40 1.02 4
hatchback city      3.68 1.66 1.53 2.40 0.74 0.16 0.290 0.98 0.82  0.14 0.84 0.14 0.28 1.04 4
hatchback wagon     4.76 1.82 1.49 2.80 0.90 0.16 0.335 0.95 0.76  0.40 0.94 0.20 0.46 1.04 4
hatchback two-door  4.02 1.75 1.44 2.50 0.84 0.15 0.320 0.93 0.76  0.34 0.90 0.18 0.48 1.00 2
suv       suv       4.72 1.92 1.74 2.74 0.92 0.23 0.375 1.12 0.98  0.48 0.74 0.22 0.30 1.16 4
suv       crossover 4.50 1.85 1.63 2.66 0.90 0.20 0.350 1.04 0.88  0.36 0.90 0.22 0.48 1.10 4
suv       boxy      4.45 1.88 1.84 2.62 0.78 0.25 0.385 1.18 1.06  0.56 0.46 0.20 0.14 1.20 4
suv       large     5.18 2.00 1.90 2.96 0.96 0.25 0.400 1.20 1.08  0.54 0.72 0.22 0.26 1.24 4
van       minivan   5.10 1.98 1.76 3.04 0.96 0.17 0.345 1.06 0.92 -0.02 1.10 0.18 0.32 1.08 4
van       people    4.55 1.80 1.64 2.75 0.88 0.16 0.320 1.02 0.86  0.06 1.05 0.18 0.34 1.06 4
van       cargo     5.05 1.98 2.02 3.05 0.92 0.18 0.345 1.14 1.02  0.04 0.86 0.16 0.14 1.14 4
pickup    crew      5.75 1.98 1.88 3.60 0.93 0.27 0.400 1.20 1.08  0.42 0.72 0.00 0.22 1.22 4
pickup    midsize   5.30 1.88 1.78 3.22 0.90 0.25 0.375 1.13 1.00  0.38 0.78 0.00 0.20 1.15 4
pickup    short-cab 5.45 1.96 1.84 3.40 0.93 0.26 0.390 1.18 1.06  0.44 0.72 0.00 0.16 1.20 2
"""
MEASURES = (
    "length", "width", "height", "wheelbase", "front_overhang", "clearance", "wheel_radius",
    "belt", "nose", "cowl", "screen_run", "boot_length", "rear_run", "deck", "doors",
)  # fmt: skip


def _read_table():
    types = {}
    for line in TABLE.strip().splitlines():
        kind, variant, *numbers = line.split()
        types.setdefault(kind, {})[variant] = tuple(float(number) for number in numbers)
    return types


TYPES = _read_table()
# relative spread of the measures around the typical car
SPREAD = {
    "length": 0.030,
    "width": 0.020,
    "height": 0.028,
    "wheelbase": 0.022,
    "front_overhang": 0.06,
    "wheel_radius": 0.035,
    "belt": 0.025,
    "nose": 0.035,
    "screen_run": 0.09,
    "rear_run": 0.10,
    "deck": 0.015,
    "clearance": 0.10,
}


def random_shape(rng, kind, variant=None):
    """All numbers `cars.build` needs for one car."""
    drawn = str(rng.choice(list(TYPES[kind])))
    variant = variant or drawn
    shape = dict(zip(MEASURES, TYPES[kind][variant], strict=True), kind=kind, variant=variant)
    for name, share in SPREAD.items():
        shape[name] *= 1 + share * np.clip(rng.normal(), -1.8, 1.8)
    u = rng.uniform
    tall, family = kind in ("suv", "van", "pickup"), kind in ("suv", "van", "hatchback")

    def chance(probability):
        return bool(rng.random() < probability)

    shape.update(
        # body side: crease, wheel arch flares, lean of the windows, roundness of edges and ends
        crease=u(0.004, 0.024),
        crease_height=u(0.68, 0.88),
        crease_rise=u(0.0, 0.14),
        flare=u(0.008, 0.042),
        tumble=u(0.30, 0.50),
        bonnet_crown=u(0.02, 0.07),
        nose_curve=u(0.14, 0.40),
        tail_curve=u(0.08, 0.26),
        wedge=u(0.0, 0.11),
        shoulder=u(0.05, 0.19),
        sculpt=u(0.004, 0.030),
        boot_lip=u(0.0, 0.035),
        roof_drop=u(0.0, 0.07),
        cab=u(0.45, 0.75) if variant != "short-cab" else u(1.15, 1.4),
        # trim
        valance=chance(0.45),
        moulding=chance(0.3),
        sunroof=chance(0.35) and kind != "pickup",
        chrome_trim=chance(0.45),
        chrome_handles=chance(0.3),
        cladding=kind == "suv" and chance(0.5),
        exhaust=chance(0.6),
        spoiler=family and chance(0.7),
        rails=family and chance(0.6),
        crossbars=chance(0.5),
        roof_box=kind in ("suv", "hatchback", "van") and chance(0.14),
        boot_wing=kind in ("coupe", "sedan") and chance(0.25),
        antenna=str(rng.choice(["fin", "mast", "none"], p=[0.4, 0.3, 0.3])),
        # wheels
        spokes=int(rng.choice([5, 5, 6, 7, 8, 9, 10, 12, 16])),
        spoke_width=u(0.5, 1.5),
        twin_spokes=chance(0.4),
        steer=u(-0.10, 0.10),
        rim_share=u(0.62, 0.77),
        # face and tail
        grille_width=u(0.28, 0.68),
        grille_height=u(0.35, 1.15),
        slats=int(rng.integers(2, 9)),
        mesh_grille=chance(0.3),
        lamp_length=u(0.25, 0.66),
        lamp_height=u(0.7, 1.5),
        lamp_rise=u(0.0, 0.12),
        tail_lamp_height=u(0.7, 1.4),
        front_plate=chance(0.65),
        dark_rear=chance(0.6 if tall else 0.2),
        # two-tone paint and stickers: where, if anywhere
        second_tone=str(rng.choice(["none", "roof", "sill", "bonnet"], p=[0.76, 0.13, 0.08, 0.03])),
        sticker=str(
            rng.choice(
                ["none", "door", "stripe", "patch", "side band"], p=[0.70, 0.08, 0.05, 0.09, 0.08]
            )
        ),
        sticker_at=[u(-0.6, 0.6), u(0.42, 0.66), u(0.2, 0.6), u(0.05, 0.13)],
    )
    # a few more yes-or-no choices, from the digits of a number already drawn
    for digit, name in enumerate(
        ("chrome_grille", "chrome_rails", "black_roof_box", "roof_box_left")
    ):
        shape[name] = bool(int(shape["crease"] * 1e6) >> digit & 1)
    return shape
