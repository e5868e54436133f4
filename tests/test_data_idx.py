"""The IDX reader: every type, gzip or not, and every way in which a file can be damaged."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from arraycnn.data import read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array):
    """The IDX file of an array, as the format's description has it."""
    code = CODES[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("code", CODES)
def test_every_type_is_read_in_native_byte_order(tmp_path, code, pack):
    expected = (np.arange(24) * 5 - 7).astype(code).reshape(2, 3, 4)
    path = tmp_path / "data"
    path.write_bytes(pack(idx_bytes(expected)))
    array = read_idx(path)
    assert array.dtype == expected.dtype
    assert array.dtype.isnative
    assert array.flags.c_contiguous
    assert array.flags.writeable
    np.testing.assert_array_equal(array, expected)


def test_the_content_and_not_the_name_tells_gzip(tmp_path):
    labels = np.array([3, 1, 4], dtype=np.uint8)
    plain, packed = tmp_path / "labels.gz", tmp_path / "labels"
    plain.write_bytes(idx_bytes(labels))
    packed.write_bytes(gzip.compress(idx_bytes(labels)))
    np.testing.assert_array_equal(read_idx(str(plain)), labels)
    np.testing.assert_array_equal(read_idx(packed), labels)


def test_an_array_without_elements_keeps_its_shape(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(idx_bytes(np.zeros((0, 28, 28), dtype=np.uint8)))
    assert read_idx(path).shape == (0, 28, 28)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, pack):
    content = pack(idx_bytes(np.arange(6, dtype=np.int16).reshape(2, 3)))
    path = tmp_path / "cut"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut"):  # the name of the file
            read_idx(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"PK\x03\x04rest", "found 50 4b 03 04"),
        (b"\0\0\x0a\x01\0\0\0\0", "found 00 00 0a 01"),
        (b"\0\0\x08\0", "found 00 00 08 00"),
        (b"\0\0\x08\x41" + bytes(4 * 65), "found 00 00 08 41"),
        (b"\0\0\x08\x03\0\0", r"should hold 3 sizes \(16 bytes\), but the data ends after 6"),
        (b"\0\0\x08\x01\0\0\0\x05abc", r"shape \(5,\) of uint8, 5 bytes of data, but only 3"),
        (b"\0\0\x08\x01\0\0\0\x02abc", r"shape \(2,\) of uint8, 2 bytes of data, but more follow"),
        (b"\0\0\x0e\x03" + b"\xff" * 12, "more than any file holds"),
        (b"\0\0\x0e\x04" + b"\0\0\0\0" + b"\xff" * 12, "more than any file holds"),
    ],
)
def test_wrong_content_is_named_with_a_remedy(tmp_path, pack, content, message):
    path = tmp_path / "wrong.bin"
    path.write_bytes(pack(content))
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "download" in str(caught.value)


def test_a_damaged_gzip_stream_never_gives_other_data(tmp_path):
    expected = np.arange(200, dtype=np.uint8)
    packed = bytearray(gzip.compress(idx_bytes(expected), mtime=0))
    path = tmp_path / "damaged.gz"
    harmless = 0
    for position in range(10, len(packed)):  # after the gzip header
        packed[position] ^= 0x40
        path.write_bytes(packed)
        packed[position] ^= 0x40
        try:
            array = read_idx(path)
        except ValueError:
            continue
        np.testing.assert_array_equal(array, expected)
        harmless += 1
    assert harmless <= 1  # the unused bits at the end of the last block


def test_a_header_that_claims_terabytes_costs_no_memory(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 0x0E, 3, 60000, 4096, 4096) + bytes(100))
    tracemalloc.start()
    with pytest.raises(ValueError, match="but only 100 follow"):
        read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        read_idx(tmp_path / "nothing-here")
