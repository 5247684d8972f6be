"""The booth's floor: outline, turntable ring, seams, stains and front edge.

On the floor, `depth` points from the turntable to the camera and `side` to the right (metres).
"""

import numpy as np
from booth import horizon
from meshes import bell
from scipy.ndimage import gaussian_filter, map_coordinates

REACH = 7.0  # the texture covers -7..7 m; beyond, its border is repeated


def paint(booth, pixels):
    """Reflectance relative to the mean (pixels, pixels, 3): rows are depth, columns side."""
    rng = np.random.default_rng(booth["floor_seed"])
    axis = ((np.arange(pixels) + 0.5) / pixels * 2 - 1).astype(np.float32) * REACH
    side, depth = np.meshgrid(axis, axis)
    radius, bearing = np.hypot(side, depth), np.arctan2(depth, side)
    tone = 1 + booth["floor_slope"][0] * side / REACH + booth["floor_slope"][1] * depth / REACH
    for size_m, share in ((0.9, 1.0), (0.15, 0.5)):
        coarse = int(max(8, 2 * REACH / size_m))
        cloud = gaussian_filter(rng.normal(0, 1, (coarse, coarse)), 0.8)
        tone += booth["mottling"] * share * 1.5 * _enlarge(cloud, pixels)
    for _ in range(booth["stains"]):
        middle = rng.uniform(-4, 4, 2)
        size = rng.uniform(0.03, 0.35)
        stretch = rng.uniform(0.4, 1.0)
        tone *= 1 - rng.uniform(0.03, 0.3) * bell(
            np.hypot((side - middle[0]) / size, (depth - middle[1]) / size / stretch) ** 2
        )
    for _ in range(booth["tyre_marks"]):
        bend = rng.uniform(3, 12)
        near = rng.uniform(-1, 1, 2)
        towards = rng.uniform(0, 6.3)
        middle = near + bend * np.array([np.cos(towards), np.sin(towards)])
        tone *= 1 - rng.uniform(0.05, 0.25) * bell(
            (np.hypot(side - middle[0], depth - middle[1]) - bend) / 0.10
        )
    line = 1.2 * REACH / pixels  # no line thinner than the texture can carry
    for _ in range(booth["joints"]):
        turn, shift = rng.uniform(0, np.pi), rng.uniform(-3.5, 3.5)
        tone *= 1 - rng.uniform(0.1, 0.5) * bell(
            (side * np.cos(turn) + depth * np.sin(turn) - shift) / max(0.012, line)
        )
    start = rng.uniform(0, 1)
    if booth["spokes"]:
        sector = np.pi * 2 / booth["spokes"]
        across = radius * np.sin(np.abs((bearing / sector + start) % 1 - 0.5) * sector)
        tone *= 1 - 0.3 * (1 - booth["ring_tone"]) * bell(across / max(0.01, line)) * (
            radius < booth["ring_radius"]
        )
    tone = np.where(radius < booth["ring_radius"], tone * booth["table_tone"], tone)
    width = max(booth["ring_width"] / 2, line)
    rings = [booth["ring_radius"]]
    if booth["second_ring"]:
        rings.append(booth["ring_radius"] - rng.uniform(0.1, 0.5))
    for ring in rings:
        tone *= 1 - (1 - booth["ring_tone"]) * bell((radius - ring) / width)
    if booth["front_edge"]:
        edge = booth["front_edge"]
        beyond = (
            depth - edge["depth"] - edge["curve"] * side**2 - 0.01 * np.sin(side * 3 + start * 6)
        )
        tone = np.where(beyond > 0, tone * edge["tone"], tone)
        tone *= 1 - (1 - edge["line"]) * bell(beyond / 0.035)
    return (tone[..., None] * np.array(booth["floor_tint"], np.float32)).astype(np.float32)


def _enlarge(coarse, pixels):
    position = (np.arange(pixels) + 0.5) / pixels * (len(coarse) - 1)
    return map_coordinates(coarse, np.meshgrid(position, position, indexing="ij"), order=1).astype(
        np.float32
    )


def outline(booth, backdrop, camera, points=240):
    """Floor as a fan around the point under the camera: vertices (side, depth) and triangles.

    The far edge lies where `horizon` puts it; behind the camera the floor goes on for 15 m.
    """
    azimuth = np.linspace(-np.pi, np.pi, points, endpoint=False)
    reach = camera["height"] / np.tan(np.radians(horizon(booth, backdrop, azimuth)))
    reach = np.where(np.abs(azimuth) < 1.3, reach, 15.0)
    rim = np.stack([reach * np.sin(azimuth), camera["distance"] - reach * np.cos(azimuth)], 1)
    vertices = np.concatenate([[[0.0, camera["distance"]]], rim])
    index = np.arange(points)
    # in this order the triangles face upwards
    triangles = np.stack([np.zeros(points, int), (index + 1) % points + 1, index + 1], 1)
    return vertices, triangles
