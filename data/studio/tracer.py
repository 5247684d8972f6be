"""The Mitsuba scene of one car in its booth: the light, guides for the denoiser, and the mask.

Mitsuba's `llvm_ad_rgb` needs a fairly new LLVM library (see data/README.md);
`STUDIO_VARIANT=scalar_rgb` works without one, about five times slower.
"""

import os

import numpy as np

DEBIAN_LLVM = "/usr/lib/x86_64-linux-gnu/libLLVM.so.19.1"
if os.path.exists(DEBIAN_LLVM):
    os.environ.setdefault("DRJIT_LIBLLVM_PATH", DEBIAN_LLVM)

import mitsuba as mi  # noqa: E402  (the library path has to be set first)

VARIANT = os.environ.get("STUDIO_VARIANT", "llvm_ad_rgb")
mi.set_variant(VARIANT)

# isort: split
import booth as booths  # noqa: E402
import camera as cameras  # noqa: E402
import floor  # noqa: E402
import materials  # noqa: E402
import meshes  # noqa: E402


def _transform(transform):
    """Scalar transforms have to be wrapped when written into a scene of a vectorised variant."""
    return transform if VARIANT == "scalar_rgb" else mi.Transform4f(transform)


def _mesh(name, mesh, material, texture_coordinates=None):
    vertices, normals, faces = mesh
    properties = mi.Properties()
    properties["mesh_bsdf"] = material
    result = mi.Mesh(
        name,
        len(vertices),
        len(faces),
        has_vertex_normals=True,
        has_vertex_texcoords=texture_coordinates is not None,
        props=properties,
    )
    values = mi.traverse(result)
    values["vertex_positions"] = np.ascontiguousarray(vertices, np.float32).ravel()
    values["vertex_normals"] = np.ascontiguousarray(normals, np.float32).ravel()
    values["faces"] = np.ascontiguousarray(faces, np.uint32).ravel()
    if texture_coordinates is not None:
        values["vertex_texcoords"] = np.ascontiguousarray(texture_coordinates, np.float32).ravel()
    values.update()
    return result


