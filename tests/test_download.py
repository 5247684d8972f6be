import os
import stat
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unetlib import carvana
from unetlib.carvana import DataError
from unetlib.download import download, unpack, write_subset

SIZE = (60, 40)  # width, height


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
            photo = random.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            Image.fromarray(photo).save(root / "train" / f"{name}.jpg")
            mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
            mask[8 + car : 30, 10 : 40 + angle] = 1
            image = Image.fromarray(mask)
            image.putpalette([0, 0, 0, 255, 255, 255])
            image.save(root / "train_masks" / f"{name}_mask.gif")
            rles.append((f"{name}.jpg", carvana.rle_encode(mask)))
    for car in range(100, 100 + test_cars):
        (root / "test").mkdir(exist_ok=True)
        Image.new("RGB", SIZE).save(root / "test" / f"{car_id(car)}_01.jpg")
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


REFUSED = "refused; nothing is written"


def fault(what: str, name: str):
    return pytest.param(name, marks=pytest.mark.fault(what, REFUSED), id=what)


@pytest.mark.parametrize(
    "name",
    [
        fault("zip with a ../ path", "../evil.txt"),
        fault("zip with a path that turns to ../", "train/../../evil.txt"),
        fault("zip with an absolute path", "/tmp/evil.txt"),
        fault("zip with a Windows drive", "C:/evil.txt"),
        fault("zip with a Windows path", "..\\evil.txt"),
    ],
)
def test_a_path_that_leaves_the_target_is_refused(tmp_path, name):
    archive = zip_with(tmp_path / "a.zip", "train/good.txt", name)
    with pytest.raises(DataError, match="leaves the folder"):
        unpack(archive, tmp_path / "target")
    assert not (tmp_path / "evil.txt").exists()
    assert not (tmp_path / "target").exists(), "nothing is written from such an archive"


