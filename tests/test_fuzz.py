"""Any text as run-length code, any bytes as csv file: read rightly, or refused in one sentence.

The same for any bytes as a run, cache or model file: ``test_faults_damage``. Longer, with new cases
each time: ``pytest tests/test_fuzz.py tests/test_faults_damage.py --hypothesis-profile=fuzz``.
"""

import contextlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetlib import DataError, read_metadata, read_rles, rle_decode, rle_encode

numbers = st.one_of(st.integers(-2, 40), st.integers())
codes = st.one_of(
    st.lists(numbers, max_size=8).map(lambda listed: " ".join(map(str, listed))),
    st.text(alphabet="0123456789 +-_.eE\t\n\x00٣²", max_size=20),
    st.text(max_size=20),
)


@pytest.mark.fault(
    "any text at all as run-length code", "decoded to exactly its runs, or refused in one sentence"
)
@given(code=codes, height=st.integers(0, 6), width=st.integers(0, 6))
def test_any_text_is_decoded_exactly_or_refused(code, height, width):
    try:
        mask = rle_decode(code, height, width)
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert mask.shape == (height, width) and mask.dtype == bool
    runs = [int(part) for part in code.split()]
    expected = np.zeros(height * width, bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        expected[start - 1 : start - 1 + length] = True
    assert np.array_equal(mask.ravel(), expected)
    assert mask.sum() == sum(runs[1::2])
    assert np.array_equal(rle_decode(rle_encode(mask), height, width), mask)


# Pieces of a sound file, of a spoilt one, and plain rubbish, in any order.
pieces = st.one_of(
    st.sampled_from(
        [
            b"img,rle_mask\n",
            b"id,year,make,model,trim1,trim2\n",
            b"000000000000_01.jpg,1 2 9 3\n",
            b"00000000aaaa,2001,Make,Model,Trim,Trim\n",
            b"a_01.jpg,",
            b'"',
            b",",
            b"\r\n",
            b"\xef\xbb\xbf",
            b"\x00",
            b"\xff\xfe",
            b"rle_mask",
            b"img",
        ]
    ),
    st.binary(max_size=12),
)
files = st.lists(pieces, max_size=8).map(b"".join)
sound_start = files.map(lambda rest: b"img,rle_mask\n" + rest)


@pytest.mark.fault(
    "any bytes at all as train_masks.csv or metadata.csv",
    "read, or refused in one sentence that names the file",
)
@pytest.mark.filterwarnings("ignore:left out")
@given(content=st.one_of(files, sound_start))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, content):
    root = tmp_path_factory.getbasetemp()
    for name, read in (("train_masks.csv", read_rles), ("metadata.csv", read_metadata)):
        (root / name).write_bytes(content)
        try:
            table = read(root)
        except DataError as error:
            assert str(root / name) in str(error) and "\n" not in str(error)
            continue
        if name == "metadata.csv":
            assert isinstance(table, pd.DataFrame) and "id" in table
            continue
        for code in table:
            with contextlib.suppress(DataError):
                rle_decode(code, 4, 5)
