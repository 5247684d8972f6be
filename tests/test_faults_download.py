"""Archives and downloads that go wrong: real zip files, real disks that fill up, a real server that
behaves badly, behind the real kagglehub."""

import base64
import hashlib
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import numpy as np
import pytest
from test_download import contents, make_archives, make_data

from unetlib import REPOSITORY, DataError, download, find_samples
from unetlib.fetch.kaggle import unpack


def fault(what: str, outcome: str, *values):
    """A parameter that is a fault of its own."""
    return pytest.param(*values, marks=pytest.mark.fault(what, outcome), id=what)


# ---------------------------------------------------------------------------------------- archives


def archive_of(path, files: int, size: int, name="train/{}.jpg"):
    """An archive of files of random bytes, stored as they are."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(files):
            archive.writestr(name.format(number), random.bytes(size))
    return path


def half_files(target, archive) -> list[str]:
    """Files below the target that are not what the archive holds."""
    with zipfile.ZipFile(archive) as opened:
        whole = {name: opened.read(name) for name in opened.namelist()}
    return [name for name, raw in contents(target).items() if whole.get(name) != raw]


FREED = "said; no half file stays; with room, the same call continues"


@pytest.mark.fault("disk full while unpacking", FREED)
def test_a_disk_that_fills_up_leaves_no_half_file(tmp_path, own_disk):
    """200 files of 100 bytes would fit beside the ballast, but each takes up a page of 4 kB."""
    disk = own_disk("size=1m")
    archive = archive_of(tmp_path / "train.zip", 200, 100)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(700_000))
    with pytest.raises(DataError, match=r"train\.zip.*No space left on device"):
        unpack(archive, disk / "target")
    assert 0 < len(contents(disk / "target")) < 200
    assert half_files(disk / "target", archive) == []
    ballast.unlink()
    unpack(archive, disk / "target")
    assert len(contents(disk / "target")) == 200 and half_files(disk / "target", archive) == []


@pytest.mark.fault("one file too large for the disk's limits", "said; no half file stays")
def test_a_file_that_may_not_grow_leaves_nothing(tmp_path):
    archive = archive_of(tmp_path / "train.zip", 1, 3_000_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"train\.zip.*File too large"):
            unpack(archive, tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path / "target") == {}


@pytest.mark.fault("read-only target folder", "said, with the remedy")
def test_a_read_only_target_is_named(tmp_path, own_disk):
    disk = own_disk("size=64k,ro")
    archive = archive_of(tmp_path / "train.zip", 1, 100)
    with pytest.raises(DataError, match=r"Read-only file system"):
        unpack(archive, disk / "target")


@pytest.mark.fault("a file where a folder should be", "said; the file is left alone")
def test_a_file_in_the_way_is_left_alone(tmp_path):
    archive = archive_of(tmp_path / "train.zip", 1, 100)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "train").write_text("mine")
    with pytest.raises(DataError, match=r"train\.zip"):
        unpack(archive, tmp_path / "target")
    assert (tmp_path / "target" / "train").read_text() == "mine"


UNPACK = "import sys; from unetlib.fetch.kaggle import unpack; unpack(*sys.argv[1:])"


@pytest.mark.fault(
    "kill -9 while unpacking", "no half file is taken for whole; the next call continues"
)
def test_a_killed_unpacking_is_continued(tmp_path):
    archive = archive_of(tmp_path / "train.zip", 1500, 500)
    target = tmp_path / "target"
    process = subprocess.Popen(
        [sys.executable, "-c", UNPACK, archive, target],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    )
    while not (target / "train" / "20.jpg").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = half_files(target, archive)
    assert all(name.startswith(".part") for name in left) and len(left) <= 1
    assert 20 < len(contents(target)) < 1500
    unpack(archive, target)
    assert len(contents(target)) == 1500 and half_files(target, archive) == []


def encrypted(raw: bytearray) -> None:
    raw[6] |= 1
    raw[raw.index(b"PK\1\2") + 8] |= 1


def unknown_compression(raw: bytearray) -> None:
    for place in (8, raw.index(b"PK\1\2") + 10):
        raw[place : place + 2] = struct.pack("<H", 99)


def larger_than_declared(raw: bytearray) -> None:
    """The file's 900 bytes are declared to be 10."""
    for place in (22, raw.index(b"PK\1\2") + 24):
        raw[place : place + 4] = struct.pack("<I", 10)


