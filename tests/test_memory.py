"""What was found out about files is remembered, and forgotten when a file changes."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest

from unetlib import DataError, cache_dir
from unetlib.support.memory import file_hashes, fingerprint, remembered, stamp

NOTES = "notes.json"


def test_what_is_remembered_is_found_again():
    with remembered("notes") as known:
        assert known == {}
        known["a"] = [1, "two"]
    with remembered("notes") as known:
        assert known == {"a": [1, "two"]}
    assert json.loads((cache_dir() / NOTES).read_text()) == {"a": [1, "two"]}


def test_what_has_not_changed_is_not_written_again():
    with remembered("notes") as known:
        known["a"] = 1
    os.utime(cache_dir() / NOTES, (0, 0))
    with remembered("notes") as known:
        known["a"] = 1
    assert (cache_dir() / NOTES).stat().st_mtime == 0


@pytest.mark.fault("a file of what was remembered is damaged", "it is found out again")
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"null", b"\xff\x00"])
def test_a_damaged_memory_starts_empty_and_is_written_anew(content):
    (cache_dir() / NOTES).write_bytes(content)
    with remembered("notes") as known:
        assert known == {}
        known["a"] = 1
    assert json.loads((cache_dir() / NOTES).read_text()) == {"a": 1}


@pytest.mark.fault("the cache folder cannot be written", "nothing is remembered")
def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNETLIB_HOME", str(tmp_path / "file"))
    with remembered("notes") as known:
        known["a"] = 1
    with remembered("notes") as known:
        assert known == {}


# ---------------------------------------------------------------------------------- file hashes


def settled(path: Path) -> str:
    """The path, once its last change lies so far back that another would show."""
    while time.time_ns() - max(stamp(path)[:2]) < 2_100_000_000:
        time.sleep(0.1)
    return str(path)


@pytest.fixture
def two_files(tmp_path):
    paths = tmp_path / "a.jpg", tmp_path / "b.jpg"
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def sha256(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_file_that_has_not_changed_is_not_read_again(two_files):
    paths = list(map(settled, two_files))
    assert file_hashes(paths) == list(map(sha256, paths))
    memory = cache_dir() / "hashes.json"
    known = json.loads(memory.read_text())
    assert set(known) == set(paths)
    known[paths[1]][1] = "what was remembered"
    memory.write_text(json.dumps(known))
    assert file_hashes(paths) == [sha256(paths[0]), "what was remembered"]
    Path(paths[1]).write_bytes(b"other content")
    assert file_hashes(paths) == list(map(sha256, paths))


def test_a_file_that_has_just_changed_is_not_remembered(two_files):
    """Another change within the clock's resolution would have the same times."""
    assert file_hashes([two_files[0]]) == [sha256(two_files[0])]
    assert not (cache_dir() / "hashes.json").exists()


@pytest.mark.fault(
    "a picture exchanged, its date set back to what it was", "noticed: it is another picture"
)
def test_a_change_is_noticed_whatever_the_date(two_files):
    path = settled(two_files[0])
    (before,), status = file_hashes([path]), os.stat(path)
    Path(path).write_bytes(b"B.jpg")  # as long as it was
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_hashes([path]) == [sha256(path)] != [before]


@pytest.mark.fault("a picture dated in the future or in 1970", "read like any other")
@pytest.mark.parametrize("moment", [0, 4e9])
def test_odd_dates_do_no_harm(two_files, moment):
    os.utime(two_files[0], (moment, moment))
    for _ in range(2):
        assert file_hashes([two_files[0]]) == [sha256(two_files[0])]


@pytest.mark.fault("a picture is gone when its table is used", "named, with the remedy")
def test_a_file_that_is_gone_is_named(two_files):
    two_files[1].unlink()
    with pytest.raises(DataError, match=r"b\.jpg.*find_samples"):
        file_hashes(two_files)


# ---------------------------------------------------------------------------------- fingerprints


def table_in(folder: Path) -> pd.DataFrame:
    names = ["a", "b", "c"]
    masks = [*(str(folder / f"{name}.gif") for name in names[:2]), ""]
    return pd.DataFrame(
        dict(id=names, image=[str(folder / f"{name}.jpg") for name in names], mask=masks)
    )


@pytest.fixture
def table(tmp_path):
    table = table_in(tmp_path)
    for path in [*table["image"], *table["mask"][:2]]:
        Path(path).write_bytes(path[-5:].encode())
    return table


def test_the_fingerprint_is_of_names_and_content_wherever_the_files_lie(table, tmp_path):
    shutil.copytree(tmp_path, tmp_path / "copy")
    before = fingerprint(table)
    assert len(before) == 12 and int(before, 16)
    assert fingerprint(table_in(tmp_path / "copy")) == before
    assert fingerprint(table.iloc[:2]) != before
    assert fingerprint(table.assign(id=["a", "b", "d"])) != before


def test_a_mask_that_is_missing_counts_as_none(table):
    assert fingerprint(table.replace({"mask": {"": float("nan")}})) == fingerprint(table)


@pytest.mark.parametrize("column", ["image", "mask"])
def test_one_other_file_changes_the_fingerprint(table, column):
    before = fingerprint(table)
    Path(table[column][1]).write_bytes(b"other content")
    assert fingerprint(table) != before


@pytest.mark.fault("another file of the same name, size and times takes a file's place", "noticed")
def test_files_of_equal_size_and_times_have_stamps_of_their_own(tmp_path):
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    for path in (one, other):
        path.write_bytes(b"12345678")
        os.utime(path, (1_700_000_000, 1_700_000_000))
    first, second = stamp(one), stamp(other)
    assert first[0] == second[0] and first != second
