"""Archives are unpacked, data sets made complete or small; tests/test_faults_download.py has the
faults, and a Kaggle to download from."""

import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unetlib import (
    DataError,
    download,
    find_samples,
    load_mask,
    read_metadata,
    read_rles,
    rle_encode,
    write_subset,
)
from unetlib.fetch.kaggle import unpack

HEIGHT, WIDTH = 40, 60


def car_id(number):
    return f"{number:012x}"


def make_data(root, cars=3, angles=2, test_cars=0, tables=True):
    """A small data set in Carvana's layout with a different rectangle in every mask."""
    (root / "train").mkdir(parents=True)
    (root / "train_masks").mkdir()
    random = np.random.default_rng(0)
    rles = []
    for car in range(cars):
        for angle in range(1, angles + 1):
            name = f"{car_id(car)}_{angle:02}"
            photo = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(photo).save(root / "train" / f"{name}.jpg")
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[8 + car : 30, 10 : 40 + angle] = 1
            image = Image.fromarray(mask)
            image.putpalette([0, 0, 0, 255, 255, 255])
            image.save(root / "train_masks" / f"{name}_mask.gif")
            rles.append((f"{name}.jpg", rle_encode(mask)))
    for car in range(100, 100 + test_cars):
        (root / "test").mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "test" / f"{car_id(car)}_01.jpg")
    if tables:
        pd.DataFrame(rles, columns=["img", "rle_mask"]).to_csv(
            root / "train_masks.csv", index=False
        )
        metadata = pd.DataFrame({"id": [car_id(car) for car in range(cars)], "year": 2016})
        metadata.to_csv(root / "metadata.csv", index=False)
    return root


