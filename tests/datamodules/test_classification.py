"""Labelled files: what annotation files say, what is wrong in them, and batches made of them."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from labelled_media import write_csv, write_sounds, write_videos

from datamodules.classification import ClassificationData, mix
from vatt.batch import LabelledBatch
from vatt.config.augment import AugmentConfig
from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.config.model import ClassifierConfig
from vatt.data.draws import SampleRef
from vatt.data.labelled import ClassifierInput, LabelledClips, LabelledViews
from vatt.data.labelled_files import LabelledFiles, read_files
from vatt.errors import UserError
from vatt.media.write_mp4 import write_mp4
from vatt.sets.annotations import (
    AnnotationError,
    Classes,
    line_fault,
    read_annotations,
    read_classes,
)

VIDEO = VideoConfig(num_frames=4, frame_rate=5.0, image_size=32, patch_size=(2, 8, 8))
AUDIO = AudioConfig(sample_rate=8_000, num_samples=6_400, patch_size=128)
CLASSES = Classes(("blue", "green", "red"), ("blue", "green", "red"))
SEES = ClassifierInput(video=VIDEO, audio=None, num_classes=3)
HEARS = ClassifierInput(video=None, audio=AUDIO, num_classes=3)
PLAIN = AugmentConfig(scale_range=(1.0, 1.0), flip_rate=0.0)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips and three sounds of each class, with a csv that names them."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = write_videos(folder, 3)
    write_csv(folder / "videos.csv", ("file", "label"), rows)
    write_csv(folder / "sounds.csv", ("file", "label"), write_sounds(folder, 3))
    return folder


def make_files(folder: Path, *names: str) -> Path:
    """Empty files: whoever lists them does not open them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(files: LabelledFiles) -> list[tuple[str, tuple[int, ...]]]:
    return [(file.key, file.labels) for file in files]


def clips(
    folder: Path, name: str = "videos.csv", classifier_input: ClassifierInput = SEES, **more
) -> LabelledClips:
    files = read_files(folder / name, "csv", CLASSES)
    options = {"seed": 0, "augment": PLAIN, "max_failure_rate": 0.5} | more
    return LabelledClips(files, classifier_input, **options)


def test_own_csv_names_files_labels_and_times(tmp_path: Path) -> None:
    make_files(tmp_path, "a.mp4", "in a folder/ü.mp4")
    header = ("label", "file", "start_seconds", "end_seconds", "note")
    rows = [
        ("red", "a.mp4", "1.5", "4", "x"),
        ("blue", "a.mp4", "", "", ""),
        ("red", "in a folder/ü.mp4", "", "9", ""),
    ]
    path = write_csv(tmp_path / "own.csv", header, rows)
    files = read_files(path, "csv", CLASSES)
    assert found(files) == [
        ("a.mp4@1.5-4", (2,)),
        ("a.mp4", (0,)),
        ("in a folder/ü.mp4@0-9", (2,)),
    ]
    assert files[2].path == tmp_path / "in a folder/ü.mp4"
    assert (files[0].start_seconds, files[0].end_seconds) == (1.5, 4.0)
    with pytest.raises(IndexError, match="file 3 of 3"):
        files[3]


def test_several_labels_are_split_and_none_is_possible(tmp_path: Path) -> None:
    make_files(tmp_path, "a.wav", "b.wav")
    rows = [("a.wav", "red; blue"), ("b.wav", "")]
    path = write_csv(tmp_path / "own.csv", ("file", "labels"), rows)
    assert found(read_files(path, "csv", CLASSES, multi_label=True)) == [
        ("a.wav", (2, 0)),
        ("b.wav", ()),
    ]
    with pytest.raises(AnnotationError) as raised:
        read_files(path, "csv", CLASSES)
    assert "line 2: has 2 labels" in str(raised.value)
    assert "line 3: has 0 labels" in str(raised.value)


