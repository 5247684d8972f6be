"""The photo booth's wall, lettering and lights, painted as an environment map.

The booth stands still in front of the camera while the car turns, so everything here lives in the
booth's frame: azimuth 0 is straight behind the car as the camera sees it, positive azimuth to the
right, elevation 0 is the camera's height. On the floor, `depth` points from the turntable to the
camera and `side` to the right (metres). Brightness is linear; a white sheet on the floor has
about 1.

What decides whether a network trained on these pictures works on photographs is the spread of
booths (see data/README.md), so every car gets its own booth and every picture a change of
lettering, tone and horizon.
"""

import letters
import numpy as np
from meshes import bell, sigmoid
from scipy.ndimage import gaussian_filter, map_coordinates


def grey_to_linear(grey):
    """sRGB level 0..1 -> linear."""
    return ((grey + 0.055) / 1.055) ** 2.4


def _angle_from(azimuth, centre):
    """Unsigned angle between azimuths, in radians."""
    return np.abs((azimuth - centre + np.pi) % (2 * np.pi) - np.pi)


def random_booth(rng, camera, slope=0.12):
    """Draw the booth of one car; slope: how much brighter the floor may get to one side."""
    u = rng.uniform
    wall_grey = u(0.90, 1.04) if rng.random() < 0.70 else u(0.52, 0.88)
    mood = rng.random()
    if mood < 0.66:  # the usual one: floor clearly darker than the wall
        floor_grey = wall_grey * u(0.52, 0.86)
    elif mood < 0.88:  # nearly no contrast
        floor_grey = wall_grey * u(0.86, 1.04)
    else:  # a dark floor
        floor_grey = u(0.25, 0.50)
    # the steepest look at the floor's far edge that still leaves the car's footprint on the floor
    steepest = np.degrees(np.arctan(camera["height"] / (camera["distance"] + 3.0)))
    lights = []
    if rng.random() < 0.35:
        lights.append(
            {
                "azimuth": 0.0,
                "elevation": 70,
                "half_width": np.pi,
                "half_height": u(15, 32),
                "power": u(0.5, 1.0),
            }
        )
    for _ in range(int(rng.integers(2, 6))):
        lights.append(
            {
                "azimuth": u(-np.pi, np.pi),
                "elevation": u(36, 75),
                "half_width": u(0.15, 0.95),
                "half_height": u(2.5, 9),
                "power": u(0.4, 1.3),
            }
        )
    lights.append(
        {
            "azimuth": 0.0,
            "elevation": 90,
            "half_width": np.pi,
            "half_height": u(6, 16),
            "power": u(0.2, 1.2),
        }
    )
    dark_things = [
        {
            "azimuth": np.pi + u(-1.2, 1.2),
            "half_width": u(0.06, 0.3),
            "top": u(8, 24),
            "strength": u(0.3, 0.85),
        }
        for _ in range(int(rng.integers(1, 5)))
    ]
    return {
        "wall": float(grey_to_linear(wall_grey)),
        "floor": float(grey_to_linear(floor_grey)),
        "irradiance": u(0.92, 1.15),
        "light_level": u(4, 9),
        "ceiling": u(0.15, 0.7),
        "ceiling_from": u(14, 30),
        "lights": lights,
        "dark_things": dark_things,
        "back_wall": u(0.25, 0.9),
        "waves": rng.normal(0, 1, 8).tolist(),
        "wall_top": u(-0.25, 0.15),
        "wall_foot": u(-0.25, 0.06),
        "panels": u(0.0, 0.25) if rng.random() < 0.45 else 0.0,
        "panel_pitch": u(0.12, 0.6),
        "door": {
            "azimuth": u(-0.5, 0.5),
            "half_width": u(0.03, 0.18),
            "top": u(3, 20),
            "strength": u(-0.15, 0.5),
        }
        if rng.random() < 0.3
        else None,
        "frame": {
            "azimuth": u(-0.35, 0.35),
            "elevation": u(1, 9),
            "half_width": u(0.04, 0.14),
            "half_height": u(1, 4),
            "strength": u(-0.1, 0.35),
            "outline": bool(rng.random() < 0.6),
        }
        if rng.random() < 0.35
        else None,
        "stripe": {"elevation": u(-5, 8), "half_height": u(0.15, 1.8), "strength": u(-0.2, 0.6)}
        if rng.random() < 0.15
        else None,
        "horizon_drop": float(u(2.0, steepest)),
        "horizon_curve": float(rng.choice([u(-0.5, 1.0), u(0.5, 4.0), u(0.5, 4.0)])),
        "horizon_power": float(rng.choice([1.0, 2.0, 2.0, 3.0])),
        "horizon_tilt": float(rng.normal(0, 0.35)),
        "horizon_steepest": float(steepest),
        "cove": float(u(0.8, 5.0)) if rng.random() < 0.3 else float(u(0.03, 0.3)),
        "skirting": u(0.0, 0.5) if rng.random() < 0.4 else 0.0,
        "has_sign": bool(rng.random() < 0.88),
        "sign_grey": u(0.12, 0.55),
        "floor_roughness": u(0.10, 0.45),
        "floor_specular": float(rng.choice([u(0.0, 0.12), u(0.1, 0.5)])),
        "floor_tint": [float(1 + t) for t in rng.normal(0, 0.025, 3)],
        "wall_tint": [float(1 + t) for t in rng.normal(0, 0.012, 3)],
        "ring_radius": u(2.6, 3.5),
        "ring_width": u(0.018, 0.06),
        "ring_tone": u(0.15, 0.95),
        "second_ring": bool(rng.random() < 0.3),
        "table_tone": u(0.88, 1.12) if rng.random() < 0.6 else 1.0,
        "spokes": int(rng.choice([0, 0, 6, 8, 12])),
        "mottling": u(0.0, 0.09),
        "stains": int(rng.integers(0, 12)),
        "tyre_marks": int(rng.choice([0, 0, 1, 3])),
        "joints": int(rng.choice([0, 0, 1, 2, 4])),
        "floor_slope": rng.normal(0, slope, 2).tolist(),
        "floor_seed": int(rng.integers(1 << 30)),
        "front_edge": {
            "depth": u(2.75, max(2.9, camera["distance"] - 2.7)),
            "curve": u(-0.02, 0.05),
            "tone": u(0.45, 2.0),
            "line": u(0.2, 1.0),
        }
        if rng.random() < 0.45
        else None,
    }