def no_directory(raw: bytearray) -> None:
    del raw[raw.index(b"PK\1\2") :]


def web_page(raw: bytearray) -> None:
    raw[:] = b"<!DOCTYPE html><title>Sign in</title>"


DAMAGED = "called damaged; nothing half stays"


@pytest.mark.parametrize(
    "damage",
    [
        fault("zip cut off before its directory", DAMAGED, no_directory),
        fault("zip whose file is larger than declared", DAMAGED, larger_than_declared),
        fault("zip with a password", DAMAGED, encrypted),
        fault("zip with an unknown compression", DAMAGED, unknown_compression),
        fault("zip of zero bytes", DAMAGED, lambda raw: raw.clear()),
        fault("zip that is a web page", DAMAGED, web_page),
    ],
)
def test_a_damaged_archive_leaves_nothing(tmp_path, damage):
    archive = archive_of(tmp_path / "train.zip", 1, 900)
    raw = bytearray(archive.read_bytes())
    damage(raw)
    archive.write_bytes(raw)
    with pytest.raises(DataError, match=r"train\.zip"):
        unpack(archive, tmp_path / "target")
    assert contents(tmp_path / "target") == {}


@pytest.mark.fault("zip that writes through a link it brings along", "refused; nothing outside")
def test_a_link_and_a_file_behind_it_are_refused(tmp_path):
    link = zipfile.ZipInfo("train")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr(link, str(tmp_path / "outside"))
        archive.writestr("train/evil.txt", "evil")
    (tmp_path / "outside").mkdir()
    with pytest.raises(DataError, match=r"train\.zip"):
        unpack(tmp_path / "train.zip", tmp_path / "target")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.fault("zip bomb of many files that share their bytes", "refused; nothing is written")
def test_overlapping_files_are_counted_each(tmp_path):
    """Every entry of the directory points at the same compressed bytes."""
    path = tmp_path / "train.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/00000.jpg", bytes(90_000))
    raw = path.read_bytes()
    start, end = raw.index(b"PK\1\2"), raw.index(b"PK\5\6")
    entry = raw[start:end]
    entries = [entry.replace(b"00000", b"%05d" % number) for number in range(200)]
    tail = bytearray(raw[end:])
    tail[8:12] = struct.pack("<HH", 200, 200)
    tail[12:16] = struct.pack("<I", 200 * len(entry))
    path.write_bytes(raw[:start] + b"".join(entries) + tail)
    with pytest.raises(DataError, match=r"train\.zip"):
        unpack(path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


# ------------------------------------------------------------------ a Kaggle that behaves badly


class BadKaggle(ThreadingHTTPServer):
    """Answers as Kaggle does (a redirect to a storage that serves ranges), except as told.

    Attributes:
        files: name -> bytes.
        status: what the API answers; 200 is a redirect to the storage.
        cut: the storage closes the connection after that many bytes of a file.
        stall: it stops sending there instead, without closing.
        md5: the checksum it promises: "right", "wrong" or "none".
        ranges: whether it serves a part of a file; else it sends the whole file each time.
        pause: seconds between two pieces of a file.
        asked: the requests so far: "POST 302", "GET train.zip 200", "GET train.zip 206 from N".
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked, self.released = files, [], Event()
        self.behave()

    def behave(self, **badly):
        good = dict(status=200, cut=None, stall=False, md5="right", ranges=True, pause=0)
        vars(self).update(good | badly)

    def handle_error(self, *_):
        pass  # the client has gone, as it should


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        request = self.rfile.read(int(self.headers["Content-Length"])).decode()
        name = next((name for name in self.server.files if f'"{name}"' in request), "nothing")
        status = 302 if self.server.status == 200 else self.server.status
        self.server.asked.append(f"POST {status}")
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"/storage/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        server, name = self.server, self.path.rpartition("/")[2]
        whole = server.files[name]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if server.ranges else 0
        self.send_response(206 if start else 200)
        server.asked.append(f"GET {name} " + (f"206 from {start}" if start else "200"))
        body, digest = whole[start:], hashlib.md5(whole if server.md5 == "right" else b"").digest()
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", "Fri, 01 Sep 2017 12:00:00 GMT")
        if server.md5 != "none":
            self.send_header("x-goog-hash", f"md5={base64.b64encode(digest).decode()}")
        self.end_headers()
        end = len(whole) if server.cut is None else server.cut
        for place in range(0, max(0, end - start), 500_000):
            self.wfile.write(body[place : min(place + 500_000, end - start)])
            time.sleep(server.pause)
        if server.stall:
            server.released.wait()
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The four archives, of 6 photos of 3 cars; train.zip has 3 MB, of which kagglehub reads one
    at a time."""
    folder = tmp_path_factory.mktemp("archives")
    made = make_archives(make_data(folder / "data"), folder / "packed")
    with zipfile.ZipFile(made / "train.zip", "a") as opened:
        opened.writestr("train/more.bin", np.random.default_rng(0).bytes(3_000_000))
    return {path.name: path.read_bytes() for path in made.iterdir()}


@pytest.fixture
def kaggle(archives, kaggle_at, monkeypatch):
    # It searches the stack for well-known libraries, which takes a second of each download here.
    monkeypatch.setattr("kagglehub.clients.get_user_agent", lambda: "kagglehub")
    monkeypatch.setattr("unetlib.fetch.kaggle.FULL_SET", (6, 3))
    server = BadKaggle(dict(archives))
    # The interval is what shutdown() waits for, half a second otherwise.
    Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    kaggle_at(server)
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def is_complete(target) -> bool:
    return len(find_samples(target)) == 6


REFUSAL = "said in one sentence, with the remedy; nothing is written"
AGAIN = "said in one sentence; the same call begins again"


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        fault("HTTP 401", REFUSAL, 401, r"KAGGLE_API_TOKEN.*~/\.kaggle/access_token"),
        fault("HTTP 403", REFUSAL, 403, r"https://www\.kaggle\.com/c/carvana.*/rules"),
        fault("HTTP 404", REFUSAL, 404, "python -m unetlib download --from"),
        fault("HTTP 503", REFUSAL, 503, "the same command again"),
    ],
)
def test_a_refusal_is_one_sentence(kaggle, tmp_path, status, remedy):
    kaggle.behave(status=status)
    with pytest.raises(DataError, match=f"{status}.*{remedy}") as caught:
        download(tmp_path / "target")
    assert "\n" not in str(caught.value) and kaggle.asked == [f"POST {status}"]
    assert not (tmp_path / "target").exists()