def make_archives(data, folder):
    """The four archives as Kaggle names them."""
    folder.mkdir()
    for archive, pattern in {
        "train.zip": "train/*",
        "train_masks.zip": "train_masks/*",
        "train_masks.csv.zip": "train_masks.csv",
        "metadata.csv.zip": "metadata.csv",
    }.items():
        with zipfile.ZipFile(folder / archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for path in sorted(data.glob(pattern)):
                opened.write(path, path.relative_to(data))
    return folder


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data", test_cars=2)


# --- unpacking ------------------------------------------------------------------------------------


def zip_with(path, *names, content=b"x"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def fault(what: str, name: str):
    mark = pytest.mark.fault(what, "unpacked inside of the target")
    return pytest.param(name, marks=mark, id=what)


@pytest.mark.parametrize(
    "name",
    [
        fault("zip with a ../ path", "../evil.txt"),
        fault("zip with a path that turns to ../", "train/../../evil.txt"),
        fault("zip with an absolute path", "/evil.txt"),
        fault("zip with a Windows drive", "C:/evil.txt"),
        fault("zip with a Windows path", "..\\evil.txt"),
    ],
)
def test_no_path_leaves_the_target(tmp_path, name):
    archive = zip_with(tmp_path / "a.zip", "train/good.txt", name)
    unpack(archive, tmp_path / "target")
    assert (tmp_path / "target" / "train" / "good.txt").exists()
    assert len(contents(tmp_path / "target")) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "target"}
    assert not Path("/evil.txt").exists()


@pytest.mark.fault("zip with a symbolic link", "a file like any other: nothing is linked")
def test_no_link_is_made(tmp_path):
    link = zipfile.ZipInfo("train")
    link.create_system = 3  # Unix, where the mode bits can say that an entry is a link
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = zip_with(tmp_path / "a.zip", link, content=b"/etc")
    unpack(archive, tmp_path / "target")
    assert not (tmp_path / "target" / "train").is_symlink()
    assert contents(tmp_path / "target") == {"train": b"/etc"}


@pytest.mark.fault("zip of huge ratio", "refused; nothing is written")
def test_a_zip_bomb_is_refused(tmp_path):
    archive = zip_with(tmp_path / "a.zip", "train/zeros.jpg", content=bytes(10_000_000))
    with pytest.raises(DataError, match=r"a\.zip"):
        unpack(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.fault("zip truncated", "called damaged, with the remedy")
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_archive_is_named(data, tmp_path, keep):
    archives = make_archives(data, tmp_path / "archives")
    whole = (archives / "train.zip").read_bytes()
    (archives / "train.zip").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=r"train\.zip"):
        unpack(archives / "train.zip", tmp_path / "target")


@pytest.mark.fault("zip with damaged bytes inside", "called damaged; nothing half stays")
def test_damaged_bytes_inside_leave_no_half_file(data, tmp_path):
    archive = make_archives(data, tmp_path / "archives") / "train.zip"
    raw = bytearray(archive.read_bytes())
    raw[300:400] = bytes(100)
    archive.write_bytes(raw)
    with pytest.raises(DataError, match=r"train\.zip"):
        unpack(archive, tmp_path / "target")
    assert contents(tmp_path / "target") == {}


@pytest.mark.fault("unpacking interrupted", "continued; what is complete is kept")
@pytest.mark.fault("an older file of the same name and size in the target", "replaced")
def test_a_file_of_other_content_is_replaced(tmp_path):
    archive = zip_with(tmp_path / "a.zip", "train/one.txt", "train/two.txt", content=b"new")
    (tmp_path / "target" / "train").mkdir(parents=True)
    (tmp_path / "target" / "train" / "one.txt").write_bytes(b"old")
    unpack(archive, tmp_path / "target")
    assert set(contents(tmp_path / "target").values()) == {b"new"}


def test_an_interrupted_unpacking_is_continued(data, tmp_path):
    archive = make_archives(data, tmp_path / "archives") / "train.zip"
    target = tmp_path / "target"
    unpack(archive, target)
    complete = contents(target)
    kept, missing, half = sorted(target.rglob("*.jpg"))[:3]
    missing.unlink()
    half.write_bytes(half.read_bytes()[:10])
    before = kept.stat().st_mtime_ns
    unpack(archive, target)
    assert contents(target) == complete
    assert kept.stat().st_mtime_ns == before, "a complete file is not written again"


def test_the_extra_entries_of_a_mac_are_ignored(tmp_path):
    archive = zip_with(tmp_path / "a.zip", "metadata.csv", "__MACOSX/._metadata.csv")
    unpack(archive, tmp_path / "target")
    assert list(contents(tmp_path / "target")) == ["metadata.csv"]


# --- from a folder --------------------------------------------------------------------------------


def test_archives_from_a_folder(data, tmp_path, capsys):
    archives = make_archives(data, tmp_path / "archives")
    target = download(tmp_path / "target", source=archives)
    expected = {name: raw for name, raw in contents(data).items() if not name.startswith("test")}
    assert contents(target) == expected
    assert "6 photos with masks of 3 cars" in capsys.readouterr().out


def test_test_photos_come_along_where_asked_for(data, tmp_path):
    archives = make_archives(data, tmp_path / "archives")
    with zipfile.ZipFile(archives / "test.zip", "w") as opened:
        for path in data.glob("test/*"):
            opened.write(path, path.relative_to(data))
    assert contents(download(tmp_path / "target", test=True, source=archives)) == contents(data)


@pytest.mark.fault("archive missing from the given folder", "named; csv archives may be missing")
def test_tables_may_be_missing_from_a_folder_but_photos_may_not(data, tmp_path):
    archives = make_archives(data, tmp_path / "archives")
    (archives / "metadata.csv.zip").unlink()
    download(tmp_path / "target", source=archives)
    (archives / "train_masks.zip").unlink()
    with pytest.raises(DataError, match=r"train_masks\.zip"):
        download(tmp_path / "other", source=archives)


def test_high_quality_photos_stand_in_for_train(data, tmp_path):
    (data / "train").rename(data / "train_hq")
    archives = make_archives(data, tmp_path / "archives")
    (archives / "train.zip").unlink()
    with zipfile.ZipFile(archives / "train_hq.zip", "w") as opened:
        for path in data.glob("train_hq/*"):
            opened.write(path, path.relative_to(data))
    target = download(tmp_path / "target", source=archives)
    assert len(list((target / "train_hq").iterdir())) == 6


# --- subsets --------------------------------------------------------------------------------------


def test_subset_has_the_same_layout_at_another_size(data, tmp_path):
    before = contents(data)
    target = write_subset(data, tmp_path / "subset", cars=2, size=(20, 30))
    assert contents(data) == before, "the source is only read"
    samples = find_samples(target)
    assert samples.attrs["problems"] == []
    assert set(samples["width"]) == {30} and set(samples["height"]) == {20}
    assert (samples["car"].nunique(), len(samples)) == (2, 4)
    rles = read_rles(target)
    for row in samples.itertuples():
        with Image.open(row.mask) as mask:
            assert mask.mode == "P" and set(np.unique(mask)) == {0, 1}
        assert rle_encode(load_mask(row.mask)) == rles[row.id]
    assert set(read_metadata(target)["id"]) == set(samples["car"])


def test_subset_takes_test_cars_along(tmp_path):
    data = make_data(tmp_path / "data", cars=8, angles=1, test_cars=5)
    samples = find_samples(write_subset(data, tmp_path / "subset", 8))
    assert samples[samples["mask"] == ""]["car"].nunique() == 2


def test_subset_masks_are_car_where_half_of_the_area_is(tmp_path):
    data = make_data(tmp_path / "data", cars=1, angles=1)
    target = write_subset(data, tmp_path / "subset", 1, size=(HEIGHT // 2, WIDTH // 2))
    full = load_mask(next((data / "train_masks").iterdir()))
    coverage = full.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).mean(axis=(1, 3))
    reduced = load_mask(next((target / "train_masks").iterdir()))
    np.testing.assert_array_equal(reduced, coverage >= 0.5)


@pytest.mark.filterwarnings("ignore:.*_mask.png")  # it says which colour fills the mask
@pytest.mark.parametrize("value", [0, 1])
def test_subset_of_an_empty_or_full_mask(tmp_path, value):
    data = make_data(tmp_path / "data", cars=1, angles=1)
    path = next((data / "train_masks").iterdir())
    Image.new("L", (WIDTH, HEIGHT), 255 * value).save(path.with_suffix(".png"))
    path.unlink()
    target = write_subset(data, tmp_path / "subset", 1, size=(20, 30))
    mask = load_mask(next((target / "train_masks").iterdir()))
    assert mask.all() if value else not mask.any()


def test_subset_is_a_function_of_the_seed(tmp_path):
    data = make_data(tmp_path / "data", cars=10, angles=1)
    drawn = [
        set(find_samples(write_subset(data, tmp_path / str(i), 3, seed=seed))["car"])
        for i, seed in enumerate([0, 0, 1])
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.fault("subset into a folder in use, or of too many cars", "refused")
def test_subset_refuses_a_bad_target_or_count(data, tmp_path, monkeypatch):
    for folder in ("used", "empty"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "used" / "file").touch()
    for target, cars in [
        (tmp_path / "used", 1),
        (tmp_path / "used" / "file", 1),
        (data, 1),
        (data / "new", 1),
        (tmp_path / "new", 4),
        (tmp_path / "new", 0),
        (tmp_path / "new", -1),
        (".", 1),
    ]:
        with pytest.raises(DataError):
            write_subset(data, target, cars)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_subset_fills_the_empty_folder_behind_a_link(data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write_subset(data, tmp_path / "link", 1)
    assert len(find_samples(tmp_path / "empty")) > 0


def damage_the_inside(photo):
    """Its start and its end are whole, which is all that find_samples looks at in a photo."""
    raw = bytearray(photo.read_bytes())
    code_lengths = raw.index(b"\xff\xc4") + 5  # of the first Huffman table
    raw[code_lengths : code_lengths + 16] = b"\xff" * 16
    photo.write_bytes(raw)


@pytest.mark.fault("photo damaged inside", "named when a subset is written; nothing stays")
def test_a_subset_with_a_damaged_photo_leaves_nothing(data, tmp_path):
    photo = sorted((data / "train").iterdir())[-1]
    damage_the_inside(photo)
    with pytest.raises(DataError, match=photo.name):
        write_subset(data, tmp_path / "subset", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "home"]


def test_subset_without_tables(tmp_path):
    data = make_data(tmp_path / "data", tables=False)
    target = write_subset(data, tmp_path / "subset", 1)
    assert not (target / "metadata.csv").exists()
    assert len(read_rles(target)) == 2, "the run lengths come from the masks"