def random_backdrop(booth, rng):
    """What changes from picture to picture: the sign, and a little the tones and the horizon."""
    u = rng.uniform
    drop = float(
        np.clip(booth["horizon_drop"] + rng.normal(0, 0.5), 1.6, booth["horizon_steepest"])
    )
    backdrop = {
        "wall": booth["wall"] * u(0.88, 1.08),
        "floor": booth["floor"] * u(0.80, 1.22),
        "horizon_drop": drop,
        "horizon_curve": booth["horizon_curve"] + float(rng.normal(0, 0.4)),
        "sign": None,
    }
    if booth["has_sign"]:
        height = u(4.0, 9.5)
        stands_on_floor = rng.random() < 0.72
        base = -drop + u(-0.2, 2.2) if stands_on_floor else u(-6, 6)
        backdrop["sign"] = {
            "style": letters.random_style(rng),
            "height": height,
            "base": base,
            "shift": float(rng.normal(0, 0.06)),
            "span": u(0.75, 1.15) if rng.random() < 0.7 else u(0.35, 0.8),
            "tone": float(grey_to_linear(np.clip(booth["sign_grey"] * u(0.8, 1.25), 0.08, 0.7))),
            "tint": [
                float(1 + t)
                for t in rng.normal(0, 0.05 if rng.random() < 0.85 else 0.5, 3).clip(-0.6, 0.6)
            ],
        }
    return backdrop