@pytest.mark.fault("no Kaggle account on this computer", "said, and where the token goes")
def test_no_account_tells_where_the_token_goes(kaggle, tmp_path, monkeypatch):
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"KAGGLE_API_TOKEN.*~/\.kaggle/access_token"):
        download(tmp_path / "target")
    assert kaggle.asked == []


def test_a_download_is_complete_and_counted(kaggle, tmp_path, capsys):
    target = download(tmp_path / "target")
    assert target == tmp_path / "target" and is_complete(target)
    assert "6 photos with masks of 3 cars" in capsys.readouterr().out
    assert kaggle.asked.count("POST 302") == 4


@pytest.mark.fault("a photo is missing in Kaggle's archive", "said, and which folders to delete")
def test_an_incomplete_set_is_no_success(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr("unetlib.fetch.kaggle.FULL_SET", (7, 3))
    with pytest.raises(DataError, match=f"{tmp_path / 'target' / 'train_masks'}"):
        download(tmp_path / "target")


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        fault("connection cut before the first byte", AGAIN, 0, 0),
        fault("connection cut in the middle", "said; the same call continues there", 2_500_000, 2),
        fault("connection cut before the last byte", "said; the same call continues", -1, 2),
    ],
)
def test_a_cut_download_is_continued(kaggle, tmp_path, cut, kept):
    size = len(kaggle.files["train.zip"])
    kaggle.behave(cut=cut % size)
    with pytest.raises(DataError, match=r"train\.zip") as caught:
        download(tmp_path / "target")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "target").exists(), "nothing is unpacked from half an archive"
    kaggle.asked.clear()
    kaggle.behave()
    assert is_complete(download(tmp_path / "target"))
    place = f"206 from {kept << 20}" if kept else "200"
    assert f"GET train.zip {place}" in kaggle.asked