def test_kinetics_clips_are_found_in_their_class_folders(tmp_path: Path) -> None:
    make_files(tmp_path / "clips", "red/-aB_3_000010_000020.mp4", "x y/plain.webm")
    header = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
    rows = [("red", "-aB_3", 10, 20, "train", 0), ("blue", "plain", 7, 17, "train", 0)]
    path = write_csv(tmp_path / "train.csv", header, rows)
    files = read_files(path, "kinetics", CLASSES, media=tmp_path / "clips")
    assert found(files) == [("red/-aB_3_000010_000020.mp4", (2,)), ("x y/plain.webm", (0,))]
    with pytest.raises(UserError, match=r"data\.media must name the folder"):
        read_files(path, "kinetics", CLASSES)
    make_files(tmp_path / "clips", "blue/plain.mp4")
    with pytest.raises(
        UserError, match=r"has several files for plain: blue/plain.mp4, x y/plain.webm"
    ):
        read_files(path, "kinetics", CLASSES, media=tmp_path / "clips")


def test_moments_in_time_has_no_header(tmp_path: Path) -> None:
    make_files(tmp_path, "training/red/one.mp4")
    path = write_csv(tmp_path / "trainingSet.csv", None, [("red/one.mp4", "red", 3, 0)])
    files = read_files(path, "moments", CLASSES, media=tmp_path / "training")
    assert found(files) == [("red/one.mp4", (2,))]
    beside = read_files(path, "moments", CLASSES)  # as distributed
    assert found(beside) == [("training/red/one.mp4", (2,))]


