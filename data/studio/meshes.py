"""Meshes from numpy alone: surface nets of implicit functions, exact cuts, and a few primitives.

A mesh is a triple (vertices, normals, faces). Implicit functions are negative inside. Lengths in
metres.
"""

from itertools import pairwise

import numpy as np


# ---------------------------------------------------------------- blending and curves
def smooth_max(a, b, radius):
    """Maximum, rounded over about `radius`: intersects implicit bodies (cubic, after I. Quilez)."""
    overlap = np.maximum(radius - np.abs(a - b), 0) / radius
    return np.maximum(a, b) + overlap * overlap * overlap * radius / 6


def smooth_min(a, b, radius):
    """Minimum with a fillet of about `radius`: joining two implicit bodies."""
    return -smooth_max(-a, -b, radius)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -40, 40)))


def bell(x):
    return np.exp(-x * x)


def curve(points):
    """Monotone cubic through (x, y) points (Fritsch-Carlson), straight beyond the ends."""
    points = np.array(sorted(points), float)
    x, y = points[:, 0], points[:, 1]
    width = np.diff(x)
    slope = np.diff(y) / width
    tangent = np.zeros_like(y)
    for i in range(1, len(x) - 1):
        if slope[i - 1] * slope[i] > 0:
            w1, w2 = 2 * width[i] + width[i - 1], width[i] + 2 * width[i - 1]
            tangent[i] = (w1 + w2) / (w1 / slope[i - 1] + w2 / slope[i])
    tangent[0], tangent[-1] = slope[0], slope[-1]
    table_x = np.linspace(x[0], x[-1], 3000)
    i = np.clip(np.searchsorted(x, table_x) - 1, 0, len(width) - 1)
    s = (table_x - x[i]) / width[i]
    table_y = (
        (1 + 2 * s) * (1 - s) ** 2 * y[i]
        + s * (1 - s) ** 2 * width[i] * tangent[i]
        + s * s * (3 - 2 * s) * y[i + 1]
        + s * s * (s - 1) * width[i] * tangent[i + 1]
    )
    # a moving average takes out the jumps of curvature, which would show as lines in reflections
    kernel = np.ones(61) / 61
    table_y = np.convolve(np.pad(table_y, 30, mode="reflect", reflect_type="odd"), kernel, "valid")
    first, last = tangent[0], tangent[-1]

    def evaluate(q):
        inside = np.interp(q, table_x, table_y)
        before = np.where(q < table_x[0], (q - table_x[0]) * first, 0)
        after = np.where(q > table_x[-1], (q - table_x[-1]) * last, 0)
        return inside + before + after

    return evaluate


# ---------------------------------------------------------------- implicit functions to meshes
def surface_nets(function, low, high, cell):
    """Vertices and faces of function = 0 in a box: a vertex per crossed cell (naive nets)."""
    axes = [np.arange(start, stop + cell, cell) for start, stop in zip(low, high, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    values = function(*grid).astype(np.float32)
    inside = values < 0
    cells_shape = np.array(values.shape) - 1
    point_sum = np.zeros((*cells_shape, 3), np.float32)
    point_count = np.zeros(tuple(cells_shape), np.float32)
    positions = np.stack(grid, -1).astype(np.float32)
    quads = []
    for axis in range(3):
        lower, upper = [slice(None)] * 3, [slice(None)] * 3
        lower[axis], upper[axis] = slice(0, -1), slice(1, None)
        start = np.argwhere(inside[tuple(lower)] != inside[tuple(upper)])
        end = start.copy()
        end[:, axis] += 1
        value_start, value_end = values[tuple(start.T)], values[tuple(end.T)]
        t = (value_start / (value_start - value_end))[:, None]
        crossing = positions[tuple(start.T)] * (1 - t) + positions[tuple(end.T)] * t
        # the four cells around the crossed edge share the crossing and form a quad
        second, third = (axis + 1) % 3, (axis + 2) % 3
        cells = []
        for step_second, step_third in ((0, 0), (1, 0), (1, 1), (0, 1)):
            cell_index = start.copy()
            cell_index[:, second] -= step_second
            cell_index[:, third] -= step_third
            cells.append(cell_index)
        cells = np.stack(cells, 1)
        valid = ((cells >= 0) & (cells < cells_shape)).all((1, 2))
        cells, crossing, leaving = cells[valid], crossing[valid], inside[tuple(start[valid].T)]
        for corner in range(4):
            np.add.at(point_sum, tuple(cells[:, corner].T), crossing)
            np.add.at(point_count, tuple(cells[:, corner].T), 1)
        cells[~leaving] = cells[~leaving][:, ::-1]
        quads.append(cells)
    used = point_count > 0
    index = -np.ones(tuple(cells_shape), int)
    index[used] = np.arange(used.sum())
    vertices = (point_sum[used] / point_count[used][:, None]).astype(float)
    corners = np.concatenate([index[tuple(np.moveaxis(quad, -1, 0))] for quad in quads])
    return vertices, np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])


