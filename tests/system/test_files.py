"""Files and folders appear whole or not at all; a lock has one holder."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vatt.errors import ShardError, UserError
from vatt.system.files import atomic_file, atomic_folder, locked, write_atomically


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_names_the_file_and_leaves_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")
    # A limit on the size of files stands in for a full disk: the same call fails half-way.
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from vatt.system.files import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomically(Path(sys.argv[1]), bytes(5000))"
    )
    command = [sys.executable, "-c", program, str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OSError" in finished.stderr
    assert f"{path}'" in finished.stderr
    assert names_in(tmp_path) == ["a.txt"]
    assert path.read_bytes() == b"old"


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "a.txt"):
        (tmp_path / "other.txt").read_bytes()
    assert caught.value.filename == str(tmp_path / "other.txt")
    assert names_in(tmp_path) == []


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with atomic_folder(tmp_path / name) as folder:
            (folder / "a.txt").touch()
            assert not (tmp_path / name / "a.txt").exists()
        assert names_in(tmp_path / name) == ["a.txt"]
    with atomic_folder(tmp_path / "new", replace=True) as folder:
        (folder / "b.txt").touch()
    assert names_in(tmp_path / "new") == ["b.txt"]
    assert names_in(tmp_path) == ["empty", "new"]


def test_errors_in_a_folder_name_its_final_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(out) as folder:
        (folder / "missing" / "a.txt").touch()
    assert caught.value.filename == str(out / "missing" / "a.txt")
    message = f"^{out}/00000.tar is empty$"
    with pytest.raises(ShardError, match=message), atomic_folder(out) as folder:
        raise ShardError(f"{folder}/00000.tar is empty")
    assert names_in(tmp_path) == []


def test_leftovers_of_ended_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / f".out.{ended_process()}.partial").mkdir()
    (tmp_path / f".out.{os.getppid()}.partial").mkdir()  # of a process that runs
    (tmp_path / f".other.{ended_process()}.partial").mkdir()
    with atomic_folder(tmp_path / "out"):
        pass
    names = [name.split(".")[1] for name in names_in(tmp_path) if name.startswith(".")]
    assert names == ["other", "out"]
    assert (tmp_path / f".out.{os.getppid()}.partial").is_dir()


def hold_once(path: Path) -> None:
    with locked(path):
        pass


def test_a_lock_refuses_a_second_holder_or_lets_it_wait(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(UserError, match="wait"), locked(tmp_path, UserError("wait")):
            pass
        waiting = threading.Thread(target=hold_once, args=(tmp_path,))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(5.0)
    assert not waiting.is_alive()