@pytest.mark.fault("zip with a symbolic link", "refused; nothing is written")
def test_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("train")
    link.create_system = 3  # Unix, where the mode bits can say that an entry is a link
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = zip_with(tmp_path / "a.zip", link, content=b"/etc")
    with pytest.raises(DataError, match="a link"):
        unpack(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.fault("zip of huge ratio", "refused; nothing is written")
def test_a_zip_bomb_is_refused(tmp_path):
    archive = zip_with(tmp_path / "a.zip", "train/zeros.jpg", content=bytes(10_000_000))
    with pytest.raises(DataError, match="more than 100 times"):
        unpack(archive, tmp_path / "target")
    assert not list((tmp_path / "target").glob("**/*.jpg"))


@pytest.mark.fault("archive larger than the free disk", "said before anything is written")
def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    archive = zip_with(tmp_path / "a.zip", "train/a.jpg")
    usage = type("usage", (), {"free": 0})
    monkeypatch.setattr("unetlib.download.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="make room"):
        unpack(archive, tmp_path / "target")


@pytest.mark.fault("zip truncated", "called damaged, with the remedy")
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_archive_is_named(data, tmp_path, keep):
    archives = make_archives(data, tmp_path / "archives")
    whole = (archives / "train.zip").read_bytes()
    (archives / "train.zip").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=r"train\.zip is damaged.*download it again"):
        unpack(archives / "train.zip", tmp_path / "target")


@pytest.mark.fault("zip with damaged bytes inside", "called damaged; nothing half stays")
def test_damaged_bytes_inside_leave_no_half_file(data, tmp_path):
    archive = make_archives(data, tmp_path / "archives") / "train.zip"
    raw = bytearray(archive.read_bytes())
    raw[300:400] = bytes(100)
    archive.write_bytes(raw)
    with pytest.raises(DataError, match="damaged"):
        unpack(archive, tmp_path / "target")
    assert not list((tmp_path / "target").rglob("*.jpg"))


@pytest.mark.fault("unpacking interrupted", "continued; what is complete is kept")
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
    for old in target.rglob("*.old"):
        assert old.name.startswith(half.name)
        old.unlink()
    assert contents(target) == complete
    assert kept.stat().st_mtime_ns == before, "a complete file is not written again"


@pytest.mark.fault("unpacked again after a mask was redrawn", "the redrawn one is kept, and named")
def test_a_changed_file_is_kept_when_its_archive_is_unpacked_again(data, tmp_path, capsys):
    archive = make_archives(data, tmp_path / "archives") / "train_masks.zip"
    unpack(archive, tmp_path / "target")
    mask = next((tmp_path / "target").rglob("*_mask.gif"))
    mask.write_bytes(b"redrawn")
    unpack(archive, tmp_path / "target")
    (old,) = mask.parent.glob("*.old")
    assert old.read_bytes() == b"redrawn" and mask.read_bytes() != b"redrawn"
    assert str(old) in capsys.readouterr().out


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


@pytest.mark.fault("archive missing from the given folder", "named; csv archives may be missing")
def test_tables_may_be_missing_from_a_folder_but_photos_may_not(data, tmp_path, capsys):
    archives = make_archives(data, tmp_path / "archives")
    (archives / "metadata.csv.zip").unlink()
    download(tmp_path / "target", source=archives)
    assert "no metadata.csv.zip" in capsys.readouterr().out
    (archives / "train_masks.zip").unlink()
    with pytest.raises(DataError, match=r"train_masks\.zip does not exist"):
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


def test_download_with_subset(data, tmp_path):
    archives = make_archives(data, tmp_path / "archives")
    target = download(tmp_path / "target", subset=2, source=archives)
    assert target == tmp_path / "target-2-cars"
    assert carvana.find_samples(target)["car"].nunique() == 2


# --- from Kaggle, played by a server on this computer ---------------------------------------------


@pytest.fixture
def kaggle(kaggle_at, tmp_path):
    """Point kagglehub at a local server; the dict it returns says what that answers."""
    answer = {"status": 200, "archives": tmp_path, "asked": 0}

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            answer["asked"] += 1
            request = self.rfile.read(int(self.headers["Content-Length"])).decode()
            names = [path.name for path in answer["archives"].glob("*.zip")]
            name = next((name for name in names if f'"{name}"' in request), None)
            body = (answer["archives"] / name).read_bytes() if name else b'{"message": "no"}'
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    kaggle_at(server)
    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.fault("no Kaggle account on this computer", "said, and where the token goes")
def test_no_account_tells_where_the_token_goes(kaggle, tmp_path, monkeypatch):
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kagglehub.http_resolver.get_kaggle_credentials", lambda: None)
    with pytest.raises(DataError, match=r"KAGGLE_API_TOKEN.*~/\.kaggle/access_token"):
        download(tmp_path / "target")


@pytest.mark.fault("download that lacks pictures", "refused, with both counts")
def test_download_from_kaggle_is_verified(kaggle, data, tmp_path, monkeypatch):
    kaggle["archives"] = make_archives(data, tmp_path / "archives")
    with pytest.raises(DataError, match=r"6 pairs of 3 cars, the full set 5,088 of 318"):
        download(tmp_path / "target")
    monkeypatch.setattr("unetlib.download.FULL_PAIRS", 6)
    monkeypatch.setattr("unetlib.download.FULL_CARS", 3)
    assert download(tmp_path / "target") == tmp_path / "target"
    assert len(carvana.find_samples(tmp_path / "target")) == 6


# --- subsets --------------------------------------------------------------------------------------


def test_subset_has_the_same_layout_at_another_size(data, tmp_path):
    before = contents(data)
    target = write_subset(data, tmp_path / "subset", cars=2, size=(30, 20))
    assert contents(data) == before, "the source is only read"
    samples = carvana.find_samples(target)
    assert samples.attrs["problems"] == []
    assert set(samples["width"]) == {30} and set(samples["height"]) == {20}
    assert (samples["car"].nunique(), len(samples)) == (2, 4)
    rles = carvana.read_rles(target)
    for row in samples.itertuples():
        with Image.open(row.mask) as mask:
            assert mask.mode == "P" and set(np.unique(mask)) == {0, 1}
        assert carvana.rle_encode(carvana.load_mask(row.mask)) == rles[row.id]
    assert set(carvana.read_metadata(target)["id"]) == set(samples["car"])


def test_subset_takes_test_cars_along(tmp_path):
    data = make_data(tmp_path / "data", cars=8, angles=1, test_cars=5)
    samples = carvana.find_samples(write_subset(data, tmp_path / "subset", 8))
    assert samples[samples["mask"] == ""]["car"].nunique() == 2


def test_subset_masks_are_car_where_half_of_the_area_is(tmp_path):
    data = make_data(tmp_path / "data", cars=1, angles=1)
    target = write_subset(data, tmp_path / "subset", 1, size=(SIZE[0] // 2, SIZE[1] // 2))
    full = carvana.load_mask(next((data / "train_masks").iterdir()))
    coverage = full.reshape(SIZE[1] // 2, 2, SIZE[0] // 2, 2).mean(axis=(1, 3))
    reduced = carvana.load_mask(next((target / "train_masks").iterdir()))
    np.testing.assert_array_equal(reduced, coverage >= 0.5)


@pytest.mark.parametrize("value", [0, 1])
def test_subset_of_an_empty_or_full_mask(tmp_path, value):
    data = make_data(tmp_path / "data", cars=1, angles=1)
    path = next((data / "train_masks").iterdir())
    Image.new("L", SIZE, 255 * value).save(path.with_suffix(".png"))
    path.unlink()
    target = write_subset(data, tmp_path / "subset", 1, size=(30, 20))
    mask = carvana.load_mask(next((target / "train_masks").iterdir()))
    assert mask.all() if value else not mask.any()


def test_subset_is_a_function_of_the_seed(tmp_path):
    data = make_data(tmp_path / "data", cars=10, angles=1)
    drawn = [
        set(carvana.find_samples(write_subset(data, tmp_path / str(i), 3, seed=seed))["car"])
        for i, seed in enumerate([0, 0, 1])
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.fault("subset into a folder in use, or of too many cars", "refused")
def test_subset_refuses_a_bad_target_or_count(data, tmp_path, monkeypatch):
    for folder in ("used", "empty"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "used" / "file").touch()
    for target, cars, message in [
        (tmp_path / "used", 1, "not empty"),
        (data, 1, "inside the source"),
        (data / "new", 1, "inside the source"),
        (tmp_path / "new", 4, "3 cars"),
        (tmp_path / "new", 0, "ask for 1 to 3, not 0"),
        (tmp_path / "new", -1, "ask for 1 to 3, not -1"),
        (".", 1, "the folder you are in: name a new one"),
    ]:
        with pytest.raises(DataError, match=message):
            write_subset(data, target, cars)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_subset_fills_the_empty_folder_behind_a_link(data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write_subset(data, tmp_path / "link", 1)
    assert len(carvana.find_samples(tmp_path / "empty")) > 0


@pytest.mark.fault("writing a subset is interrupted", "nothing stays")
def test_an_interrupted_subset_leaves_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr("unetlib.download._save_mask", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        write_subset(data, tmp_path / "subset", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_subset_without_tables(tmp_path):
    data = make_data(tmp_path / "data", tables=False)
    target = write_subset(data, tmp_path / "subset", 1)
    assert not (target / "metadata.csv").exists()
    assert len(carvana.read_rles(target)) == 2, "the run lengths come from the masks"
