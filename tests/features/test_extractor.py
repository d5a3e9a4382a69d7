"""Vectors of media and texts: the same for the same clip, wherever it comes from."""

import dataclasses
import io
import json
import pickle
import re
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from media_files import FRAME_RATE, KINDS, make_file, make_still
from tiny_models import make_model

import vatt.system.progress
from vatt import FeatureExtractor, Features, MediaError, Tokenizer, preset, save_model
from vatt.config.model import HeadConfig
from vatt.errors import UserError
from vatt.features.files import read_metadata
from vatt.media.clip import read_clip, read_frames, read_waveform
from vatt.preprocess.arrays import Frames

CONFIG = preset("tiny")  # windows of 0.8 s: 4 frames at 5 a second, 6,400 samples at 8 kHz
WINDOW = 0.8
SOUND_RATE = 44_100


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a dog barks at the cat", "the red ring spins"], 20)


@pytest.fixture(scope="module")
def extractor(tokenizer: Tokenizer) -> FeatureExtractor:
    return FeatureExtractor(make_model(), tokenizer, device="cpu")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 3 s, one of 0.5 s, a picture, a lossless sound in stereo, and one that is none."""
    folder = tmp_path_factory.mktemp("media")
    names = ("plain.mp4", "silent.mp4", "hevc.mp4", "short_sound.mp4", "sound.m4a", "faststart.mp4")
    for name in names:
        make_file(folder / name, KINDS[name])
    make_file(folder / "brief.mp4", dataclasses.replace(KINDS["silent.mp4"], video_seconds=0.5))
    make_still(folder / "still.png", "png")
    write_wav(folder / "stereo.wav", stereo())
    (folder / "broken.mp4").write_bytes(b"no media" * 100)
    return folder


def stereo() -> np.ndarray:
    """Two tones for 2.5 s, float32 `[2, S]`."""
    seconds = np.arange(int(2.5 * SOUND_RATE)) / SOUND_RATE
    tones = [0.4 * np.sin(2 * np.pi * f * seconds * (1 + seconds)) for f in (300, 500)]
    return np.stack(tones).astype(np.float32)


def write_wav(path: Path, waveform: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=SOUND_RATE, layout="stereo")
        packed = np.ascontiguousarray(waveform.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout="stereo")
        frame.sample_rate, frame.pts = SOUND_RATE, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, rtol=0, atol=1e-5)


def test_a_file_gives_the_same_vector_alone_and_in_any_batch_or_order(
    extractor: FeatureExtractor, media: Path
) -> None:
    names = ["plain.mp4", "brief.mp4", "silent.mp4", "still.png", "hevc.mp4"]
    paths = [media / name for name in names]
    together = extractor.encode_video(paths, batch_size=3)
    assert together.shape == (5, 12)
    assert together.dtype == torch.float32
    assert torch.allclose(together.norm(dim=1), torch.ones(5))
    assert close(extractor.encode_video(paths[::-1], batch_size=8).flip(0), together)
    for path, vector in zip(paths, together, strict=True):
        assert close(extractor.encode_video(path)[0], vector)
    sounds = [media / name for name in ("plain.mp4", "sound.m4a", "stereo.wav")]
    heard = extractor.encode_audio(sounds, batch_size=2)
    for path, vector in zip(sounds, heard, strict=True):
        assert close(extractor.encode_audio(path)[0], vector)
    texts = ["a dog barks", "the", "the red ring spins at the cat"]
    read = extractor.encode_text(texts)
    for text, vector in zip(texts, read, strict=True):
        assert close(extractor.encode_text(text)[0], vector)


def test_a_file_gives_the_same_vector_as_path_bytes_file_object_or_stream(
    extractor: FeatureExtractor, media: Path
) -> None:
    path = media / "plain.mp4"

    class Pipe(io.RawIOBase):
        """Can be read once, from start to end."""

        def __init__(self, content: bytes) -> None:
            self._rest = content

        def seekable(self) -> bool:
            return False

        def read(self, size: int = -1) -> bytes:
            taken, self._rest = self._rest, b""
            return taken

    with path.open("rb") as file:
        sources = [str(path), path, path.read_bytes(), file, Pipe(path.read_bytes())]
        vectors = extractor.encode_video(iter(sources))
        sounds = extractor.encode_audio(sources[:-1])
    assert all(close(vector, vectors[0]) for vector in vectors)
    assert all(close(vector, sounds[0]) for vector in sounds)


def test_pictures_in_memory_give_the_vector_of_their_file(
    extractor: FeatureExtractor, media: Path
) -> None:
    size = CONFIG.video.image_size
    frames, _ = read_frames(
        media / "plain.mp4", start_seconds=0, num_frames=75, frame_rate=FRAME_RATE, short_side=size
    )
    vectors = extractor.encode_video([frames, frames.numpy()], frame_rate=FRAME_RATE)
    expected = extractor.encode_video(media / "plain.mp4")
    assert close(vectors[0], expected[0])
    assert close(vectors[1], expected[0])
    assert close(extractor.encode_video(frames[None], frame_rate=FRAME_RATE), expected)
    other = extractor.encode_video(frames, frame_rate=2 * FRAME_RATE)
    assert not close(other, expected)


@pytest.mark.parametrize("frame_rate", [24.0, 25.0, 29.97, 30.0, 1000 / 7])
def test_pictures_in_memory_are_found_by_their_times(frame_rate: float) -> None:
    pictures = torch.zeros(5000, 32, 32, 3, dtype=torch.uint8)
    pictures[..., 0], pictures[..., 1] = (
        (torch.arange(5000) // by % 256)[:, None, None].to(torch.uint8) for by in (1, 256)
    )
    video = dataclasses.replace(CONFIG.video, frame_rate=frame_rate)
    for first in range(0, 4990, 7):
        clip = Frames(pictures, frame_rate).read(first / frame_rate, video)
        assert torch.equal(clip.video, pictures[first : first + 4])
        assert clip.video_coverage == 1
    clip = Frames(pictures, frame_rate).read(4998 / frame_rate, video)
    assert torch.equal(clip.video, pictures[[4998, 4999, 4999, 4999]])
    assert clip.video_coverage == 0.5


def test_larger_pictures_in_memory_are_scaled_as_those_of_a_lossless_file(
    extractor: FeatureExtractor, media: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    path = media / "lossless.png"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 90, 60, "rgb24"
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert close(extractor.encode_video(pixels), extractor.encode_video(path))


def test_sound_in_memory_gives_the_vector_of_its_file(
    extractor: FeatureExtractor, media: Path
) -> None:
    expected = extractor.encode_audio(media / "stereo.wav")
    for waveform in (stereo(), torch.from_numpy(stereo()).double(), stereo().mean(axis=0)):
        assert close(extractor.encode_audio(waveform, sample_rate=SOUND_RATE), expected)
    halves = extractor.encode_audio([stereo(), stereo()[0]], sample_rate=SOUND_RATE)
    assert close(halves[:1], expected)
    assert not close(halves[1:], expected)


def test_a_long_file_gives_the_mean_of_windows_that_are_spread_over_it(
    extractor: FeatureExtractor, media: Path
) -> None:
    starts = [0.0, 0.6, 1.4, 2.2]  # (3.0 - 0.8) / 3 apart, on the grid of 5 frames a second
    clips = [
        read_clip(media / "plain.mp4", start_seconds=s, video=CONFIG.video, audio=None)
        for s in starts
    ]
    left = (clips[0].video.shape[2] - 32) // 2
    batch = torch.stack([clip.video[:, :, left : left + 32] for clip in clips])
    with torch.no_grad():
        expected = extractor.model.embed_video(batch)["vt"].mean(dim=0)
    raw = extractor.encode_video(media / "plain.mp4", normalize=False)
    assert close(raw[0], expected)
    unit = extractor.encode_video(media / "plain.mp4")
    assert close(unit[0], F.normalize(expected, dim=0))
    middle = extractor.encode_video(media / "plain.mp4", num_windows=1)
    assert not close(middle, unit)


def test_no_more_windows_are_taken_than_it_takes_to_see_all(extractor: FeatureExtractor) -> None:
    pictures = torch.randint(256, (30, 32, 32, 3), dtype=torch.uint8)  # 1.2 s
    two = extractor.encode_video(pictures, frame_rate=25, num_windows=2)
    assert close(extractor.encode_video(pictures, frame_rate=25), two)
    assert not close(extractor.encode_video(pictures, frame_rate=25, num_windows=1), two)


def test_a_short_file_gives_one_window_padded_as_in_training(
    extractor: FeatureExtractor, media: Path
) -> None:
    frames, coverage = read_frames(
        media / "brief.mp4", start_seconds=0, num_frames=4, frame_rate=5, short_side=32
    )
    assert coverage < 1
    assert close(
        extractor.encode_video(media / "brief.mp4"), extractor.encode_video(frames, frame_rate=5)
    )
    brief = stereo()[:, : SOUND_RATE // 2]
    padded = np.pad(brief, ((0, 0), (0, int(0.3 * SOUND_RATE))))
    assert close(
        extractor.encode_audio(brief, sample_rate=SOUND_RATE),
        extractor.encode_audio(padded, sample_rate=SOUND_RATE),
    )


def test_an_image_is_a_video_that_stands_still(extractor: FeatureExtractor, media: Path) -> None:
    frame, _ = read_frames(
        media / "still.png", start_seconds=0, num_frames=1, frame_rate=5, short_side=32
    )
    vectors = [
        extractor.encode_video(media / "still.png"),
        extractor.encode_video(frame[0]),
        extractor.encode_video(frame, frame_rate=5),
        extractor.encode_video(frame.repeat(20, 1, 1, 1), frame_rate=5),
    ]
    assert all(close(vector, vectors[0]) for vector in vectors)


def test_windows_in_which_a_file_has_no_sound_do_not_count(
    extractor: FeatureExtractor, media: Path
) -> None:
    heard, _ = read_waveform(
        media / "short_sound.mp4", start_seconds=0, num_samples=6400, sample_rate=8000
    )
    with torch.no_grad():
        expected = extractor.model.embed_audio(heard[None])["va"]
    sound = extractor.encode_audio(media / "short_sound.mp4", normalize=False, num_windows=2)
    assert close(sound, expected)


def test_spaces_are_those_of_the_model(extractor: FeatureExtractor, media: Path) -> None:
    path = media / "plain.mp4"
    assert extractor.spaces("video") == extractor.spaces("audio") == ("va", "vt")
    assert extractor.spaces("text") == ("vt",)
    assert extractor.encode_video(path, space="va").shape == (1, 24)
    assert extractor.encode_video(path, space=None).shape == (1, 32)
    assert extractor.encode_audio(path).equal(extractor.encode_audio(path, space="va"))
    assert extractor.encode_text("a dog", space=None).shape == (1, 32)
    with pytest.raises(ValueError, match="no space 'va' for text, it has vt"):
        extractor.encode_text("a dog", space="va")
    with pytest.raises(ValueError, match="no space 'joint' for video, it has va and vt"):
        extractor.encode_video(path, space="joint")


def test_sound_reaches_the_space_of_text_by_the_video_heads_last_step(
    extractor: FeatureExtractor,
) -> None:
    sound = stereo()[:, : int(WINDOW * SOUND_RATE)]
    va = extractor.encode_audio(sound, space="va", sample_rate=SOUND_RATE, normalize=False)
    with torch.no_grad():
        expected = F.normalize(extractor.model.head.va_to_vt(va), dim=-1)
    vt = extractor.encode_audio(sound, space="vt", sample_rate=SOUND_RATE)
    assert close(vt, expected)
    cosines = extractor.similarity(text="a dog", audio=sound, sample_rate=SOUND_RATE)
    assert close(cosines, extractor.encode_text("a dog") @ vt.T)


def test_similarity_is_the_cosine_in_the_space_that_both_share(
    extractor: FeatureExtractor, media: Path
) -> None:
    texts, videos = ["a dog", "the ring", "cat"], [media / "plain.mp4", media / "still.png"]
    cosines = extractor.similarity(video=videos, text=texts)
    expected = extractor.encode_text(texts) @ extractor.encode_video(videos, space="vt").T
    assert cosines.shape == (3, 2)
    assert close(cosines, expected)
    heard = extractor.similarity(video=videos, audio=media / "stereo.wav")
    sound = extractor.encode_audio(media / "stereo.wav")
    assert close(heard, sound @ extractor.encode_video(videos, space="va").T)
    with pytest.raises(ValueError, match="compares two of text, audio and video, got text"):
        extractor.similarity(text=texts)
    with pytest.raises(TypeError, match=r"by name: text=, audio= or video=, such as similarity\("):
        extractor.similarity(texts, videos)


def test_a_joint_space_holds_all_three_and_a_model_without_head_none(tokenizer: Tokenizer) -> None:
    joint = make_model(dataclasses.replace(CONFIG, head=HeadConfig(kind="joint", d_joint=20)))
    extractor = FeatureExtractor(joint, tokenizer, device="cpu")
    pictures = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    assert extractor.encode_video(pictures, frame_rate=1).shape == (1, 20)
    assert extractor.encode_text("a dog", space="joint").shape == (1, 20)
    features = extractor.extract(pictures, frame_rate=1)
    assert list(features.arrays) == ["video_joint"]
    bare = FeatureExtractor(make_model(dataclasses.replace(CONFIG, head=None)), tokenizer)
    assert bare.encode_video(pictures, frame_rate=1).shape == (1, 32)
    with pytest.raises(ValueError, match="no space 'vt' for video, it has none: use space=None"):
        bare.encode_video(pictures, frame_rate=1, space="vt")
    with pytest.raises(ValueError, match="share no space"):
        bare.similarity(text="a dog", video=pictures, frame_rate=1)


def test_inputs_of_any_modality_become_vectors_of_one_space(
    extractor: FeatureExtractor, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(media)
    sound = stereo()
    inputs = ["a dog", "plain.mp4", media / "sound.m4a", (media / "still.png").read_bytes(), "cat"]
    together = extractor.encode([*inputs, (sound, SOUND_RATE)])
    expected = [
        extractor.encode_text("a dog"),
        extractor.encode_video("plain.mp4", space="vt"),
        extractor.encode_audio("sound.m4a", space="vt"),
        extractor.encode_video("still.png"),
        extractor.encode_text("cat"),
        extractor.encode_audio(sound, sample_rate=SOUND_RATE, space="vt"),
    ]
    assert close(together, torch.cat(expected))
    for place, one in enumerate(inputs):  # one input is one vector, a list is a matrix
        assert extractor.encode(one).shape == (12,)
        assert close(extractor.encode(one), together[place])
    assert close(extractor.encode(["a dog"]), together[:1])
    assert close(
        extractor.encode("plain.mp4", modality="audio", space="va")[None],
        extractor.encode_audio("plain.mp4"),
    )
    assert close(
        extractor.encode("plain.mp4", modality="text")[None], extractor.encode_text("plain.mp4")
    )


def test_arrays_are_encoded_by_their_modality_or_rate(extractor: FeatureExtractor) -> None:
    video = torch.randint(256, (2, 6, 40, 40, 3), dtype=torch.uint8)
    one = extractor.encode(video[0], frame_rate=5)
    assert close(one[None], extractor.encode_video(video[0], frame_rate=5))
    assert close(extractor.encode(list(video[0]), frame_rate=5), one)
    assert close(extractor.encode(video, modality="video", frame_rate=5)[0], one)
    assert extractor.encode(video[0, 0], modality="video").shape == (12,)
    heard = extractor.encode(stereo(), sample_rate=SOUND_RATE)
    assert close(heard[None], extractor.encode_audio((stereo(), SOUND_RATE), space="vt"))
    with pytest.raises(UserError, match='pictures or sound: add modality="video" or modality="au'):
        extractor.encode(video[0])


def test_what_cannot_be_encoded_together_is_refused_with_a_sentence(
    extractor: FeatureExtractor, tokenizer: Tokenizer, media: Path
) -> None:
    inputs = ["a dog", media / "plain.mp4", media / "broken.mp4"]
    with pytest.raises(MediaError, match="broken.mp4"):
        extractor.encode(inputs)
    with pytest.warns(UserWarning, match="skipped: .*broken.mp4") as told:
        assert extractor.encode(inputs, on_error="skip").isnan().any(dim=1).tolist()[2]
    assert told[0].filename == __file__
    with pytest.raises(MediaError, match="absent.mp4: there is no such file"):
        extractor.encode("absent.mp4")
    with pytest.raises(UserError, match="text and video cannot be compared by features"):
        extractor.encode(inputs[:2], space=None)
    bare = FeatureExtractor(make_model(dataclasses.replace(CONFIG, head=None)), tokenizer)
    assert bare.encode(["a dog"]).shape == (1, 32)
    with pytest.raises(UserError, match="text and video cannot be compared by features"):
        bare.encode(inputs[:2])
    with pytest.raises(UserError, match="nothing to encode"):
        extractor.encode([])
    with pytest.raises(TypeError, match="sources are paths, .* got int"):
        extractor.encode(5)
    with pytest.raises(UserError, match="not smell"):
        extractor.encode("a dog", modality="smell")


def test_vectors_can_train_a_classifier(extractor: FeatureExtractor, media: Path) -> None:
    for vectors in (
        extractor.encode_video(media / "still.png"),
        extractor.encode_video(media / "still.png", return_tokens=True).mean(dim=1),
        extractor.extract(media / "still.png")["video_vt"],
    ):
        layer = torch.nn.Linear(vectors.shape[1], 2)
        layer(vectors).sum().backward()  # of an inference tensor this would be an error
        assert not vectors.requires_grad


def test_an_extractor_moves_to_a_device(tokenizer: Tokenizer) -> None:
    extractor = FeatureExtractor(make_model(), tokenizer, device="cpu")
    assert extractor.device == torch.device("cpu")
    assert extractor.to("cpu") is extractor
    with pytest.raises(UserError, match="no device 'tpux'"):
        extractor.to("tpux")
    with pytest.raises(TypeError, match=r"from_pretrained loads that of runs/demo"):
        FeatureExtractor("runs/demo")


def test_tokens_begin_with_the_pooled_features(extractor: FeatureExtractor, media: Path) -> None:
    path = media / "plain.mp4"
    tokens = extractor.encode_video(path, return_tokens=True)
    assert tokens.shape == (1, 1 + CONFIG.video.num_tokens, 32)
    pooled = extractor.encode_video(path, space=None, num_windows=1, normalize=False)
    assert close(tokens[:, 0], pooled)
    heard = extractor.encode_audio(path, return_tokens=True)
    assert heard.shape == (1, 1 + CONFIG.audio.num_tokens, 32)
    read = extractor.encode_text(["a dog", "the red ring spins"], return_tokens=True)
    assert read.shape == (2, 17, 32)
    assert close(read[:1], extractor.encode_text("a dog", return_tokens=True))
    assert not read[0, 3:].any()
    assert bool(read[0, :3].any(dim=1).all())
    with pytest.raises(ValueError, match="tokens are of the backbone"):
        extractor.encode_video(path, return_tokens=True, space="vt")


def test_bfloat16_is_near_float32(media: Path) -> None:
    exact = FeatureExtractor(make_model(), device="cpu")
    rough = FeatureExtractor(make_model(), device="cpu", dtype="bfloat16")
    assert exact.encoder.dtype == torch.float32
    cosine = exact.encode_video(media / "plain.mp4") @ rough.encode_video(media / "plain.mp4").T
    assert 0.99 < float(cosine) < 1 - 1e-7
    features = rough.extract(media / "plain.mp4", space=None, normalize=False)
    assert features["video"].dtype == features["audio"].dtype == torch.float32


def test_a_generator_is_read_as_it_goes(extractor: FeatureExtractor) -> None:
    seen: list[weakref.ref] = []

    def sources() -> Iterator[torch.Tensor]:
        for value in range(40):
            pictures = torch.full((2, 32, 32, 3), value, dtype=torch.uint8)
            seen.append(weakref.ref(pictures))
            assert sum(ref() is not None for ref in seen) < 10
            yield pictures
            del pictures

    assert extractor.encode_video(sources(), frame_rate=5, batch_size=4).shape == (40, 12)


def test_a_source_that_cannot_be_read_is_a_row_of_nan_where_it_may_be_skipped(
    extractor: FeatureExtractor, media: Path
) -> None:
    sources = [media / "plain.mp4", media / "broken.mp4", media / "still.png"]
    with pytest.raises(MediaError, match="broken.mp4"):
        extractor.encode_video(sources)
    with pytest.warns(UserWarning, match="skipped: .*broken.mp4: is damaged"):
        vectors = extractor.encode_video(sources, on_error="skip", batch_size=1)
    assert vectors.isnan().all(dim=1).tolist() == [False, True, False]
    assert close(vectors[::2], extractor.encode_video(sources[::2]))
    with pytest.warns(UserWarning, match="skipped") as told:
        cosines = extractor.similarity(text="a dog", video=sources, on_error="skip")
    assert told[0].filename == __file__
    assert cosines[0, 1] == -torch.inf
    with pytest.warns(UserWarning, match="text '!' holds no word"):
        read = extractor.encode_text(["!", "a dog"], on_error="skip")
    assert read.isnan().all(dim=1).tolist() == [True, False]
    with pytest.warns(UserWarning, match="skipped"):
        nothing = extractor.encode_audio(media / "still.png", on_error="skip", return_tokens=True)
    assert nothing.shape == (1, 51, 32)


def test_a_file_that_is_damaged_later_on_is_skipped_as_a_whole(
    extractor: FeatureExtractor, media: Path, tmp_path: Path
) -> None:
    content = (media / "faststart.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="half.mp4"):
        vectors = extractor.encode_video(
            [tmp_path / "half.mp4", media / "faststart.mp4"], on_error="skip", batch_size=1
        )
    assert vectors.isnan().all(dim=1).tolist() == [True, False]


def test_a_long_text_is_cut_with_a_warning_once(tokenizer: Tokenizer) -> None:
    extractor = FeatureExtractor(make_model(), tokenizer, device="cpu")
    words = ["a dog barks at"] * 4
    with pytest.warns(UserWarning, match="the model reads 16 words, longer texts are cut") as told:
        cut = extractor.encode_text([" ".join([*words, "the"]), " ".join([*words, "the cat"])])
    assert [one.filename for one in told] == [__file__]
    assert close(cut[0], extractor.encode_text(" ".join(words))[0])
    extractor.encode_text(" ".join([*words, "the"]))  # a second warning would be an error here


def test_backbone_features_that_hardly_differ_are_told_once() -> None:
    model = make_model()
    with torch.no_grad():  # a constant that is large beside all differences
        model.post_projections["audio"].bias += 100
    extractor = FeatureExtractor(model, device="cpu")
    sounds = [share * stereo().mean(axis=0) for share in np.linspace(0.1, 1, 8, dtype=np.float32)]
    with pytest.warns(UserWarning, match="hardly.*standardise.*in a common space") as told:
        extractor.encode_audio(sounds, sample_rate=SOUND_RATE, space=None)
    assert [one.filename for one in told] == [__file__]
    extractor.encode_audio(sounds, sample_rate=SOUND_RATE, space=None)  # a second one would raise
    extractor.encode_audio(sounds, sample_rate=SOUND_RATE)


PICTURES = torch.zeros(3, 40, 40, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("method", "source", "options", "kind", "message"),
    [
        ("video", "absent.mp4", {}, MediaError, "there is no such file: check the path"),
        ("video", ".", {}, MediaError, "is a folder: give a media file"),
        ("video", "sound.m4a", {}, MediaError, "has no picture"),
        ("audio", "still.png", {}, MediaError, "has no sound"),
        ("audio", "silent.mp4", {}, MediaError, "has no sound"),
        ("video", [], {}, ValueError, "nothing to encode: no video was given"),
        ("text", [], {}, ValueError, "nothing to encode: no text was given"),
        ("video", 5, {}, TypeError, "sources are paths, .* got int"),
        ("video", [5], {}, TypeError, "a source is a path, URL, .* got int"),
        ("video", (np.zeros(9), 8000), {}, TypeError, "a source is a path, .* got tuple"),
        ("audio", {"array": 1}, {}, TypeError, "sources are paths, .* got dict"),
        ("text", 5, {}, TypeError, "texts are str or a list of these, got int"),
        ("text", [b"a dog"], {}, TypeError, "texts are str, got bytes"),
        ("text", "a", {"batch_size": "8"}, TypeError, "batch_size is a number, got str"),
        ("video", PICTURES, {"frame_rate": "5"}, TypeError, "frame_rate is a number, got str"),
        ("text", "…", {}, ValueError, "holds no word"),
        ("video", PICTURES, {}, ValueError, "needs frame_rate=, .* got None"),
        ("video", PICTURES.float(), {"frame_rate": 5}, ValueError, "uint8 .* got float32"),
        ("video", PICTURES.mT, {"frame_rate": 5}, ValueError, r"got uint8 \[3, 40, 3, 40\]"),
        ("video", PICTURES[:0], {"frame_rate": 5}, ValueError, "at least one picture"),
        ("audio", torch.zeros(9), {}, ValueError, "needs sample_rate=, .* got None"),
        ("audio", torch.zeros(9), {"sample_rate": 0.5}, ValueError, "as a whole number, got 0.5"),
        ("audio", torch.zeros(99, 2), {"sample_rate": 8000}, ValueError, r"got float32 \[99, 2\]"),
        ("audio", np.zeros(9, int), {"sample_rate": 8000}, ValueError, "got int64"),
        ("audio", torch.full([9], torch.nan), {"sample_rate": 8000}, MediaError, "holds NaN"),
        ("video", PICTURES, {"on_error": "pass"}, ValueError, "on_error must be 'raise' or 'skip'"),
        ("video", PICTURES, {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(
    extractor: FeatureExtractor, media: Path, method, source, options, kind, message
) -> None:
    if isinstance(source, str) and method != "text":
        source = media / source
    with pytest.raises(kind, match=message):
        getattr(extractor, f"encode_{method}")(source, **options)


def test_list_of_pictures_with_a_frame_rate_is_one_video(extractor: FeatureExtractor) -> None:
    video = torch.randint(256, (6, 40, 40, 3), dtype=torch.uint8)
    whole = extractor.encode_video(video, frame_rate=5)
    assert whole.shape[0] == 1
    for pictures in (list(video), tuple(video.numpy())):
        assert torch.equal(extractor.encode_video(pictures, frame_rate=5), whole)
    assert extractor.encode_video(list(video)).shape[0] == 6  # still images
    assert len(extractor.extract(list(video), frame_rate=5)) == 2
    with pytest.raises(UserError, match=r"one shape, got \(40, 40, 3\) and \(41, 40, 3\)"):
        extractor.encode_video([*video, torch.zeros(41, 40, 3).byte()], frame_rate=5)
    with pytest.raises(TypeError, match="one source: call it for each"):
        extractor.extract(["a.mp4", "b.mp4"])
    with pytest.raises(TypeError, match="a source is a path, .* got int"):
        extractor.extract(5)
    with pytest.raises(TypeError, match="hop_seconds is a number, got str"):
        extractor.extract(video, frame_rate=5, hop_seconds="1")


def test_sound_may_come_with_its_sample_rate(extractor: FeatureExtractor) -> None:
    sound = stereo()
    expected = extractor.encode_audio(sound, sample_rate=SOUND_RATE)
    assert torch.equal(extractor.encode_audio((sound, SOUND_RATE)), expected)  # as torchaudio.load
    assert torch.equal(extractor.encode_audio((SOUND_RATE, torch.from_numpy(sound))), expected)
    assert list(extractor.extract((sound, SOUND_RATE)).arrays) == ["audio_va", "audio_vt"]
    both = extractor.encode_audio([(sound, SOUND_RATE), (sound[:1], SOUND_RATE)])
    assert torch.allclose(both[:1], expected, atol=1e-5)
    assert len(both) == 2


def test_an_extractor_says_what_it_is(extractor: FeatureExtractor) -> None:
    millions = sum(value.numel() for value in extractor.model.parameters()) / 1e6
    assert repr(extractor) == (
        f"FeatureExtractor({millions:.3g} M weights, video + audio + text, spaces va, vt, cpu)"
    )


def test_features_say_what_they_are_and_are_tables(
    extractor: FeatureExtractor, media: Path
) -> None:
    features = extractor.extract(media / "plain.mp4", hop_seconds=WINDOW)
    assert features.keys() == tuple(features.arrays)
    width = features["video_vt"].shape[1]
    assert f"plain.mp4', {len(features)} windows until" in repr(features)
    assert f"video_vt [{width}]" in repr(features)
    table = features.to_pandas()
    assert len(table) == len(features)
    assert list(table["start_seconds"]) == features.start_seconds.tolist()
    assert np.array_equal(np.stack(table["video_vt"]), features["video_vt"].numpy())


def test_features_are_a_table_in_a_notebook(extractor: FeatureExtractor, media: Path) -> None:
    shown = extractor.extract(media / "short_sound.mp4", hop_seconds=0.2)._repr_html_()
    assert "&#x27;, 12 windows until 3 s, video_va [24]" in shown
    assert shown.count("<tr>") == 1 + 10
    assert re.search(r"<td[^>]*> *0\.20</td>", shown)
    assert "audio_coverage" in shown
    assert "and 2 more windows" in shown


def test_what_a_model_lacks_is_named(tokenizer: Tokenizer) -> None:
    model = make_model(dataclasses.replace(CONFIG, modalities=("video", "text")))
    extractor = FeatureExtractor(model, device="cpu")
    with pytest.raises(ValueError, match="this model has video and text, not audio"):
        extractor.encode_audio(torch.zeros(9), sample_rate=8000)
    with pytest.raises(ValueError, match="windows are of video in this model, got 'text'"):
        extractor.extract(PICTURES, frame_rate=5, modalities=["text"])
    with pytest.raises(ValueError, match="this model came without a tokenizer.json"):
        extractor.encode_text("a dog")
    narrow = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, vocab_size=4))
    with pytest.raises(ValueError, match=r"has \d+ ids, the model 4 word vectors"):
        FeatureExtractor(make_model(narrow), tokenizer)
    with pytest.raises(ValueError, match="no device 'tpux'"):
        FeatureExtractor(model, device="tpux")
    with pytest.raises(ValueError, match="dtype must be auto, float32"):
        FeatureExtractor(model, dtype="int8")


def test_extract_gives_every_window_its_times_and_vectors(
    extractor: FeatureExtractor, media: Path
) -> None:
    features = extractor.extract(
        media / "short_sound.mp4", window_seconds=0.8, hop_seconds=0.5, batch_size=2
    )
    assert features.start_seconds.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert features.end_seconds[:5].tolist() == pytest.approx([0.8, 1.3, 1.8, 2.3, 2.8])
    assert features.end_seconds[5] == pytest.approx(3.0, abs=0.05)
    assert list(features.arrays) == ["video_va", "video_vt", "audio_va", "audio_vt"]
    assert len(features) == len(features["video_vt"]) == 6
    clip = read_clip(media / "short_sound.mp4", start_seconds=0.5, video=None, audio=CONFIG.audio)
    with torch.no_grad():
        expected = F.normalize(extractor.model.embed_audio(clip.audio[None])["va"], dim=-1)
    assert close(features["audio_va"][1:2], expected)
    heard = features.coverage["audio"] > 0  # the sound ends after 1 s and half a packet
    assert [*heard[:2].tolist(), *heard[3:].tolist()] == [True, True, False, False, False]
    assert torch.allclose(features["audio_va"].norm(dim=1), heard.float())
    with pytest.raises(KeyError, match="no features 'text', there are video_va"):
        features["text"]


def test_extract_leaves_out_what_a_file_lacks_or_nobody_asked_for(
    extractor: FeatureExtractor, media: Path
) -> None:
    silent = extractor.extract(media / "silent.mp4", space=None, normalize=False)
    assert {name: tuple(v.shape) for name, v in silent.arrays.items()} == {"video": (4, 32)}
    assert not silent.coverage["audio"].any()
    still = extractor.extract(media / "still.png", modalities=["video"], space="vt")
    assert list(still.arrays) == ["video_vt"]
    assert (still.start_seconds.tolist(), still.end_seconds.tolist()) == ([0.0], [0.0])
    assert close(still["video_vt"], extractor.encode_video(media / "still.png"))
    image = extractor.extract(torch.zeros(40, 40, 3, dtype=torch.uint8))
    assert image.end_seconds.tolist() == [0.0]
    sound = extractor.extract(stereo(), sample_rate=SOUND_RATE, return_tokens=True)
    assert sound["audio_tokens"].shape == (4, 1 + CONFIG.audio.num_tokens, 32)
    with pytest.raises(MediaError, match="has no sound"):
        extractor.extract(media / "silent.mp4", modalities=["audio"])
    with pytest.raises(ValueError, match="hop_seconds must be above 0"):
        extractor.extract(media / "silent.mp4", hop_seconds=0)


def test_longer_windows_take_whole_patches(extractor: FeatureExtractor, media: Path) -> None:
    features = extractor.extract(
        media / "silent.mp4", window_seconds=1.3, modalities=["video"], return_tokens=True
    )
    assert features["video_tokens"].shape == (3, 1 + 3 * 16, 32)  # 6 frames in patches of 2
    assert features.start_seconds.tolist() == pytest.approx([0.0, 1.2, 2.4])


@pytest.mark.parametrize("name", ["features.npz", "features.safetensors"])
def test_features_come_back_from_a_file(
    extractor: FeatureExtractor, media: Path, tmp_path: Path, name: str
) -> None:
    features = extractor.extract(media / "plain.mp4")
    features.save(tmp_path / name)
    first = (tmp_path / name).read_bytes()
    loaded = Features.load(tmp_path / name)
    assert set(loaded.arrays) == set(features.arrays)
    assert all(loaded[key].equal(features[key]) for key in loaded.arrays)
    assert loaded.start_seconds.equal(features.start_seconds)
    assert loaded.end_seconds.equal(features.end_seconds)
    assert loaded.coverage["audio"].equal(features.coverage["audio"])
    assert loaded.metadata == {"source": str(media / "plain.mp4")}
    loaded.save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_that_are_no_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no features .*absent.npz: check the path"):
        Features.load(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match=r"kept as .npz or .safetensors, got .*\.pkl"):
        Features.load(tmp_path / "features.pkl")
    (tmp_path / "bomb.npz").write_bytes(pickle.dumps({"video": 1}))
    with pytest.raises(ValueError, match="bomb.npz holds no features of vatt"):
        Features.load(tmp_path / "bomb.npz")
    np.savez(tmp_path / "other.npz", metadata=np.array("{}"), video=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="start_seconds is missing"):
        Features.load(tmp_path / "other.npz")
    times = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="one row for each window"):
        Features(
            arrays={"video": torch.zeros(3, 4)}, start_seconds=times, end_seconds=times, coverage={}
        )


def test_a_bomb_in_place_of_features_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("metadata.npy", "w") as member:
            np.save(member, np.array("{}"))
        with archive.open("video.npy", "w") as member:
            np.save(member, np.zeros(10_000_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    for read in (Features.load, read_metadata):
        with pytest.raises(UserError, match=r"bomb.npz is refused: .* 80,000,\d+ bytes .* at most"):
            read(tmp_path / "bomb.npz")


def test_an_array_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 8)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        with archive.open("metadata.npy", "w") as member:
            np.save(member, np.array("{}"))
        archive.writestr("video.npy", header.getvalue() + bytes(100))
    with pytest.raises(UserError, match="huge.npz holds no features of vatt, or is damaged"):
        Features.load(tmp_path / "huge.npz")


def test_a_folder_a_checkpoint_and_the_hubs_cache_give_the_same_vectors(
    extractor: FeatureExtractor,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, folder, run = make_model(), tmp_path / "model", tmp_path / "run"
    save_model(model, folder, tokenizer)
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    weights = {f"network.{name}": value for name, value in model.state_dict().items()}
    torch.save({"vatt_config": model.config.to_dict(), "state_dict": weights}, checkpoint)
    tokenizer.save(run / "tokenizer.json")
    cache, commit = tmp_path / "hub", "a" * 40
    save_model(model, cache / "models--org--tiny" / "snapshots" / commit, tokenizer)
    (cache / "models--org--tiny" / "refs").mkdir()
    (cache / "models--org--tiny" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    expected = extractor.encode_text("a dog barks")
    (checkpoint.parent / "model").mkdir()
    save_model(model, checkpoint.parent / "model")  # the tokenizer of the run is two folders above
    for source in (folder, str(folder), checkpoint, checkpoint.parent / "model", "org/tiny"):
        loaded = FeatureExtractor.from_pretrained(source, device="cpu")
        assert close(loaded.encode_text("a dog barks"), expected), source


def test_a_model_that_is_not_to_be_had_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="org/absent is neither a file .* no connection .*OFFLINE"):
        FeatureExtractor.from_pretrained("org/absent")
    with pytest.raises(ValueError, match="no model at .*absent: give a model folder, a .ckpt"):
        FeatureExtractor.from_pretrained(tmp_path / "absent")
    save_model(make_model(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="is a bert of transformers, no VATT, which is needed"):
        FeatureExtractor.from_pretrained(tmp_path)  # its modules.json says that it is a VATT
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ValueError, match="model_type 'bert' is not one of clip, "):
        FeatureExtractor.from_pretrained(tmp_path)


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_a_checkpoint_from_elsewhere_is_refused_and_runs_no_code(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "bomb.ckpt")
    with pytest.raises(ValueError, match="without running code from it"):
        FeatureExtractor.from_pretrained(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of vatt"):
        FeatureExtractor.from_pretrained(tmp_path / "other.ckpt")


def test_a_bar_is_drawn_on_request_only(
    extractor: FeatureExtractor,
    media: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vatt.system.progress, "LINE_SECONDS", 0.0)
    extractor.encode_video(media / "still.png")
    extractor.extract(media / "still.png")
    assert capsys.readouterr().err == ""
    extractor.encode_video([media / "still.png"], show_progress=True)
    extractor.extract(media / "still.png", show_progress=True)
    shown = capsys.readouterr().err
    assert "encode: 1 of 1 videos" in shown
    assert "extract: 1 of 1 windows" in shown