def horizon(booth, backdrop, azimuth):
    """How many degrees below the camera's height the floor ends, by azimuth in radians."""
    off = np.abs(azimuth) / 0.45
    drop = (
        backdrop["horizon_drop"]
        + backdrop["horizon_curve"] * off ** booth["horizon_power"]
        + booth["horizon_tilt"] * azimuth / 0.45
    )
    inside = np.minimum(drop, booth["horizon_steepest"] + 4 * np.clip(off - 0.9, 0, 3))
    return np.clip(inside, 1.2, 14)


def _angles(width, half_turn=np.pi, lowest=-90.0, highest=90.0):
    """Azimuth (radians) and elevation (degrees) of an environment map's pixels, or a window's.

    Returns the row and column slices of the window and the two grids. Straight ahead is three
    quarters along the map.
    """
    height = width // 2
    turn = (np.arange(width) + 0.5) / width * 2 * np.pi
    elevation = 90 - (np.arange(height) + 0.5) / height * 180
    azimuth = np.arctan2(np.cos(turn), -np.sin(turn))
    columns, rows = (
        np.flatnonzero(np.abs(azimuth) <= half_turn),
        np.flatnonzero((elevation >= lowest) & (elevation <= highest)),
    )
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    grids = np.meshgrid(
        azimuth[window[1]].astype(np.float32), elevation[window[0]].astype(np.float32)
    )
    return window, grids


def paint_surroundings(booth, width):
    """Environment map of the empty booth (width/2, width, 3), lit to the booth's irradiance."""
    _, (azimuth, elevation) = _angles(width)
    lamps = np.zeros_like(azimuth)
    for lamp in booth["lights"]:
        sideways = sigmoid((lamp["half_width"] - _angle_from(azimuth, lamp["azimuth"])) / 0.03)
        lamps += (
            booth["light_level"]
            * lamp["power"]
            * sideways
            * sigmoid((lamp["half_height"] - np.abs(elevation - lamp["elevation"])) / 0.6)
        )
    above = _ceiling_share(booth, elevation)
    steady = (
        _bare_wall(booth, booth["wall"], azimuth, elevation) * (1 - above)
        + above * booth["ceiling"] * 0.5
    )
    # cosine-weighted mean over the upper half = radiance of a white sheet on the floor
    pixel = np.cos(np.radians(elevation)) * (2 * np.pi / width) ** 2
    weight = pixel * np.clip(np.sin(np.radians(elevation)), 0, None) / np.pi
    lamp_gain = max(
        0.05, (booth["irradiance"] - float((steady * weight).sum())) / float((lamps * weight).sum())
    )
    picture = steady + lamp_gain * lamps
    for thing in booth["dark_things"]:
        picture *= 1 - thing["strength"] * sigmoid(
            (thing["half_width"] - _angle_from(azimuth, thing["azimuth"])) / 0.01
        ) * sigmoid((thing["top"] - elevation) / 0.4)
    return (picture[..., None] * np.array(booth["wall_tint"])).astype(np.float32)


def _ceiling_share(booth, elevation):
    return np.clip((elevation - booth["ceiling_from"]) / 6, 0, 1)


def _bare_wall(booth, level, azimuth, elevation):
    """Uneven light on the wall, darker behind the camera."""
    wave = booth["waves"]
    wall = level * (
        1
        + 0.05 * wave[0] * np.sin(azimuth)
        + 0.03 * wave[1] * np.sin(2 * azimuth + wave[2])
        + 0.02 * wave[3] * np.sin(5 * azimuth + wave[4])
    )
    wall *= (
        1
        + booth["wall_top"] * np.clip(elevation / 14, 0, 1)
        + booth["wall_foot"] * np.clip(-elevation / 6, 0, 1)
    )
    behind = np.clip((np.abs(azimuth) - 1.2) / 0.5, 0, 1)
    return wall * (1 - behind * (1 - booth["back_wall"]))


