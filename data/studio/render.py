"""Render the course's data set: `python data/studio/render.py [--cars 40] [--out data/sample]`.

Draws cars and booths from a seed, path-traces 16 turntable pictures of each and writes them in
the layout of the Carvana Image Masking Challenge. Finished pictures are kept, so an interrupted
run goes on where it stopped.
"""

import argparse
import csv
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

STUDIO = Path(__file__).resolve().parent
sys.path.insert(0, str(STUDIO))

import booth as booths  # noqa: E402
import camera as cameras  # noqa: E402
import cars  # noqa: E402
import develop as darkroom  # noqa: E402
import materials  # noqa: E402
import shapes  # noqa: E402

SEED = 2026
CAST_TRAIN, CAST_TEST = 32, 8
# body type and paint of every car: 32 for training, 8 for testing, the full-size one
CAST = """
    sedan white, suv black, pickup silver, hatchback red, van white, coupe grey, sedan silver,
    suv white, pickup black, hatchback blue, van grey, coupe yellow, sedan black, suv silver,
    sedan grey, pickup red, hatchback white, van blue, suv grey, sedan blue, coupe white,
    pickup white, suv beige, sedan black, hatchback silver, van black, suv red, coupe black,
    sedan pearl, pickup green, hatchback orange, suv blue,
    sedan red, suv white, pickup blue, hatchback black, van silver, coupe blue, sedan white,
    suv grey,
    sedan silver
"""
CAST = [tuple(entry.split()) for entry in CAST.split(",")]
FULL_SIZE_CAR = 122  # 40 + 2 x 41: the last entry of the cast, with a booth like the real one
FURTHER_CARS = 200  # from this one on: --further, booths whose light falls off to one side
# invented names, alphabetical
MAKES = ["Alder", "Bracken", "Corvid", "Dunlin", "Ember", "Fennel", "Gannet", "Harrow"]
MODELS = [
    "Arbour", "Bramble", "Cobble", "Dapple", "Eddy", "Fable", "Gorse", "Hazel", "Islet", "Juniper",
    "Kelpie", "Lovage", "Madder", "Nettle", "Orrery", "Plover", "Quill", "Rowan", "Sorrel",
    "Teasel", "Umber", "Vetch", "Whin", "Yarrow", "Zaffre",
]  # fmt: skip


# what the random streams of a car are for
SHAPE, FINISH, CAMERA, BOOTH, DEVELOPMENT, NAMES = range(6)


def stream(car, *purpose):
    """A random generator per purpose, so that changing one draw leaves the others alone."""
    return np.random.default_rng([SEED, car, *purpose])


def describe(car):
    """The car's 12-digit id and its row of metadata.csv."""
    rng = stream(car, NAMES)
    kind, paint = CAST[car % len(CAST)]
    identity = "".join(rng.choice(list("0123456789abcdef"), 12))
    shape = shapes.random_shape(stream(car, SHAPE), kind)
    return identity, [
        identity,
        int(rng.integers(2006, 2018)),
        str(rng.choice(MAKES)),
        f"{rng.choice(MODELS)} {int(rng.integers(1, 9))}00",
        f"{kind} {shape['variant']}",
        paint,
    ]


def run_lengths(mask):
    """Carvana's run-length code: 1-based starts and lengths, row by row."""
    padded = np.concatenate([[0], mask.ravel().astype(np.int8), [0]])
    changes = np.flatnonzero(np.diff(padded)) + 1
    return " ".join(
        f"{start} {stop - start}" for start, stop in zip(changes[::2], changes[1::2], strict=True)
    )


