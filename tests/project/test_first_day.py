"""The first day of a new user: from a folder to a search, a report and a classifier.

vatt is installed from its wheel, and used from an empty folder. The commands are those that vatt
itself proposes, as it prints them.
"""

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest
from installed_vatt import copy_checkout, install, user_environment
from labelled_media import write_videos

MOST_LINES = 25  # of a command, where its output is no terminal
MOST_COMMANDS = 6
MEDIA = "my clips"
UMLAUT = "Küche am Abend.mp4"


class Shell:
    """Shell of a user in an environment with vatt; counts the commands."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder, self._bin = folder, bin_folder
        self.num_commands = 0

    def run(self, command: str) -> str:
        """Output of a command, both streams together."""
        environment = user_environment()
        environment["PATH"] = f"{self._bin}:{environment['PATH']}"
        self.num_commands += 1
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        lines = done.stdout.splitlines()
        assert len(lines) <= MOST_LINES, done.stdout
        assert "\r" not in done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout


def proposed(printed: str) -> dict[str, str]:
    """Commands under `Next:`, by the word after `vatt`."""
    lines = printed.split("\nNext:\n")[1].splitlines()
    return {line.split()[1]: line.strip() for line in lines if line.startswith("  vatt ")}


def write_media(folder: Path) -> list[tuple[str, str]]:
    """Twelve clips of three colours with Whisper's captions, and a broken file; the labels."""
    rows = write_videos(folder, 4)
    (folder / rows[0][0]).rename(folder / UMLAUT)
    rows[0] = (UMLAUT, rows[0][1])
    for name, label in rows:
        segments = [
            {"id": 0, "start": 0.0, "end": 0.7, "text": f" The picture is {label}."},
            {"id": 1, "start": 0.7, "end": 1.5, "text": " And it stays so."},
        ]
        text = "".join(segment["text"] for segment in segments)
        whisper = {"text": text, "segments": segments, "language": "en"}
        (folder / name).with_suffix(".json").write_text(json.dumps(whisper))
    (folder / "broken.mp4").write_bytes(b"no media" * 100)
    return rows


@pytest.mark.slow
def test_six_commands_lead_from_a_folder_to_search_report_and_classifier(tmp_path: Path) -> None:
    place = tmp_path / "first day"
    labels = write_media(place / MEDIA)
    checkout = copy_checkout(tmp_path / "checkout")  # of which pip builds a wheel
    shell = Shell(place, install(tmp_path / "environment", checkout))

    printed = shell.run(f"vatt quickstart '{MEDIA}' --config tiny --minutes 0.05")
    out = Path("runs") / MEDIA
    assert printed.startswith(f"{MEDIA}: 13 media files → {out}\n")
    stages = re.findall(r"^(\w+) +.* \(\d+ s\)$", printed, re.MULTILINE)
    assert stages == ["shards", "check", "train", "extract", "index"]
    assert "12 files packed, 24 captions" in printed
    assert "left out: broken.mp4: is damaged" in printed
    assert re.search(r"^expect +12 files: .*docs/first-day.md", printed, re.MULTILINE)
    following = proposed(printed)
    assert list(following) == ["search", "report", "fit"]

    answer = shell.run(following["search"])
    assert "text → video_vt" in answer
    assert len(re.findall(r"^ *\d+ +-?\d\.\d{3}", answer, re.MULTILINE)) == 5
    assert "not known to the model" not in answer

    shell.run(following["report"])
    page = (place / out / "run" / "report.html").read_text(encoding="utf-8")
    assert "<html" in page

    with (place / "train.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(f"{MEDIA}/{name}", label) for name, label in labels]
        csv.writer(file).writerows([("file", "label"), *rows])
    shell.run(following["fit"])

    config = f"'{out}/classifier/config.yaml'"
    printed = shell.run(f"vatt predict --config {config} --data.init_args.predict '{MEDIA}'")
    found = re.search(r"predictions for 12 files.*: (.*)", printed)
    assert found
    with (place / found[1]).open(newline="", encoding="utf-8") as file:
        predicted = [row["file"] for row in csv.DictReader(file)]
    assert {name for name, _ in labels} <= {Path(name).name for name in predicted}
    assert shell.num_commands <= MOST_COMMANDS
