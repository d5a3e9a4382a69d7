"""The benchmark of the data layer runs, and says what it measured."""

import json

import pytest
from bench_data import SECTIONS, main
from bench_fuzz import mutated, neighbouring_atoms
from bench_media import SMALL_KIND, make_media

from vatt.gpu_check.figures import Row

BOUNDS = {  # of every section: how many figures it has, and how many of them must reach something
    "read": (6, 4),
    "loader": (3, 1),
    "index": (3, 2),
    "memory": (2, 2),
    "fuzz": (7, 3),
    "resume": (5, 1),
}


@pytest.mark.slow
def test_every_section_says_what_it_measured(tmp_path, capsys):
    json_path = tmp_path / "results" / "bench.json"
    assert main(["--quick", "--folder", str(tmp_path), "--json", str(json_path)]) == 0
    content = json.loads(json_path.read_text())
    assert content["quick"] is True
    assert content["machine"]["cores"] >= 1
    assert tuple(content["sections"]) == SECTIONS == tuple(BOUNDS)
    printed = capsys.readouterr().out
    for name, section in content["sections"].items():
        rows = section["rows"]
        bounded = [row for row in rows if row["at_least"] is not None or row["at_most"] is not None]
        assert (len(rows), len(bounded)) == BOUNDS[name]
        for row in rows:
            # memory can shrink, and what other tests left open can close meanwhile
            assert row["value"] >= 0 or row["unit"] == "MB" or name == "memory"
            assert row["what"] in printed
        assert section["seconds"] > 0


def test_unknown_sections_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--sections", "read", "write", "--folder", str(tmp_path)])
    assert "invalid choice: 'write' (choose from" in capsys.readouterr().err


def test_a_figure_is_reached_within_its_bounds():
    figure = {"case": "720p", "what": "speed"}
    assert Row(**figure, value=0.7).is_reached
    assert Row(**figure, value=0.7, at_least=0.7).is_reached
    assert not Row(**figure, value=0.69, at_least=0.7).is_reached
    assert Row(**figure, value=0, at_most=0).is_reached
    assert not Row(**figure, value=1, at_most=0).is_reached


def test_mutations_change_files_in_every_way_and_are_named_by_their_seed(tmp_path):
    content = make_media(tmp_path, SMALL_KIND, 1).read_bytes()
    for seed in range(20):
        assert mutated(content, seed) == mutated(content, seed) != content
    sizes = [len(mutated(content, seed)) for seed in range(5)]
    assert [size == len(content) for size in sizes] == [True, False, True, True, True]


def test_atoms_that_follow_each_other_are_found_at_every_depth(tmp_path):
    content = make_media(tmp_path, SMALL_KIND, 1).read_bytes()
    pairs = [
        (content[first + 4 : first + 8], content[second + 4 : second + 8])
        for first, second, _ in neighbouring_atoms(content, 0, len(content))
    ]
    assert (b"mvhd", b"trak") in pairs
    assert (b"mdat", b"moov") in pairs
    assert (b"stts", b"stss") in pairs
    end = max(end for _, _, end in neighbouring_atoms(content, 0, len(content)))
    assert end == len(content)
    assert not list(neighbouring_atoms(b"\x1aE\xdf\xa3" + bytes(100), 0, 104))
