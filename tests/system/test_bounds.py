"""Files that state more than they can hold are refused before they are read."""

import zipfile
from pathlib import Path

import pytest

from vatt.errors import CheckpointError, UserError
from vatt.system.bounds import SMALL_BYTES, check_bytes, check_unpacked, unpacked_bytes


def test_a_refusal_names_the_file_the_limit_and_the_remedy(tmp_path: Path) -> None:
    said = (
        r"a.json is refused: .* would take 1,001 bytes .* at most 1,000 are .*; get the file anew"
    )
    with pytest.raises(UserError, match=said):
        check_bytes(tmp_path / "a.json", 1_001, 1_000)
    check_bytes(tmp_path / "a.json", 1_000, 1_000)
    with pytest.raises(CheckpointError, match="is refused"):
        check_bytes(tmp_path / "a.json", 1_001, 1_000, CheckpointError)


def test_small_files_may_unpack_to_much_and_large_ones_to_a_multiple(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1_000_000))
    check_unpacked(path, SMALL_BYTES, times=1)
    check_unpacked(path, 100_000_000)
    for num_bytes, times in ((SMALL_BYTES + 1, 1), (100_000_001, 100)):
        with pytest.raises(UserError, match="is refused"):
            check_unpacked(path, num_bytes, times=times)


def test_a_member_of_an_archive_gives_no_more_than_the_directory_states(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1_000_000))
        archive.writestr("more", bytes(500))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert unpacked_bytes(archive) == 1_000_500
    lie = content.index(b"PK\1\2") + 24  # where the directory states the size of the first one
    path.write_bytes(content[:lie] + (9).to_bytes(4, "little") + content[lie + 4 :])
    with zipfile.ZipFile(path) as archive:
        assert unpacked_bytes(archive) == 509
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
            archive.read("zeros")
