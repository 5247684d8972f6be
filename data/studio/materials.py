"""Paints, glass, rims and plates of a car, and their Mitsuba materials (linear reflectances)."""

import numpy as np

# name: (share of the cars, darkest rgb, lightest rgb, metallic share)
PAINTS = {
    "white": (0.19, (0.74, 0.74, 0.73), (0.88, 0.88, 0.87), 0.0),
    "pearl": (0.05, (0.68, 0.67, 0.63), (0.80, 0.79, 0.75), 0.1),
    "silver": (0.16, (0.38, 0.39, 0.40), (0.62, 0.63, 0.64), 0.75),
    "grey": (0.14, (0.08, 0.085, 0.09), (0.28, 0.285, 0.30), 0.6),
    "black": (0.17, (0.002, 0.002, 0.003), (0.014, 0.014, 0.016), 0.1),
    "red": (0.09, (0.20, 0.006, 0.008), (0.52, 0.020, 0.018), 0.3),
    "blue": (0.09, (0.006, 0.015, 0.07), (0.04, 0.14, 0.42), 0.45),
    "beige": (0.04, (0.35, 0.29, 0.20), (0.56, 0.50, 0.40), 0.6),
    "green": (0.03, (0.015, 0.05, 0.025), (0.08, 0.18, 0.09), 0.4),
    "orange": (0.02, (0.45, 0.11, 0.01), (0.62, 0.22, 0.02), 0.3),
    "yellow": (0.02, (0.55, 0.38, 0.01), (0.70, 0.50, 0.03), 0.0),
}


def random_paint(rng, name=None):
    """A paint by name, or one drawn by its share of the traffic."""
    shares = np.array([entry[0] for entry in PAINTS.values()])
    drawn = str(rng.choice(list(PAINTS), p=shares / shares.sum()))
    name = name or drawn
    _, low, high, metallic = PAINTS[name]
    mix = rng.random()
    return {
        "name": name,
        "rgb": [float(a + (b - a) * mix) for a, b in zip(low, high, strict=True)],
        "metallic": float(np.clip(metallic * rng.uniform(0.5, 1.2), 0, 0.72)),
        "roughness": float(rng.uniform(0.28, 0.5)),
        "matte": bool(rng.random() < 0.06),
    }


def random_finish(rng, paint_name=None):
    """Everything of a car's look that is not shape."""
    interiors = ([0.02, 0.02, 0.022], [0.02, 0.02, 0.022], [0.13, 0.13, 0.135], [0.25, 0.21, 0.16])
    return {
        "paint": random_paint(rng, paint_name),
        "second_paint": random_paint(rng),
        "decal": random_paint(rng),
        "glass": float(rng.uniform(0.22, 0.72)),
        "dark_glass": float(rng.uniform(0.03, 0.16)),
        "interior": interiors[int(rng.integers(4))],
        "rim": str(rng.choice(["alloy", "alloy", "alloy", "bright", "dull", "black", "black"])),
        "rim_tone": float(rng.uniform(0.30, 0.65)),
        "tyre": float(rng.uniform(0.010, 0.030)),
        "plate": [
            float(v)
            for v in rng.uniform(0.45, 0.92) * np.array([1, 1, 1]) * rng.uniform(0.85, 1.0, 3)
        ],
        "plate_band": [float(v) for v in rng.uniform(0.02, 0.5, 3)],
        "plastic": float(rng.choice([0.010, 0.014, 0.03])),
    }


def _rgb(*values):
    return {
        "type": "rgb",
        "value": [float(v) for v in (values if len(values) == 3 else values * 3)],
    }


def _two_sided(material):
    return {"type": "twosided", "b": material}


def _plastic(roughness, *colour):
    return {
        "type": "roughplastic",
        "diffuse_reflectance": _rgb(*colour),
        "alpha": roughness,
        "int_ior": 1.45,
    }


def _metal(roughness, tone):
    return {
        "type": "roughconductor",
        "alpha": roughness,
        "specular_reflectance": _rgb(tone),
        "material": "none",
    }


def _glass(*transmittance, ior=1.52):
    return {
        "type": "thindielectric",
        "specular_transmittance": _rgb(*transmittance),
        "int_ior": ior,
    }


def _lacquer(paint):
    """Solid colour under clear lacquer; metallic paints blend in a layer of flakes.

    Blending weakens the lacquer's mirror image, so its index is raised until the sum reflects 4.3
    % head-on.
    """
    if paint["matte"]:
        return _two_sided(_plastic(0.32, *paint["rgb"]))
    flakes = paint["metallic"]
    reflectance = 0.043 / (1 - flakes)
    index = (1 + reflectance**0.5) / (1 - reflectance**0.5)
    coat = {"type": "plastic", "diffuse_reflectance": _rgb(*paint["rgb"]), "int_ior": float(index)}
    if flakes < 0.05:
        return coat
    flake_colour = [min(1.0, 1.25 * value + 0.02) for value in paint["rgb"]]
    flake = {
        "type": "roughconductor",
        "alpha": paint["roughness"],
        "specular_reflectance": _rgb(*flake_colour),
        "material": "none",
    }
    return {"type": "blendbsdf", "weight": flakes, "a": coat, "b": flake}


def _rim(finish):
    if finish["rim"] == "black":
        return _two_sided(_plastic(0.12, 0.02, 0.02, 0.02))
    if finish["rim"] == "bright":
        return _two_sided(_metal(0.10, 0.78))
    if finish["rim"] == "dull":
        return _two_sided(_plastic(0.3, 0.28, 0.28, 0.29))
    return _two_sided(
        {
            "type": "principled",
            "base_color": _rgb(finish["rim_tone"]),
            "metallic": 0.8,
            "roughness": 0.28,
            "clearcoat": 0.6,
            "clearcoat_gloss": 0.95,
        }
    )


def car_materials(finish):
    """Mitsuba material by the name that comes before '#' in the names of a car's parts."""
    glass, tyre, plastic = finish["glass"], finish["tyre"], finish["plastic"]
    return {
        "paint": _lacquer(finish["paint"]),
        "paint2": _lacquer(finish["second_paint"]),
        "decal": _two_sided(_plastic(0.25, *finish["decal"]["rgb"])),
        "black": _two_sided(_plastic(0.22, plastic, plastic, plastic)),
        "gap": _two_sided({"type": "diffuse", "reflectance": _rgb(0.006)}),
        "glass": _glass(0.97 * glass, glass, 0.985 * glass),
        "darkglass": _glass(finish["dark_glass"]),
        "chrome": _metal(0.06, 0.75),
        "mirror": _metal(0.02, 0.6),
        "tire": _plastic(0.35, tyre, tyre, tyre),
        "rim": _rim(finish),
        "disc": _two_sided(_metal(0.25, 0.35)),
        "lens": _glass(0.92, ior=1.5),
        "reflector": _two_sided(_metal(0.18, 0.72)),
        "lens_red": _two_sided(
            {"type": "plastic", "diffuse_reflectance": _rgb(0.22, 0.006, 0.008), "int_ior": 1.5}
        ),
        "lens_white": _two_sided(
            {"type": "plastic", "diffuse_reflectance": _rgb(0.45, 0.42, 0.42), "int_ior": 1.5}
        ),
        "interior": _two_sided({"type": "diffuse", "reflectance": _rgb(*finish["interior"])}),
        "plate": _two_sided(_plastic(0.2, *finish["plate"])),
        "plateband": _two_sided(_plastic(0.2, *finish["plate_band"])),
    }