@pytest.mark.fault("connection cut, then a server that sends all again", "never a mixture of both")
@pytest.mark.parametrize("md5", ["right", "none"])
def test_a_server_that_cannot_continue(kaggle, tmp_path, md5):
    """kagglehub appends the whole file to the half one: named as damaged, or read all the same."""
    kaggle.behave(cut=2_500_000, md5=md5)
    with pytest.raises(DataError, match=r"train\.zip"):
        download(tmp_path / "target")
    kaggle.behave(ranges=False, md5=md5)
    try:
        target = download(tmp_path / "target")
    except DataError as error:
        assert "train.zip" in str(error)
        target = download(tmp_path / "target")
    assert is_complete(target)
    more = (target / "train" / "more.bin").read_bytes()
    assert more == np.random.default_rng(0).bytes(3_000_000)


@pytest.mark.fault("archive that differs from its checksum", AGAIN)
def test_a_wrong_checksum_is_named(kaggle, tmp_path):
    kaggle.behave(md5="wrong")
    with pytest.raises(DataError, match=r"train\.zip"):
        download(tmp_path / "target")
    assert not (tmp_path / "target").exists()
    kaggle.behave()
    assert is_complete(download(tmp_path / "target"))


@pytest.mark.fault("server that falls silent", "given up after a minute; the same call continues")
def test_a_silent_server_is_given_up(kaggle, tmp_path, monkeypatch):
    kaggle.behave(cut=1_500_000, stall=True)
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"train\.zip"):
        patch.setattr("unetlib.fetch.kaggle.SILENCE", 0.5)
        download(tmp_path / "target")
    kaggle.behave()
    kaggle.asked.clear()
    assert is_complete(download(tmp_path / "target"))
    assert f"GET train.zip 206 from {1 << 20}" in kaggle.asked


@pytest.mark.slow
@pytest.mark.fault("slow server", "no difference")
def test_a_slow_server_is_waited_for(kaggle, tmp_path, monkeypatch):
    """Silent for longer than allowed all together, but never at once."""
    monkeypatch.setattr("unetlib.fetch.kaggle.SILENCE", 1)
    kaggle.behave(pause=0.2)
    assert is_complete(download(tmp_path / "target"))


@pytest.mark.fault("server that is not there", "said; the archives may come from a folder")
def test_no_server(kaggle, tmp_path, monkeypatch):
    from kagglesdk import kaggle_env

    closed = {kaggle_env.KaggleEnv.LOCAL: "http://127.0.0.1:9"}
    monkeypatch.setattr(kaggle_env, "_env_to_endpoint", closed)
    with pytest.raises(DataError, match=r"train\.zip.*--from") as caught:
        download(tmp_path / "target")
    assert "\n" not in str(caught.value)


@pytest.mark.fault("sign-in page of a hotel's network instead of an archive", "called damaged")
def test_a_web_page_instead_of_an_archive(kaggle, archives, tmp_path):
    kaggle.files["train_masks.zip"] = b"<!DOCTYPE html><title>Welcome to our WLAN</title>"
    with pytest.raises(DataError, match=r"train_masks\.zip") as caught:
        download(tmp_path / "target")
    named = str(caught.value).split(" is damaged")[0]
    os.remove(named)
    kaggle.files["train_masks.zip"] = archives["train_masks.zip"]
    assert is_complete(download(tmp_path / "target")), "the remedy has helped"


@pytest.mark.fault("disk full while downloading", "said; with room, the same call continues")
def test_a_disk_that_fills_up_while_downloading(kaggle, tmp_path, own_disk, monkeypatch):
    disk = own_disk("size=4m")
    (disk / "ballast").write_bytes(bytes(2_500_000))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(disk))
    with pytest.raises(DataError, match=r"train\.zip.*No space left"):
        download(tmp_path / "target")
    assert not (tmp_path / "target").exists()
    (disk / "ballast").unlink()
    kaggle.asked.clear()
    assert is_complete(download(tmp_path / "target"))
    assert "GET train.zip 206 from" in " ".join(kaggle.asked)


@pytest.mark.fault("pictures lost from a complete download", "said; the same call restores them")
def test_a_lost_picture_is_unpacked_again(kaggle, tmp_path):
    target = download(tmp_path / "target")
    whole = contents(target)
    shutil.rmtree(target / "train_masks")
    download(target)
    assert contents(target) == whole