def test_audioset_has_comments_and_quoted_labels(tmp_path: Path) -> None:
    names = ("-a_b", "Yc", "d_30000_40000", "e_000030_000040", "f_30")
    make_files(tmp_path / "clips", *(f"{name}.wav" for name in names))
    lines = [
        "# Segments csv created",
        "# num_ytids=5",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    lines += [f'{name}, 30.000, 40.000, "/m/1,/t/dd2"' for name in ("-a_b", "c", "d", "e", "f")]
    path = tmp_path / "eval_segments.csv"
    path.write_text("\n".join(lines))
    table = write_csv(
        tmp_path / "class_labels_indices.csv",
        ("index", "mid", "display_name"),
        [(1, "/t/dd2", "Hum, low"), (0, "/m/1", "Speech")],
    )
    classes = read_classes(table, path, "audioset")
    assert classes == Classes(("/m/1", "/t/dd2"), ("Speech", "Hum, low"))
    files = read_files(path, "audioset", classes, multi_label=True, media=tmp_path / "clips")
    assert found(files) == [(f"{name}.wav", (0, 1)) for name in names]
    path.write_text('x, 3, 2, "/m/1"\ny, 1, 2, Speech\nz, 1, 2\n')
    with pytest.raises(AnnotationError, match="3 lines cannot be used\n  line 1: must be an id"):
        read_files(path, "audioset", classes, multi_label=True, media=tmp_path / "clips")
    path.write_text('YTID,start_seconds,end_seconds,positive_labels\n-a_b,30,40,"/m/1"\n')
    copied = read_files(path, "audioset", classes, multi_label=True, media=tmp_path / "clips")
    assert found(copied) == [("-a_b.wav", (0,))]  # as some keep it
    path.write_text('-a_b,30,40,"/m/1,/m/1"\n')
    with pytest.raises(AnnotationError, match="line 1: has a label twice: /m/1,/m/1"):
        read_files(path, "audioset", classes, multi_label=True, media=tmp_path / "clips")


def test_a_fold_of_esc50_is_left_out_of_training(tmp_path: Path) -> None:
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    rows = [(f"{n}.wav", n % 5 + 1, 0, ("dog", "rain")[n % 2], False, 1, "A") for n in range(10)]
    path = write_csv(tmp_path / "meta" / "esc50.csv", header, rows)
    make_files(tmp_path / "audio", *(row[0] for row in rows))
    data = module(path, classifier="audio", layout="esc50", fold=2, num_classes=2)
    data.setup("fit")
    assert [file.key for file in data.train_samples.files] == [
        f"{n}.wav" for n in range(10) if n % 5 != 1
    ]
    assert found(data.validation_files) == [("1.wav", (1,)), ("6.wav", (0,))]
    rows[3] = ("3.wav", 7, *rows[3][2:])
    write_csv(path, header, rows)
    with pytest.raises(AnnotationError, match="line 5: needs a category and a fold"):
        module(path, classifier="audio", layout="esc50", fold=2, num_classes=2).setup("fit")


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    make_files(tmp_path, "red/a.jpg", "blue/deep/b.png", "red/notes.txt", "blue/c.mp4")
    classes = read_classes(None, tmp_path, "folder")
    assert classes.labels == ("blue", "red")
    assert found(read_files(tmp_path, "folder", classes)) == [
        ("blue/c.mp4", (0,)),
        ("blue/deep/b.png", (0,)),
        ("red/a.jpg", (1,)),
    ]
    make_files(tmp_path, "loose.jpg")
    with pytest.raises(UserError, match="loose.jpg lies in no class"):
        read_classes(None, tmp_path, "folder")


def test_every_line_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    make_files(tmp_path, "a.mp4", "b.mp4")
    path = tmp_path / "own.csv"
    lines = ["file,label", "a.mp4,red", "b.mp4,gren", "a.mp4,blue", "b.mp4,red,x", "b.mp4,", ",red"]
    lines += ["./a.mp4,red"]
    path.write_text("\n".join(lines))
    with pytest.raises(AnnotationError) as raised:
        read_files(path, "csv", CLASSES)
    assert str(raised.value).splitlines() == [
        f"{path}: 6 lines cannot be used",
        "  line 3: unknown label 'gren'. Did you mean green?",
        "  line 4: 'a.mp4' was in line 2 already",
        "  line 5: has 3 columns, the header 2: quote texts with commas",
        "  line 6: has no label",
        "  line 7: names no file",
        "  line 8: 'a.mp4' was in line 2 already",
        "Correct these lines, or data.classes.",
    ]
    path.write_text("file,label,start_seconds,end_seconds\na.mp4,red,3,2\nb.mp4,red,soon,\n")
    with pytest.raises(
        AnnotationError, match="2 lines cannot be used\n  line 2: its times must be"
    ):
        read_files(path, "csv", CLASSES)
    path.write_text("file,label\n" + "".join(f"a.mp4,no{n}\n" for n in range(30)))
    with pytest.raises(AnnotationError, match="30 lines cannot be used(.|\n)+… and 10 more"):
        read_files(path, "csv", CLASSES)


def test_absent_files_are_refused_or_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_files(tmp_path, "a.mp4")
    rows = [("gone.mp4", "red"), ("a.mp4", "red"), ("away.mp4", "blue")]
    path = write_csv(tmp_path / "own.csv", ("file", "label"), rows)
    with pytest.raises(AnnotationError, match=r"line 2: there is no file 'gone.mp4'(.|\n)+line 4"):
        read_files(path, "csv", CLASSES)
    with caplog.at_level(logging.WARNING):
        assert found(read_files(path, "csv", CLASSES, allow_missing=True)) == [("a.mp4", (2,))]
    assert "2 lines cannot be used" in caplog.text
    assert "with the 1 that are there" in caplog.text
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(AnnotationError, match="3 lines cannot be used"):  # nothing is left
        read_files(path, "csv", CLASSES, allow_missing=True)


@pytest.mark.parametrize(
    ("layout", "content", "message"),
    [
        ("csv", "path,label\na,b\n", "lacks the column file: .* names path,label"),
        ("csv", "file\na\n", "must have the column label"),
        ("csv", "file,label,labels\na,b,c\n", "must have the column label, or labels"),
        ("csv", "", "names nothing"),
        ("csv", "file,label\n", "has 0 classes"),
        ("kinetics", "youtube_id,split\na,b\n", "lacks the column label and time_start and"),
        ("esc50", "filename,category\na,b\n", "lacks the column fold"),
        ("csv", b"file,label\n\xff\xfe,b\n", "is not UTF-8 text"),
        ("csv", 'file,label\na,b\nc,"d\ne,f\n', "own.csv, line 3: cannot be read as csv"),
        ("csv", "file,label,label\na,b,c\n", "line 1: has the column 'label' twice"),
        (
            "kinetics",
            "label,youtube_id,time_start,time_end\nx,,0,1\n",
            "line 2: needs .* youtube_id",
        ),
    ],
)
def test_files_with_other_columns_are_refused(
    tmp_path: Path, layout: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_classes(None, path, layout)


def test_what_is_no_annotation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="correct the path"):
        list(read_annotations(tmp_path / "none.csv", "csv", []))
    with pytest.raises(UserError, match=r"set data\.layout to folder"):
        list(read_annotations(tmp_path, "csv", []))


def test_classes_have_an_order(tmp_path: Path) -> None:
    path = tmp_path / "classes"
    path.write_text("b,1\na,0\n")
    assert read_classes(path, tmp_path, "moments").labels == ("a", "b")
    path.write_text("walking, running\nclap\n")
    assert read_classes(path, tmp_path, "csv").labels == ("walking, running", "clap")
    path.write_text("id,name\n1,z\n0,y\n")
    assert read_classes(path, tmp_path, "kinetics").names == ("y", "z")
    for content, message in (
        ("a\na\n", "names the class 'a' twice"),
        ("a\n", "has 1 classes"),
        ("a,0\nb,2\n", "there is no 1"),
        ("index,mid,display_name\n0,/m/a\n1,/m/b,B\n", "line 2: has 2 columns, the header 3"),
        ("index,mid,display_name\n0,/m/a,A\n1,/m/b,B, b\n", "line 3: has 4 columns, the header 3"),
        ('a\n"b\n', "line 2: cannot be read as csv"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_classes(path, tmp_path, "csv")
    with pytest.raises(UserError, match="no file of classes"):
        read_classes(tmp_path / "none", tmp_path, "csv")


def test_a_training_clip_is_a_function_of_its_reference(media: Path) -> None:
    samples = clips(media, augment=AugmentConfig(crop="area"))
    ref, other = SampleRef(0, 4, 0, 0), SampleRef(0, 4, 1, 9)
    first, again, later = (samples.__getitems__([one]) for one in (ref, ref, other))
    assert torch.equal(first.video, again.video)
    assert first.video.shape == (1, 4, 32, 32, 3)
    assert torch.equal(first.seeds, again.seeds)
    assert not torch.equal(first.seeds, later.seeds)
    assert first.keys == ("green-1.mp4",)
    assert first.labels.tolist() == [[0.0, 1.0, 0.0]]
    assert first.audio is None


def test_a_sound_shorter_than_a_clip_is_looped(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ("file", "label"), write_sounds(tmp_path, 1, seconds=0.25))
    sound = clips(tmp_path, "a.csv", HEARS).__getitems__([SampleRef(0, 2, 0, 0)]).audio[0]
    assert sound.shape == (6_400,)
    for start in (2_000, 4_000):
        assert torch.equal(sound[start : start + 2_000], sound[:2_000])
    assert sound.abs().max() > 0.4
    views = LabelledViews(clips(tmp_path, "a.csv").files, HEARS, num_windows=2, num_crops=1)
    assert torch.allclose(views[2][1][0], sound)


def test_clips_of_a_part_lie_in_it(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(40, 240, 5, dtype=np.uint8), 32 * 32 * 3).reshape(40, 32, 32, 3)
    write_mp4(tmp_path / "a.mp4", frames, 10.0)
    rows = [("a.mp4", "red", 1, 2.5), ("a.mp4", "blue", 3, 4)]
    write_csv(tmp_path / "a.csv", ("file", "label", "start_seconds", "end_seconds"), rows)
    samples = clips(tmp_path, "a.csv")
    views = LabelledViews(samples.files, SEES, num_windows=3, num_crops=1)
    starts = set()
    for epoch in range(8):
        video = samples.__getitems__([SampleRef(0, 0, epoch, 0)]).video
        shown = (video[0].float().mean(dim=(1, 2, 3)) - 40) / 5  # numbers of frames, 10 a second
        assert shown.min() > 9
        assert shown.max() < 25.5
        starts.add(round(float(shown[0])))
    assert len(starts) > 2
    shown = ((views[0][1].float().mean(dim=(2, 3, 4)) - 40) / 5).round().int().tolist()
    assert shown[0] == [10, 12, 14, 16]
    assert shown[2] == [17, 19, 21, 23]


def test_a_file_in_the_place_of_a_broken_one_brings_its_own_label(
    media: Path, tmp_path: Path
) -> None:
    shutil.copy(media / "red-0.mp4", tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "silent.wav").write_bytes((media / "red-0.wav").read_bytes())
    rows = [("broken.mp4", "blue"), ("silent.wav", "green"), ("red-0.mp4", "red")]
    write_csv(tmp_path / "a.csv", ("file", "label"), rows)
    samples = clips(tmp_path, "a.csv")
    batch = samples.__getitems__([SampleRef(0, 0, 0, 0)])
    assert batch.keys == ("red-0.mp4",)
    assert batch.labels.tolist() == [[0.0, 0.0, 1.0]]
    assert samples.counts.num_failed == 2


def test_a_part_after_the_end_of_the_sound_is_replaced(media: Path, tmp_path: Path) -> None:
    frames = np.full((30, 32, 32, 3), 99, dtype=np.uint8)
    sound = {"waveform": np.full(4_000, 0.1), "sample_rate": 8_000}
    write_mp4(tmp_path / "a.mp4", frames, 10.0, **sound)
    shutil.copy(media / "red-0.wav", tmp_path)
    rows = [("a.mp4", "blue", 2, 3), ("red-0.wav", "red", "", "")]
    write_csv(tmp_path / "a.csv", ("file", "label", "start_seconds", "end_seconds"), rows)
    samples = clips(tmp_path, "a.csv", HEARS)
    assert samples.__getitems__([SampleRef(0, 0, 0, 0)]).keys == ("red-0.wav",)


def test_evaluation_has_all_views_and_masks_what_cannot_be_read(
    media: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(media / "red-0.mp4", tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows = [("broken.mp4", "blue"), ("red-0.mp4", "red")]
    write_csv(tmp_path / "a.csv", ("file", "label"), rows)
    views = LabelledViews(clips(tmp_path, "a.csv").files, SEES, num_windows=2, num_crops=3)
    batch = views.__getitems__([0, 1])
    assert batch.video.shape == (12, 4, 32, 32, 3)
    assert batch.num_views == 6
    assert batch.video_mask.tolist() == [False] * 6 + [True] * 6
    assert batch.labels.argmax(dim=1).tolist() == [0] * 6 + [2] * 6
    assert batch.keys == ("broken.mp4",) * 6 + ("red-0.mp4",) * 6
    assert f"left out of the evaluation: {tmp_path / 'broken.mp4'}" in caplog.text
    assert views.__getitems__([0]).video.shape == (6, 4, 32, 32, 3)  # not one of them


def module(
    train: Path, *, classifier: str = "video", num_classes: int = 3, **more
) -> ClassificationData:
    settings = ClassifierConfig(modality=classifier, num_classes=num_classes)
    options = {"batch_size": 4, "num_workers": 0} | more
    return ClassificationData(str(train), video=VIDEO, audio=AUDIO, classifier=settings, **options)


@pytest.mark.slow
def test_stream_goes_on_where_it_was_with_another_number_of_workers(media: Path) -> None:
    whole = module(media / "sounds.csv", classifier="audio", batches_per_epoch=4)
    whole.setup("fit")
    batches = list(whole.train_dataloader())
    first = module(media / "sounds.csv", classifier="audio", batches_per_epoch=4)
    first.setup("fit")
    stream = iter(first.train_dataloader())
    taken = [next(stream).keys for _ in range(2)]
    rest = module(media / "sounds.csv", classifier="audio", batches_per_epoch=4, num_workers=1)
    rest.setup("fit")
    rest.load_state_dict(first.state_dict())
    taken += [batch.keys for batch in rest.train_dataloader()]
    rest.teardown("fit")
    assert taken == [batch.keys for batch in batches]
    assert sorted(key for keys in taken for key in keys[:9])[:3] == ["blue-0.wav"] * 2 + [
        "blue-1.wav"
    ]
    state = {**first.state_dict(), "classes": ["red", "green", "blue"]}
    with pytest.raises(UserError, match="trained with other classes"):
        rest.load_state_dict(state)


def test_classes_are_kept_in_a_form_that_is_read_again(media: Path, tmp_path: Path) -> None:
    data = module(media / "videos.csv")
    data.setup("fit")
    data.save_classes(tmp_path)
    assert read_classes(tmp_path / "classes.csv", media, "csv") == CLASSES
    only = write_csv(media / "only.csv", ("file", "label"), [("red-1.mp4", "red")])
    again = module(only, classes=str(tmp_path / "classes.csv"))
    again.setup("fit")
    assert found(again.train_samples.files) == [("red-1.mp4", (2,))]


def test_settings_that_cannot_be_used_are_refused(media: Path) -> None:
    path = media / "videos.csv"
    with pytest.raises(UserError, match="has 3 classes, the model 5: set .*num_classes to 3"):
        module(path, num_classes=5).setup("fit")
    with pytest.raises(UserError, match=r"data\.fold, from 1 to 5"):
        module(path, fold=1)
    with pytest.raises(UserError, match=r"data\.fold, from 1 to 5"):
        module(path, layout="esc50")
    with pytest.raises(UserError, match="give one from 1 to 5"):
        module(path, layout="esc50", fold=6)
    with pytest.raises(UserError, match="1 or 3 crops, got 4 and 2"):
        module(path, num_crops=2)
    standardized = ClassifierConfig(num_classes=3, standardize=True)
    with pytest.raises(UserError, match="single clip cannot be standardised: set data.batch_size"):
        ClassificationData(
            str(path), video=VIDEO, audio=AUDIO, classifier=standardized, batch_size=1
        )
    with pytest.raises(UserError, match="validation_batch_size must be at least 1"):
        module(path, validation_batch_size=0)
    with pytest.raises(UserError, match="the model sees no spectrogram"):
        module(path, augment=AugmentConfig(num_time_masks=1))
    with pytest.raises(UserError, match="classifier is null"):
        ClassificationData(str(path), video=VIDEO, audio=AUDIO, classifier=None)


def test_mixing_takes_labels_and_pictures_in_the_same_proportion() -> None:
    labels = torch.eye(3)
    video = (labels * 255).to(torch.uint8)[:, None, None, None].expand(3, 2, 4, 4, 3)
    batch = LabelledBatch(video=video, labels=labels, seeds=torch.arange(3))
    mixed = mix(batch, 5.0)
    pixels = (mixed.video[:, 0, 0, 0] + 1) / 2
    assert torch.allclose(pixels, mixed.labels, atol=1e-6)
    assert torch.allclose(mixed.labels.sum(dim=1), torch.ones(3))
    assert mixed.labels.max() < 0.99


def stage(name: str, *, training: bool = False) -> SimpleNamespace:
    state = SimpleNamespace(fn=name)
    return SimpleNamespace(state=state, training=training, global_rank=0, world_size=1)


def test_only_training_clips_are_changed_and_mixed() -> None:
    data = module(Path("x.csv"), mixup_alpha=5.0)
    video = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8)
    batch = LabelledBatch(video=video, labels=torch.eye(3), seeds=torch.arange(3))
    data.trainer = stage("fit")
    assert data.on_after_batch_transfer(batch, 0) is batch  # in a validation
    data.trainer = stage("fit", training=True)
    changed = data.on_after_batch_transfer(batch, 0)
    assert changed.video.dtype == torch.float32
    assert changed.labels.max() < 1


def test_validation_in_a_fit_takes_fewer_views_than_alone(media: Path) -> None:
    data = module(media / "videos.csv", validation=str(media / "videos.csv"), num_windows=2)
    for name, num_views in (("fit", 1), ("validate", 6)):
        data.trainer = stage(name)
        batches = list(data.val_dataloader())
        assert [batch.num_views for batch in batches] == [num_views] * 9


def test_folder_to_predict_needs_no_labels(media: Path, tmp_path: Path) -> None:
    shutil.copy(media / "red-0.mp4", tmp_path)
    data = module(media / "videos.csv", predict=str(tmp_path))
    data.trainer = stage("predict")
    (batch,) = data.predict_dataloader()
    assert set(batch.keys) == {"red-0.mp4"}
    assert batch.labels.sum() == 0


def test_labels_of_another_form_are_refused() -> None:
    audio = torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"floating point \[B, C\], got torch.int64 \[4\]"):
        LabelledBatch(audio=audio, labels=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 rows are not 3 views each"):
        LabelledBatch(audio=audio, labels=torch.zeros(4, 2), num_views=3)
    with pytest.raises(ValueError, match="the same number of rows"):
        LabelledBatch(audio=audio, labels=torch.zeros(2, 2))


def test_faults_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    fault = AnnotationError.of(tmp_path, [line_fault(3, "a")], "Do.")
    assert str(fault) == f"{tmp_path}: 1 lines cannot be used\n  line 3: a\nDo."
