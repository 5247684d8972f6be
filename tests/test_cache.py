"""Decoded images kept on disk: once per pair of files, whatever the table they are in."""

import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from other_process import FORKS, start

import unetlib.dataset
from unetlib import CarvanaDataset, DataError, cache_dir, clean_runs, decode_once, split_by_group
from unetlib.dataset import decode
from unetlib.support.code import code_hash

SIZE = 32
FILE_BYTES = 2 * SIZE * SIZE + 32  # image, coverage, SHA-256


def files() -> list[Path]:
    return sorted(cache_dir().glob("decoded-*/*"))


@pytest.fixture
def decodes(capfd):
    """Call with a table: what ``decode_once`` gives, and how many pairs it had to decode."""

    def call(samples, size=SIZE):
        capfd.readouterr()
        decoded = decode_once(samples, size)
        bars = capfd.readouterr().err.strip().split("\r")
        return decoded, int(bars[-1].partition("/")[0].split()[-1]) if bars != [""] else 0

    return call


def test_pairs_are_decoded_once(tables, decodes):
    first, count = decodes(tables[1])
    assert count == 4
    np.testing.assert_array_equal(first, decode(tables[1], SIZE))
    again, count = decodes(tables[1])
    assert count == 0
    np.testing.assert_array_equal(again, first)
    assert [path.stat().st_size for path in files()] == [FILE_BYTES] * 4


def test_a_dataset_takes_it_in_place_of_decode(tables):
    plain = CarvanaDataset(tables[1], SIZE)
    assert files() == []
    cached = CarvanaDataset(tables[1], SIZE, decode=decode_once)
    np.testing.assert_array_equal(cached.images, plain.images)
    np.testing.assert_array_equal(cached.coverage, plain.coverage)
    assert len(files()) == 4


def test_four_splits_keep_one_copy_of_each_pair(samples, decodes):
    for seed in range(4):
        for table in split_by_group(samples, seed=seed):
            decoded, count = decodes(table)
            assert count == (0 if seed else len(table))
            np.testing.assert_array_equal(decoded, decode(table, SIZE))
    assert [path.stat().st_size for path in files()] == [FILE_BYTES] * 20


def test_only_pairs_that_are_new_are_decoded(tables, decodes):
    decodes(tables[0].iloc[[1, 5]])
    decoded, count = decodes(tables[0].iloc[4:9])
    assert count == 4
    np.testing.assert_array_equal(decoded, decode(tables[0].iloc[4:9], SIZE))


def test_another_size_is_kept_beside_it(tables, decodes):
    decodes(tables[1])
    assert decodes(tables[1], 16)[0].shape == (4, 2, 16, 16)
    ends = {path.parent.name.partition("-2-")[2] for path in files()}
    assert ends == {"32-32", "16-16"}
    assert decodes(tables[1])[1] == 0


def test_a_copy_of_the_files_is_known_by_its_content(tables, decodes, tmp_path):
    decodes(tables[1])
    table = tables[1].copy()
    for column in ("image", "mask"):
        table[column] = [shutil.copy(path, tmp_path) for path in table[column]]
    assert decodes(table)[1] == 0


@pytest.mark.fault("a picture or mask exchanged after it was cached", "decoded again")
@pytest.mark.parametrize(("part", "column"), [(0, "image"), (1, "mask")])
def test_a_changed_file_is_decoded_anew(tables, decodes, tmp_path, part, column):
    table = tables[1].iloc[:2].copy()
    before, _ = decodes(table)
    changed = shutil.copy(table[column].iloc[0], tmp_path)
    table.loc[0, column] = changed
    assert decodes(table)[1] == 0
    shutil.copy(table[column].iloc[1], changed)
    after, count = decodes(table)
    assert count == 1
    assert not np.array_equal(after[0, part], before[0, part])
    np.testing.assert_array_equal(after[0, part], before[1, part])


@pytest.mark.fault("a file of the cache cut off or changed", "decoded again, without a word")
@pytest.mark.parametrize("damage", ["empty", "cut off", "a byte too long", "another byte"])
def test_a_damaged_file_is_silently_decoded_again(tables, decodes, recwarn, damage):
    before, _ = decodes(tables[1])
    path = files()[2]
    whole = path.read_bytes()
    damaged = {"empty": b"", "cut off": whole[:-40], "a byte too long": whole + b"0"}
    path.write_bytes(damaged.get(damage, whole[:9] + bytes([whole[9] ^ 1]) + whole[10:]))
    again, count = decodes(tables[1])
    assert count == 1 and recwarn.list == []
    np.testing.assert_array_equal(again, before)
    assert path.read_bytes() == whole


@pytest.mark.fault("the cache folder cannot be written", "a warning; the images are used")
def test_where_nothing_can_be_kept_one_warning_says_so(tables):
    folder = f"decoded-{code_hash(decode)}-2-{SIZE}-{SIZE}"
    (cache_dir() / folder).write_text("a file in the place of the folder")
    with pytest.warns(UserWarning, match="UNETLIB_HOME") as caught:
        decoded = decode_once(tables[1], SIZE)
    assert len(caught) == 1
    np.testing.assert_array_equal(decoded, decode(tables[1], SIZE))


@pytest.mark.skipif(os.name != "posix", reason="takes a limit that only Unix has")
@pytest.mark.fault("no room for a file of the cache", "a warning; the images are used")
def test_where_there_is_no_room_the_images_are_used_from_memory(tables):
    """A real limit of the system on the size of files, which stands in for a full disk."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.warns(UserWarning, match="UNETLIB_HOME"):
            decoded = decode_once(tables[1], SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    np.testing.assert_array_equal(decoded, decode(tables[1], SIZE))
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(decode_once(tables[1], SIZE), decoded)


@pytest.mark.fault("more images than memory", "one sentence with both numbers")
def test_images_that_do_not_fit_in_memory_are_counted(tables):
    with pytest.raises(DataError, match=r"\b4 images of 1000000000x1000000000\b"):
        decode_once(tables[1], 10**9)


def test_a_file_that_cannot_be_read_is_named(tables, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    table = tables[1].copy()
    table.loc[2, "image"] = str(tmp_path / "broken.jpg")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        decode_once(table, SIZE)


def decode_when_told(samples, told) -> bytes:
    told.wait(60)
    return decode_once(samples, SIZE).tobytes()


@pytest.mark.fault("two programs fill one cache at once", "both get the right images")
def test_two_programs_that_fill_the_cache_at_once_are_both_right(tables):
    told = FORKS.Event()
    programs = [start(decode_when_told, tables[0], told) for _ in range(2)]
    told.set()
    for process, answer in programs:
        assert answer.recv() == decode(tables[0], SIZE).tobytes()
        process.join()
    assert [path.stat().st_size for path in files()] == [FILE_BYTES] * 16


def test_clean_runs_empties_the_cache(tables):
    decode_once(tables[1], SIZE)
    assert clean_runs() == []
    assert list(cache_dir().glob("decoded-*")) == []


def test_other_code_that_decodes_makes_other_files(tables, monkeypatch):
    plain = decode_once(tables[1], 8)
    before = unetlib.dataset.load_image
    monkeypatch.setattr(unetlib.dataset, "load_image", lambda *found: 255 - before(*found))
    np.testing.assert_array_equal(decode_once(tables[1], 8)[:, 0], 255 - plain[:, 0])
    monkeypatch.undo()
    np.testing.assert_array_equal(decode_once(tables[1], 8), plain)