def gradient(function, vertices, step=0.004):
    return np.stack(
        [
            (function(*(vertices + d).T) - function(*(vertices - d).T)) / (2 * step)
            for d in np.eye(3) * step
        ],
        -1,
    )


def mesh_implicit(function, low, high, cell):
    """Mesh of function = 0 with normals from its gradient.

    Four Newton steps pull the vertices of the surface nets onto the surface.
    """
    vertices, faces = surface_nets(function, low, high, cell)
    for _ in range(4):
        slope = gradient(function, vertices)
        distance = np.clip(function(*vertices.T), -cell, cell)
        vertices = vertices - (distance / np.maximum((slope * slope).sum(1), 1e-6))[:, None] * slope
    normals = gradient(function, vertices)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    return vertices, normals, faces


def cut(mesh, function):
    """Split a mesh along function(vertices, normals) = 0: the parts below and above zero."""
    vertices, normals, faces = mesh
    if len(faces) == 0:
        return mesh, mesh
    side = function(vertices, normals)
    side = np.where(np.abs(side) < 1e-7, 1e-7, side)
    below = (side[faces] < 0).sum(1)
    inner, outer = [faces[below == 3]], [faces[below == 0]]
    all_vertices, all_normals, count = [vertices], [normals], len(vertices)
    for corners_below, lone, rest in ((1, inner, outer), (2, outer, inner)):
        crossed = faces[below == corners_below]
        if not len(crossed):
            continue
        negative = side[crossed] < 0
        # turn every triangle so that the corner that is alone on its side comes first
        first = np.argmax(negative if corners_below == 1 else ~negative, 1)
        crossed = np.stack([crossed[np.arange(len(crossed)), (first + j) % 3] for j in range(3)], 1)
        new = []
        for j in (1, 2):
            a, b = crossed[:, 0], crossed[:, j]
            t = (side[a] / (side[a] - side[b]))[:, None]
            all_vertices.append(vertices[a] * (1 - t) + vertices[b] * t)
            mixed = normals[a] * (1 - t) + normals[b] * t
            all_normals.append(mixed / (np.linalg.norm(mixed, axis=1, keepdims=True) + 1e-9))
            new.append(count + np.arange(len(crossed)))
            count += len(crossed)
        lone.append(np.stack([crossed[:, 0], new[0], new[1]], 1))
        rest.append(np.stack([crossed[:, 1], crossed[:, 2], new[1]], 1))
        rest.append(np.stack([crossed[:, 1], new[1], new[0]], 1))
    vertices, normals = np.concatenate(all_vertices), np.concatenate(all_normals)
    return tuple(_compact(vertices, normals, np.concatenate(part)) for part in (inner, outer))


def _compact(vertices, normals, faces):
    """Drop the vertices that no face uses."""
    used, renumbered = np.unique(faces, return_inverse=True)
    return vertices[used], normals[used], renumbered.reshape(-1, 3)


# ---------------------------------------------------------------- putting meshes together
def merge(meshes):
    vertices, normals, faces, offset = [], [], [], 0
    for v, n, f in meshes:
        vertices.append(v)
        normals.append(n)
        faces.append(f + offset)
        offset += len(v)
    return np.concatenate(vertices), np.concatenate(normals), np.concatenate(faces)


def mirror(mesh):
    """The same on the other side of the car (y -> -y)."""
    vertices, normals, faces = mesh
    flip = np.array([1, -1, 1])
    return vertices * flip, normals * flip, faces[:, ::-1]


def both_sides(mesh):
    return merge([mesh, mirror(mesh)])


def push(mesh, distance):
    """Move a surface along its normals: positive outwards."""
    vertices, normals, faces = mesh
    return vertices + normals * distance, normals, faces