def hang_backdrop(surroundings, booth, backdrop, field_of_view_deg):
    """The environment map of one picture: the empty booth with the wall in view painted over."""
    width = surroundings.shape[1]
    window, (azimuth, elevation) = _angles(
        width, half_turn=1.2, lowest=-40, highest=min(booth["ceiling_from"], 30)
    )
    wall = _bare_wall(booth, backdrop["wall"], azimuth, elevation)
    if booth["panels"]:
        offset = (
            np.abs((azimuth / booth["panel_pitch"] + booth["waves"][5]) % 1 - 0.5)
            * booth["panel_pitch"]
        )
        wall *= 1 - booth["panels"] * bell(offset / 0.0035)
    if booth["door"]:
        door = booth["door"]
        wall *= 1 - door["strength"] * sigmoid(
            (door["half_width"] - np.abs(azimuth - door["azimuth"])) / 0.004
        ) * sigmoid((door["top"] - elevation) / 0.3)
    if booth["frame"]:
        frame = booth["frame"]
        edge = np.maximum(
            np.abs(azimuth - frame["azimuth"]) - frame["half_width"],
            np.radians(np.abs(elevation - frame["elevation"]) - frame["half_height"]),
        )
        wall *= 1 - frame["strength"] * (
            bell(edge / 0.002) if frame["outline"] else sigmoid(-edge / 0.003)
        )
    if booth["stripe"]:
        stripe = booth["stripe"]
        wall *= 1 - stripe["strength"] * sigmoid(
            (stripe["half_height"] - np.abs(elevation - stripe["elevation"])) / 0.15
        )
    height_over_floor = elevation + horizon(booth, backdrop, azimuth)
    wall *= 1 - booth["skirting"] * bell(height_over_floor / 0.35)
    wall = wall[..., None] * np.array(booth["wall_tint"], np.float32)
    if backdrop["sign"]:
        cover = _sign_cover(backdrop["sign"], azimuth, elevation, field_of_view_deg)[..., None]
        wall = wall * (1 - cover) + cover * backdrop["sign"]["tone"] * np.array(
            backdrop["sign"]["tint"], np.float32
        )
    # a cove: the wall's foot runs into the floor's tone
    floor_tone = backdrop["floor"] * booth["irradiance"] * np.array(booth["floor_tint"], np.float32)
    cove = np.clip(1 - height_over_floor / booth["cove"], 0, 1)[..., None] ** 1.5
    picture = surroundings.copy()
    picture[window] = wall * (1 - cove) + cove * floor_tone
    return picture


def _sign_cover(sign, azimuth, elevation, field_of_view_deg):
    """Coverage of the sign over the environment map: a flat board straight behind the car."""
    cover = np.zeros_like(azimuth)
    window = (np.abs(azimuth) < 0.9) & (elevation > -25) & (elevation < 35)
    across = np.tan(azimuth[window])
    up = np.tan(np.radians(elevation[window])) / np.cos(azimuth[window])
    board = gaussian_filter(letters.draw_sign(sign["style"]), 1.0)
    letter_height = board.shape[0] / 1.5
    full_width = 2 * np.tan(np.radians(field_of_view_deg / 2))
    across_scale = (board.shape[1] - letter_height / 2) / (
        sign["span"] * full_width
    )  # board pixels per unit of tan(azimuth)
    up_scale = letter_height / (
        np.tan(np.radians(sign["base"] + sign["height"])) - np.tan(np.radians(sign["base"]))
    )
    column = board.shape[1] / 2 + (across - sign["shift"]) * across_scale
    row = 1.25 * letter_height - (up - np.tan(np.radians(sign["base"]))) * up_scale
    cover[window] = map_coordinates(board, [row, column], order=1, mode="constant")
    return cover
