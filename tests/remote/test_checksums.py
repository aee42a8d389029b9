"""What the headers of an object say of its bytes; the digests are published test vectors."""

import base64
import hashlib

import pytest

from blip_core.remote.checksums import wrong_checksum

VECTORS = {  # of b"123456789"
    "CRC32": "cbf43926",
    "SHA1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    "SHA256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
}
MD5 = "25f9e794323b453885f5181f1b624d0b"


def check(tmp_path, data: bytes = b"123456789", part_sizes: tuple[int, ...] = (), **head) -> str | None:
    (tmp_path / "x").write_bytes(data)

    def part_size(number: int) -> tuple[int, int]:
        return (part_sizes[number - 1], len(part_sizes)) if part_sizes else (len(data), 0)

    return wrong_checksum(tmp_path / "x", {"ContentLength": 9, "ETag": '"opaque"'} | head, part_size)


@pytest.mark.parametrize("name", VECTORS)
def test_checksums_of_the_whole(tmp_path, name):
    head = {f"Checksum{name}": base64.b64encode(bytes.fromhex(VECTORS[name])).decode(), "ChecksumType": "FULL_OBJECT"}
    assert check(tmp_path, **head) is None
    assert f"its {name} is" in check(tmp_path, b"123456780", **head)
    assert check(tmp_path, b"123456780", **head | {"ChecksumType": "COMPOSITE"}) is None
    assert check(tmp_path, b"123456780", **{f"Checksum{name}": "abcd==-3"}) is None


def test_size_and_etag(tmp_path):
    assert check(tmp_path) is None
    assert "8 bytes, expected 9" in check(tmp_path, b"12345678")
    assert check(tmp_path, ETag=f'"{MD5}"') is None
    assert "its MD5 is" in check(tmp_path, b"123456780", ETag=f'"{MD5}"')


@pytest.mark.parametrize(
    "head", [{"ServerSideEncryption": "aws:kms"}, {"ServerSideEncryption": "aws:kms:dsse"}, {"SSECustomerAlgorithm": "AES256"}]
)
def test_an_encrypted_objects_etag_is_no_md5(tmp_path, head):
    assert check(tmp_path, b"123456780", ETag=f'"{MD5}"', **head) is None
    assert check(tmp_path, b"123456780", ETag=f'"{MD5}"', ServerSideEncryption="AES256")


@pytest.mark.parametrize("sizes", [(4, 4, 1), (3, 3, 3), (4, 3, 2), (2, 5, 2), (1, 8)])
def test_an_etag_of_parts(tmp_path, sizes):
    data, ends = b"123456789", [sum(sizes[: i + 1]) for i in range(len(sizes))]
    digests = b"".join(hashlib.md5(data[end - size : end]).digest() for size, end in zip(sizes, ends, strict=True))
    etag = f'"{hashlib.md5(digests).hexdigest()}-{len(sizes)}"'
    assert check(tmp_path, part_sizes=sizes, ETag=etag) is None
    assert "the MD5s of its parts" in check(tmp_path, b"123456780", part_sizes=sizes, ETag=etag)
    assert check(tmp_path, b"123456780", ETag=etag) is None  # a server that does not tell the parts