# ---------------------------------------------------------------- primitives
def _grid_faces(rows, columns, wrap):
    """Corner numbers of the cells of a grid of vertices; `wrap` closes it sideways."""
    i, j = np.meshgrid(
        np.arange(rows - 1), np.arange(columns if wrap else columns - 1), indexing="ij"
    )

    def number(row, column):
        return (row * columns + column % columns).ravel()

    return number(i, j), number(i, j + 1), number(i + 1, j + 1), number(i + 1, j)


def lathe(profile, sectors=64):
    """Outline of (radius, y) points turned about the y axis (the axle)."""
    profile = np.array(profile, float)
    angle = np.linspace(0, 2 * np.pi, sectors, endpoint=False)
    direction = np.gradient(profile, axis=0)
    outward, along = direction[:, 1], -direction[:, 0]
    vertices = np.stack(
        [
            profile[:, None, 0] * np.cos(angle),
            np.repeat(profile[:, 1:2], sectors, 1),
            profile[:, None, 0] * np.sin(angle),
        ],
        -1,
    )
    normals = np.stack(
        [
            outward[:, None] * np.cos(angle),
            np.repeat(along[:, None], sectors, 1),
            outward[:, None] * np.sin(angle),
        ],
        -1,
    )
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9
    a, b, c, d = _grid_faces(len(profile), sectors, wrap=True)
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return vertices.reshape(-1, 3), normals.reshape(-1, 3), faces


def flat(vertices, faces):
    """Facetted mesh: every triangle gets its own three vertices and one normal."""
    corners = vertices[faces].reshape(-1, 3)
    normal = np.cross(corners[1::3] - corners[0::3], corners[2::3] - corners[0::3])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    return corners, np.repeat(normal, 3, 0), np.arange(len(corners)).reshape(-1, 3)


def prism(sections):
    """Closed facetted body through quadrilateral sections (count, 4, 3)."""
    sections = np.array(sections, float)
    vertices, faces = [], []

    def quad(*corners):
        first = len(vertices)
        vertices.extend(corners)
        faces.extend([(first, first + 1, first + 2), (first, first + 2, first + 3)])

    for near, far in pairwise(sections):
        for i in range(4):
            quad(near[i], near[(i + 1) % 4], far[(i + 1) % 4], far[i])
    quad(*sections[0][::-1])
    quad(*sections[-1])
    return flat(np.array(vertices), np.array(faces))


def superellipsoid(centre, radii, exponents=(1, 1), rows=24, yaw=0.0):
    """Rounded box to ellipsoid; exponents (upright, plan) below 1 are boxier, yaw in radians."""
    latitude, longitude = np.meshgrid(
        np.linspace(-np.pi / 2, np.pi / 2, rows),
        np.linspace(-np.pi, np.pi, 2 * rows),
        indexing="ij",
    )

    def power(value, exponent):
        return np.sign(value) * np.abs(value) ** exponent

    upright, plan = exponents
    vertices = np.stack(
        [
            power(np.cos(latitude), upright) * power(np.cos(longitude), plan),
            power(np.cos(latitude), upright) * power(np.sin(longitude), plan),
            power(np.sin(latitude), upright),
        ],
        -1,
    )
    normals = np.stack(
        [
            power(np.cos(latitude), 2 - upright) * power(np.cos(longitude), 2 - plan) / radii[0],
            power(np.cos(latitude), 2 - upright) * power(np.sin(longitude), 2 - plan) / radii[1],
            power(np.sin(latitude), 2 - upright) / radii[2],
        ],
        -1,
    )
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9
    vertices, normals = vertices.reshape(-1, 3) * radii, normals.reshape(-1, 3)
    cosine, sine = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    a, b, c, d = _grid_faces(rows, 2 * rows, wrap=False)
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return vertices @ turn.T + centre, normals @ turn.T, faces


def tube(path, radius, sectors=10):
    """Pipe along a path of points; `radius` is one number or one per point."""
    path = np.array(path, float)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.cross(along, [0.31, 0.77, 0.11])  # any direction that no part of a car follows
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    third = np.cross(along, across)
    angle = np.linspace(0, 2 * np.pi, sectors, endpoint=False)
    radius = np.broadcast_to(np.asarray(radius, float), (len(path),))[:, None, None]
    normals = across[:, None] * np.cos(angle)[:, None] + third[:, None] * np.sin(angle)[:, None]
    vertices = path[:, None] + radius * normals
    a, b, c, d = _grid_faces(len(path), sectors, wrap=True)
    faces = np.concatenate([np.stack([a, c, b], 1), np.stack([a, d, c], 1)])
    return vertices.reshape(-1, 3), normals.reshape(-1, 3), faces
