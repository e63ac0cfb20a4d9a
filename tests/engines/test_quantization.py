"""The file of a quantised network: written, recognised, refused. Its making is in `planning`."""

from __future__ import annotations

import hashlib
import zipfile
from io import BytesIO

import pytest

from densebatch.base.errors import InputError
from densebatch.engines.quantization import digest_quantised, read_quantised, write_quantised


def pack(graph=b"<net/>", numbers=b"1234" * 100):
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("network.xml", graph)
        archive.writestr("network.bin", numbers)
    return packed.getvalue()


def test_digest_is_of_the_numbers_alone():
    digest = hashlib.sha256(b"1234" * 100).hexdigest()
    assert digest_quantised(pack()) == digest
    assert digest_quantised(pack(graph=b"<net id='7'/>")) == digest
    assert digest_quantised(pack(numbers=b"1")) != digest


def test_what_was_written_is_read(tmp_path):
    write_quantised(tmp_path, pack())
    assert read_quantised(tmp_path, digest_quantised(pack())) == pack()


def test_another_network_is_refused(tmp_path):
    write_quantised(tmp_path, pack())
    with pytest.raises(InputError, match="is not the network that the run was planned with"):
        read_quantised(tmp_path, digest_quantised(pack(numbers=b"1")))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"network-int8\.zip: cannot be read \(No such file"):
        read_quantised(tmp_path, "0" * 64)


def flip_bit(packed, place):
    return packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :]


def leave_out(part):
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(part, b"1234")
    return packed.getvalue()


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        pack()[:-30],
        flip_bit(pack(), pack().index(b"<net/>")),
        flip_bit(pack(), pack().index(b"1234")),
        leave_out("network.xml"),
        leave_out("network.bin"),
    ],
    ids=["empty", "cut", "graph", "numbers", "no numbers", "no graph"],
)
def test_a_damaged_file_is_refused(tmp_path, damaged):
    write_quantised(tmp_path, damaged)
    with pytest.raises(InputError, match=r"network-int8\.zip: is damaged"):
        read_quantised(tmp_path, digest_quantised(pack()))