class Tracer:
    """Holds the scene of one car; every picture updates camera, environment and floor in place."""

    def __init__(self, parts, finish, camera, booth, size=(480, 320), samples=4):
        self.camera, self.booth, self.size, self.samples = camera, booth, size, samples
        corners = np.concatenate([vertices for vertices, _, _ in parts.values()])
        self.centre_x = float(corners[:, 0].min() + corners[:, 0].max()) / 2
        self.field_of_view = cameras.field_of_view(
            camera, np.ptp(corners[:, 0]), np.ptp(corners[:, 1])
        )
        self.environment_width = 2048 if size[0] <= 960 else 6144
        self.floor_pixels = 768 if size[0] <= 960 else 3072
        by_material = {}
        for name, mesh in parts.items():
            by_material.setdefault(name.split("#")[0], []).append(mesh)
        looks = materials.car_materials(finish)
        car = {
            name: _mesh(name, meshes.merge(group), mi.load_dict(looks[name]))
            for name, group in by_material.items()
        }
        self.surroundings = booths.paint_surroundings(booth, self.environment_width)
        self.floor_picture = floor.paint(booth, self.floor_pixels)
        blank = np.ones((self.environment_width // 2, self.environment_width, 3), np.float32)
        self.scene = mi.load_dict(
            {
                "type": "scene",
                "integrator": {"type": "path", "max_depth": 5, "rr_depth": 4},
                **car,
                "floor": self._floor_mesh(),
                "environment": {
                    "type": "envmap",
                    "bitmap": mi.Bitmap(blank),
                    "to_world": mi.ScalarTransform4f().rotate([1, 0, 0], 90),
                },
            }
        )
        self.values = mi.traverse(self.scene)
        self.value_names = list(self.values.keys())
        self.silhouette = mi.load_dict({"type": "scene", **car})
        self.guides = mi.load_dict({"type": "aov", "aovs": "al:albedo,nn:sh_normal"})
        self.hits = mi.load_dict({"type": "depth"})
        self.sensors = {kind: self._sensor(kind) for kind in ("rgb", "rgba")}

    def _key(self, *words):
        matches = [key for key in self.value_names if all(word in key for word in words)]
        assert len(matches) == 1, (words, matches)
        return matches[0]

    def _floor_mesh(self):
        """A placeholder with all vertices and triangles; `_lay_floor` moves it into place."""
        backdrop = {"horizon_drop": 5.0, "horizon_curve": 0.0}
        outline, faces = floor.outline(self.booth, backdrop, self.camera)
        blank = np.full((self.floor_pixels, self.floor_pixels, 3), 0.5, np.float32)
        material = mi.load_dict(
            {
                "type": "principled",
                "roughness": self.booth["floor_roughness"],
                "specular": self.booth["floor_specular"],
                "base_color": {
                    "type": "bitmap",
                    "bitmap": mi.Bitmap(blank),
                    "raw": True,
                    "wrap_mode": "clamp",
                },
            }
        )
        flat = np.pad(outline, ((0, 0), (0, 1)))
        return _mesh(
            "floor",
            (flat, np.tile([0.0, 0.0, 1.0], (len(flat), 1)), faces),
            material,
            np.zeros((len(flat), 2)),
        )

    def _sensor(self, pixel_format):
        # the box filter: wider ones leave grain after denoising
        film = {
            "type": "hdrfilm",
            "width": self.size[0],
            "height": self.size[1],
            "rfilter": {"type": "box"},
            "pixel_format": pixel_format,
            "component_format": "float32",
        }
        return mi.load_dict(
            {
                "type": "perspective",
                "fov": self.field_of_view,
                "fov_axis": "x",
                "film": film,
                "sampler": {"type": "independent", "sample_count": 4},
            }
        )

    def set_picture(self, azimuth, camera, backdrop):
        """Turn the camera (and with it the booth) to `azimuth` and hang the picture's own
        backdrop.
        """
        origin, target, up, axis = cameras.place(camera, azimuth, self.centre_x)
        view = _transform(mi.ScalarTransform4f().look_at(origin=origin, target=target, up=up))
        for sensor in self.sensors.values():
            sensor_values = mi.traverse(sensor)
            sensor_values["to_world"] = view
            sensor_values.update()
        turned = (
            mi.ScalarTransform4f()
            .rotate([0, 0, 1], float(np.degrees(azimuth)))
            .rotate([1, 0, 0], 90)
        )
        self.values[self._key("environment", "to_world")] = _transform(turned)
        picture = booths.hang_backdrop(self.surroundings, self.booth, backdrop, self.field_of_view)
        # Mitsuba keeps the map with its last column repeated before it and its first one after it
        self.values[self._key("environment", "data")] = mi.TensorXf(
            np.concatenate([picture[:, -1:], picture, picture[:, :1]], 1)
        )
        self._lay_floor(azimuth, axis, camera, backdrop)
        self.values.update()

    def _lay_floor(self, azimuth, axis, camera, backdrop):
        outline, _ = floor.outline(self.booth, backdrop, camera)
        towards = np.array([np.cos(azimuth), np.sin(azimuth)])
        right = np.array([-np.sin(azimuth), np.cos(azimuth)])
        ground = axis + outline[:, :1] * right + outline[:, 1:] * towards
        texture_coordinates = outline / (2 * floor.REACH) + 0.5
        self.values[self._key("floor", "vertex_positions")] = (
            np.pad(ground, ((0, 0), (0, 1))).astype(np.float32).ravel()
        )
        self.values[self._key("floor", "vertex_texcoords")] = texture_coordinates.astype(
            np.float32
        ).ravel()
        self.values[self._key("base_color", "data")] = mi.TensorXf(
            np.clip(self.floor_picture * backdrop["floor"], 0.01, 0.95)
        )

    def light(self, seed):
        """Denoised linear RGB of the current picture."""
        import pyoidn

        noisy = np.array(
            mi.render(self.scene, sensor=self.sensors["rgb"], spp=self.samples, seed=seed)
        )[..., :3]
        guides = np.array(
            mi.render(
                self.scene, sensor=self.sensors["rgb"], spp=4, seed=seed, integrator=self.guides
            )
        )[..., -6:]
        return pyoidn.denoise(
            np.ascontiguousarray(np.nan_to_num(noisy), np.float32),
            albedo=np.ascontiguousarray(np.clip(guides[..., :3], 0, 1), np.float32),
            normal=np.ascontiguousarray(guides[..., 3:], np.float32),
            hdr=True,
            quality="balanced",
        )

    def mask(self):
        """True where the car covers at least half of the pixel, from the geometry alone."""
        picture = np.array(
            mi.render(self.silhouette, sensor=self.sensors["rgba"], spp=16, integrator=self.hits)
        )
        return picture[..., 3] > 0.5