def save(image, path, **options):
    """Write to a temporary name, then rename: whoever looks sees whole files only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    image.save(temporary, format={".jpg": "JPEG", ".gif": "GIF"}[path.suffix], **options)
    temporary.replace(path)


def mask_image(mask):
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255] + [0] * 762)
    return image


def pictures_of(car, size, samples, frames):
    """Yield each frame and the studio, set up for it."""
    import tracer  # needs Mitsuba; the tables can be written without

    kind, paint = CAST[car % len(CAST)]
    shape = shapes.random_shape(stream(car, SHAPE), kind)
    camera = cameras.random_camera(stream(car, CAMERA), shape["length"])
    slope = 0.6 if car >= FURTHER_CARS else 0.12
    booth = booths.random_booth(stream(car, BOOTH), camera, slope)
    finish = materials.random_finish(stream(car, FINISH), paint)
    studio = tracer.Tracer(cars.build(shape), finish, camera, booth, size, samples)
    for frame in frames:
        frame_camera = cameras.jitter_camera(camera, stream(car, CAMERA, frame))
        backdrop = booths.random_backdrop(booth, stream(car, BOOTH, frame))
        studio.set_picture(cameras.angle_of_frame(camera, frame), frame_camera, backdrop)
        yield frame, studio


def render_car(car, split, out, size, samples, frames):
    """Render those pictures of one car that are not there yet."""
    identity, _ = describe(car)
    pictures = {frame: out / split / f"{identity}_{frame:02d}.jpg" for frame in frames}
    masks = (
        {frame: out / f"{split}_masks" / f"{identity}_{frame:02d}_mask.gif" for frame in frames}
        if split == "train"
        else {}
    )
    missing = [
        frame
        for frame in frames
        if not (pictures[frame].exists() and (not masks or masks[frame].exists()))
    ]
    if not missing:
        return 0
    development = darkroom.random_development(stream(car, DEVELOPMENT))
    for frame, studio in pictures_of(car, size, samples, missing):
        rng = stream(car, DEVELOPMENT, frame)
        frame_development = darkroom.jitter_development(development, rng)
        photograph = darkroom.develop(studio.light(seed=16 * car + frame), frame_development, rng)
        if masks:
            save(mask_image(studio.mask()), masks[frame])
        save(Image.fromarray(photograph), pictures[frame], quality=development["quality"])
    return len(missing)


def write_solution(path, size):
    """The masks of the test cars, whose pictures data/sample has and whose masks it lacks."""
    rows = []
    for car in tqdm(range(CAST_TRAIN, CAST_TRAIN + CAST_TEST), unit="car"):
        for frame, studio in pictures_of(car, size, 1, range(1, 17)):
            rows.append([f"{describe(car)[0]}_{frame:02d}.jpg", run_lengths(studio.mask())])
    write_table(path, ["img", "rle_mask"], sorted(rows))


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    temporary.replace(path)


def write_tables(out, chosen):
    """train_masks.csv from the GIFs on disk, metadata.csv from the seed."""
    rows = []
    for path in sorted((out / "train_masks").glob("*_mask.gif")):
        with Image.open(path) as image:
            rows.append(
                [path.name.replace("_mask.gif", ".jpg"), run_lengths(np.asarray(image) > 0)]
            )
    write_table(out / "train_masks.csv", ["img", "rle_mask"], rows)
    write_table(
        out / "metadata.csv",
        ["id", "year", "make", "model", "trim1", "trim2"],
        sorted(describe(car)[1] for car in chosen),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=STUDIO.parent / "sample",
        help="folder to write (default: data/sample)",
    )
    parser.add_argument(
        "--cars", type=int, default=CAST_TRAIN + CAST_TEST, help="number of cars, from the first on"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first car")
    parser.add_argument(
        "--stride",
        type=int,
        default=1,
        help="take every n-th car: splits the work between processes",
    )
    parser.add_argument(
        "--frames", type=int, nargs="+", default=list(range(1, 17)), help="which of the 16 pictures"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(480, 320), metavar=("WIDTH", "HEIGHT")
    )
    parser.add_argument(
        "--further",
        type=int,
        metavar="N",
        help="render N cars that no other set has, four views each; needs --out",
    )
    parser.add_argument("--samples", type=int, default=4, help="light paths per pixel")
    parser.add_argument(
        "--full-size",
        action="store_true",
        help="render the one car at 1918x1280 into data/fullsize",
    )
    parser.add_argument(
        "--solution",
        action="store_true",
        help="only the run lengths of the test cars' masks, into data/solution/solution.csv",
    )
    choice = parser.parse_args()
    if choice.solution:
        write_solution(STUDIO.parent / "solution" / "solution.csv", tuple(choice.size))
        return
    if choice.full_size:
        chosen, size = [FULL_SIZE_CAR], (1918, 1280)
        out = choice.out if choice.out != parser.get_default("out") else STUDIO.parent / "fullsize"
    else:
        first = FURTHER_CARS if choice.further else 0
        listed = range(first, first + (choice.further or choice.cars))
        chosen = listed[choice.first :: choice.stride]
        size, out = tuple(choice.size), choice.out
        if choice.further and out == parser.get_default("out"):
            parser.error("--further needs an --out of its own, such as build/further")
    for car in tqdm(chosen, unit="car"):
        split = "test" if CAST_TRAIN <= car < CAST_TRAIN + CAST_TEST else "train"
        frames = range(1 + car % 4, 17, 4) if choice.further else choice.frames
        render_car(car, split, out, size, choice.samples, frames)
    write_tables(out, chosen if choice.full_size else listed)


if __name__ == "__main__":
    main()
