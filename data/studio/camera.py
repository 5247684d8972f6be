"""Where the camera stands and how it turns around the car.

Metres and degrees; the car's nose points to +x.
"""

import numpy as np

FRAMES = 16
STEP_DEG = 360 / FRAMES


def random_camera(rng, car_length):
    """Camera of one car: distance, height and zoom stay fixed over the whole turn.

    Image 01 looks at the nose; the camera then goes to the car's left, so image 05 shows the nose
    on the left and image 09 the tail (the order of the real set).
    """
    return {
        "distance": float(rng.uniform(5.6, 7.6) * (car_length / 4.8) ** 0.5),
        "height": float(rng.uniform(1.25, 1.75)),
        # share of the picture's width that the car fills in a side view
        "fill": float(np.clip(rng.normal(0.83, 0.07), 0.64, 0.98)),
        "aim_height": float(rng.uniform(0.30, 0.95)),
        "roll_deg": float(rng.normal(0, 0.4)),
        "phase_deg": float(rng.normal(0, 3)),
        # the car never stands quite in the middle of the turntable: offset in the car's own axes
        "stand": [float(rng.uniform(-0.35, 0.35)), float(rng.uniform(-0.10, 0.10))],
        "pan": float(rng.normal(0, 0.015)),
    }


def jitter_camera(camera, rng):
    """A small knock to the tripod, drawn anew for each of the 16 pictures."""
    knocked = dict(camera)
    knocked["pan"] = camera["pan"] + float(rng.normal(0, 0.012))
    knocked["aim_height"] = camera["aim_height"] + float(rng.normal(0, 0.03))
    return knocked


def angle_of_frame(camera, frame):
    """Azimuth of the camera around the car in radians for frame 1..16."""
    return np.radians(camera["phase_deg"] + STEP_DEG * (frame - 1))


def field_of_view(camera, car_length, car_width):
    """Horizontal field of view in degrees such that the side view fills `fill` of the width.

    The near flank decides: it is half a car width closer than the middle.
    """
    near = camera["distance"] - 0.40 * car_width
    return float(np.degrees(2 * np.arctan(car_length / (2 * camera["fill"] * near))))


def place(camera, azimuth, centre_x):
    """Origin, target and up vector of the camera at `azimuth` around the turntable's axis."""
    axis = np.array([centre_x + camera["stand"][0], camera["stand"][1]])
    towards = np.array([np.cos(azimuth), np.sin(azimuth)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth)])
    position = axis + camera["distance"] * towards
    target = axis + camera["pan"] * camera["distance"] * right
    roll = np.radians(camera["roll_deg"])
    up = [float(v) for v in (*(np.sin(roll) * right), np.cos(roll))]
    return [*position, camera["height"]], [*target, camera["aim_height"]], up, axis
