"""A whole car from the numbers of its shape."""

import faces
import trim
from body import Body
from fittings import add_fittings
from meshes import merge
from panels import Panels
from wheels import add_wheels


def build(shape, cell=0.030):
    """Meshes by part name, material before '#'. `cell` is the skin's grid in metres."""
    body = Body(shape)
    panels = Panels(body, cell)
    parts = panels.parts
    panels.wheel_arches()
    panels.side_windows()
    panels.front_and_rear_window()
    faces.head_lamps(panels)
    faces.tail_lamps(panels)
    faces.grille(panels)
    faces.bumpers(panels)
    trim.shut_lines(panels)
    trim.mouldings_and_sunroof(panels)
    trim.second_paint_and_stickers(panels)
    parts["paint#body"] = panels.rest  # whatever nothing was cut from is painted
    add_fittings(parts, panels)
    add_wheels(parts, body)
    whole = {name: merge(part) if isinstance(part, list) else part for name, part in parts.items()}
    return {name: mesh for name, mesh in whole.items() if len(mesh[2])}
