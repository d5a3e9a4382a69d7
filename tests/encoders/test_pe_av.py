"""PE-AV: the vectors of files are those of its own processor and `forward`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from foreign_models import MAX_TOKENS, save_pe_av, skip_without
from media_files import HEIGHT, KINDS, WIDTH, make_file

from vatt import FeatureExtractor
from vatt.encoders import pe_av
from vatt.encoders.encoder import BOTH
from vatt.encoders.loading import load_encoder
from vatt.encoders.pe_av import MAX_TEXT_TOKENS, PeAvEncoder
from vatt.encoders.transformers_loading import load_transformers, without_prints
from vatt.errors import CheckpointError, UserError
from vatt.media.clip import Clip
from vatt.preprocess.view import read_view

skip_without("transformers", "sentence_transformers", "timm", "torchvision")

TEXTS = ["a dog barks", "someone plays the guitar in a small room " * 4]
SPACES = {"video": ("va", "vt"), "audio": ("va", "at"), "text": ("at", "avt", "vt"), BOTH: ("avt",)}


def load_pe_av(folder: Path, model_type: str = "pe_audio_video", **options: Any) -> PeAvEncoder:
    return PeAvEncoder.load(folder, model_type, **{"device": "cpu", **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pe_av(tmp_path_factory.mktemp("pe_av"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> PeAvEncoder:
    return load_pe_av(folder)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "plain.mp4"
    make_file(path, KINDS["plain.mp4"])
    return path


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Any]]:
    """Three windows of unlike size and length, and texts, for each modality."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(6, 20, 30), (5, 36, 24), (6, 24, 30)]
    video = [
        torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8) for size in sizes
    ]
    audio = [torch.randn(length, generator=generator) / 4 for length in (1000, 700, 1000)]
    texts = [*TEXTS, "rain falls"]
    pairs = list(zip(video, audio, strict=True))
    return {"video": video, "audio": audio, "text": texts, BOTH: pairs}


def forward(folder: Path, clip: Clip, texts: list[str], **options: Any) -> Any:
    """Outputs of the model for texts, each with the same clip, by transformers alone."""
    transformers = load_transformers()
    with without_prints():
        model = transformers.PeAudioVideoModel.from_pretrained(folder, dtype=torch.float32)
    # as when the model was published; `forward` would take the text behind the last norm
    model.text_model.config.tie_last_hidden_states = False
    processor = transformers.AutoProcessor.from_pretrained(folder)
    video, audio = clip.video, clip.audio
    assert video is not None
    assert audio is not None
    pictures = processor.video_processor([video.numpy()] * len(texts), return_tensors="pt")
    sounds = [audio.numpy()] * len(texts)
    sound = processor.feature_extractor(sounds, sampling_rate=8_000, return_tensors="pt")
    words = processor.tokenizer(texts, padding=True, return_tensors="pt", **options)
    with torch.no_grad():
        return model.eval()(
            **pictures,
            **sound,
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
        )


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize("num_frames", [None, 16])
def test_vectors_of_a_file_are_those_of_its_own_processor_and_forward(
    num_frames: int | None, folder: Path, file: Path, tmp_path: Path
) -> None:
    if num_frames is not None:
        folder = save_pe_av(tmp_path / "16-frame", num_frames)
    encoder = load_pe_av(folder, window_seconds=2.5)
    assert encoder.video is not None
    assert encoder.video.num_frames == (num_frames or 5)
    clip = read_view(str(file), start_seconds=0.0, video=encoder.video, audio=encoder.audio)
    assert clip.video.shape == (num_frames or 5, HEIGHT, WIDTH, 3)
    outputs = forward(folder, clip, TEXTS, truncation=True)
    expected = {
        ("video", "va"): outputs.video_embeds,
        ("video", "vt"): outputs.video_embeds,
        ("audio", "va"): outputs.audio_embeds,
        ("audio", "at"): outputs.audio_embeds,
        (BOTH, "avt"): outputs.audio_video_embeds,
        ("text", "at"): outputs.text_audio_embeds,
        ("text", "vt"): outputs.text_video_embeds,
        ("text", "avt"): outputs.text_audio_video_embeds,
    }
    extractor = FeatureExtractor(encoder)
    media = extractor.extract(file, modalities=["video", "audio", BOTH], space="all")
    with pytest.warns(UserWarning, match=f"the model reads {MAX_TOKENS} "):
        texts = {space: extractor.encode_text(TEXTS, space=space) for space in SPACES["text"]}
    for (modality, space), vectors in expected.items():
        found = texts[space] if modality == "text" else media[f"{modality}_{space}"][:1]
        assert_near(found, F.normalize(vectors, dim=-1)[: len(found)])


def test_features_are_the_pooled_outputs_before_the_heads(
    folder: Path, encoder: PeAvEncoder, file: Path
) -> None:
    clip = read_view(str(file), start_seconds=0.0, video=encoder.video, audio=encoder.audio)
    outputs = forward(folder, clip, TEXTS, truncation=True)
    for modality, row, pooled in (
        ("video", clip.video, outputs.video_outputs.pooler_output),
        ("audio", clip.audio, outputs.audio_outputs.pooler_output),
        (BOTH, (clip.video, clip.audio), outputs.audio_video_outputs.pooler_output),
    ):
        with torch.inference_mode():
            assert_near(encoder.encode(modality, [row], [None])[None], pooled[:1])
        assert pooled.shape[1] == encoder.width(modality, None)


def test_long_texts_are_cut_to_the_length_of_the_published_code(
    folder: Path, tmp_path: Path
) -> None:
    """Their tokenizer itself allows thousands of tokens."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 8192}))
    encoder = load_pe_av(copy)
    long, longer = "rain falls on a street " * 150, "rain falls on a street " * 200
    assert encoder.max_tokens == MAX_TEXT_TOKENS < encoder.count_tokens(long)
    clip = Clip(
        video=torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
        audio=torch.zeros(640),
        video_coverage=1.0,
        audio_coverage=1.0,
        start_seconds=0.0,
    )
    outputs = forward(copy, clip, ["rain", long], truncation=True, max_length=512)
    with torch.inference_mode():
        found = encoder.encode("text", ["rain", long, longer], ["avt"])["avt"]
    assert_near(found[:2], outputs.text_audio_video_embeds)
    assert_near(found[2], found[1])


def test_text_is_pooled_as_mteb_pools_it(folder: Path, encoder: PeAvEncoder) -> None:
    """mteb takes the last norm out of the text tower, for parity with Meta's code."""
    with without_prints():
        model = load_transformers().PeAudioVideoModel.from_pretrained(folder, dtype=torch.float32)
    model.text_model.final_norm = torch.nn.Identity()
    words = encoder.processor.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = model.eval().text_model(words).last_hidden_state[:, 0]
        assert_near(encoder.encode("text", TEXTS[:1], [None])[None], expected)


@pytest.mark.parametrize("modality", SPACES)
def test_vectors_of_a_batch_are_those_of_its_rows(
    modality: str, encoder: PeAvEncoder, rows: dict[str, list[Any]]
) -> None:
    spaces = [None, *SPACES[modality]]
    assert encoder.spaces(modality) == SPACES[modality]
    with torch.inference_mode():
        batch = encoder.encode(modality, rows[modality], spaces)
        for place, row in enumerate(rows[modality]):
            one = encoder.encode(modality, [row], spaces)
            for space in spaces:
                assert one[space].shape == (1, encoder.width(modality, space))
                assert_near(batch[space][place], one[space][0])
    for vectors in batch.values():  # rows differ, so that a mix-up would be seen
        assert vectors.dtype == torch.float32
        assert (vectors[0] - vectors[1]).abs().max() > 0.1


@pytest.mark.parametrize(("frames_per_pass", "most"), [(4, 4), (7, 6), (13, 12)])
def test_wide_windows_pass_the_picture_tower_in_parts(
    frames_per_pass: int,
    most: int,
    encoder: PeAvEncoder,
    rows: dict[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with torch.inference_mode():
        whole = encoder.encode(BOTH, rows[BOTH], ["avt"])["avt"]
    monkeypatch.setattr(pe_av, "FRAMES_PER_PASS", frames_per_pass)
    passed: list[int] = []
    tower = encoder.model.audio_video_encoder.embedder.video_encoder.embedder.vision_model
    hook = tower.timm_model.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    with torch.inference_mode():
        parts = encoder.encode(BOTH, rows[BOTH], ["avt"])["avt"]
    hook.remove()
    assert_near(parts, whole)
    assert (max(passed), sum(passed)) == (most, 17)
    assert "forward" not in vars(tower)


def test_bfloat16_is_near_float32(
    folder: Path, encoder: PeAvEncoder, rows: dict[str, list[Any]]
) -> None:
    half = load_pe_av(folder, dtype="bfloat16")
    for modality, spaces in SPACES.items():
        with torch.inference_mode():
            exact = encoder.encode(modality, rows[modality], spaces)
            near = half.encode(modality, rows[modality], spaces)
        for space in spaces:
            assert near[space].dtype == torch.float32
            assert F.cosine_similarity(near[space], exact[space]).min() > 0.99
            assert not torch.equal(near[space], exact[space])


@pytest.mark.parametrize(
    ("part", "modality", "space"), [("audio", "audio", "at"), ("video", "video", "vt")]
)
def test_a_part_for_one_modality_and_text_has_the_same_vectors(
    part: str,
    modality: str,
    space: str,
    encoder: PeAvEncoder,
    rows: dict[str, list[Any]],
    tmp_path: Path,
) -> None:
    transformers, whole = load_transformers(), encoder.processor
    getattr(encoder.model, f"{part}_model").save_pretrained(tmp_path)
    if part == "audio":
        transformers.PeAudioProcessor(whole.feature_extractor, whole.tokenizer).save_pretrained(
            tmp_path
        )
    else:
        transformers.PeVideoProcessor(
            video_processor=whole.video_processor, tokenizer=whole.tokenizer
        ).save_pretrained(tmp_path)
    alone = load_pe_av(tmp_path, f"pe_{part}")
    assert alone.modalities == (modality, "text")
    assert (alone.video is None, alone.audio is None) == (part == "audio", part == "video")
    for name in (modality, "text"):
        assert alone.spaces(name) == (space,)
        with torch.inference_mode():
            assert_near(
                alone.encode(name, rows[name], [space])[space],
                encoder.encode(name, rows[name], [space])[space],
            )
    with pytest.raises(UserError, match=f"this model has {modality} and text, not video with"):
        alone.check_modality(BOTH)


def test_windows_are_as_long_as_asked_at_the_rate_of_the_model(folder: Path) -> None:
    encoder = load_pe_av(folder)
    assert encoder.video is not None
    assert encoder.audio is not None
    assert (encoder.video.num_frames, encoder.video.frame_rate) == (20, 2.0)
    assert (encoder.audio.num_samples, encoder.audio.sample_rate) == (80_000, 8_000)
    as_trained = load_pe_av(folder, frame_rate=30, window_seconds=4)
    assert as_trained.video is not None
    assert (as_trained.video.num_frames, as_trained.video.frame_rate) == (120, 30.0)
    with pytest.raises(UserError, match=r"frame_rate must be positive|must be above 0"):
        load_pe_av(folder, frame_rate=-1.0)


def test_digest_is_of_weights_processor_and_frame_rate_and_not_of_the_place(
    folder: Path, encoder: PeAvEncoder, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_pe_av(copy).digest() == encoder.digest()
    settings = json.loads((copy / "processor_config.json").read_text())
    settings["video_processor"]["image_mean"] = [0.4, 0.5, 0.5]
    (copy / "processor_config.json").write_text(json.dumps(settings))
    assert load_pe_av(copy).digest() != encoder.digest()
    assert load_pe_av(folder, frame_rate=30).digest() != encoder.digest()
    other = load_pe_av(folder, window_seconds=5)
    assert other.digest() == encoder.digest()
    with torch.no_grad():
        other.model.audio_video_head.proj.weight[0, 0] += 1e-3
    assert other.digest() != encoder.digest()


def test_texts_without_words_have_no_tokens(encoder: PeAvEncoder) -> None:
    assert [encoder.count_tokens(text) for text in ("", " \n", "a dog")] == [0, 0, 4]
    assert encoder.count_tokens(TEXTS[1]) > encoder.max_tokens == MAX_TOKENS


def test_a_folder_of_any_kind_of_pe_av_loads_by_itself(folder: Path) -> None:
    encoder = load_encoder(folder, device="cpu")
    assert isinstance(encoder, PeAvEncoder)
    extractor = FeatureExtractor(encoder)
    cosines = extractor.similarity(
        text=["a dog barks", "rain"], audio=[torch.ones(800)] * 3, sample_rate=8_000
    )
    assert cosines.shape == (2, 3)
    assert "spaces va, vt, at, avt" in repr(extractor)


def test_models_with_vectors_of_each_moment_only_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "frames")
    settings = json.loads((copy / "config.json").read_text())
    settings["architectures"] = ["PeAudioFrameLevelModel"]
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="a vector for each 40 ms of sound and none for a"):
        load_pe_av(copy, "pe_audio")


def test_a_processor_without_sound_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match="no processor of texts and video and sound that can"):
        load_pe_av(copy)


@pytest.mark.parametrize("num_frames", [None, 16])
def test_windows_end_with_the_file(
    num_frames: int | None, folder: Path, file: Path, tmp_path: Path
) -> None:
    """A file of 3 s in a window of 10 s, and the last of two windows of 2 s."""
    if num_frames is not None:
        folder = save_pe_av(tmp_path / "16-frame", num_frames)
    encoder = load_pe_av(folder)
    whole = FeatureExtractor(encoder).encode_video_audio(file)
    exact = FeatureExtractor(load_pe_av(folder, window_seconds=3.0)).encode_video_audio(file)
    assert_near(whole, exact)
    features = FeatureExtractor(encoder).extract(file, window_seconds=2.0)
    clip = read_view(
        str(file),
        start_seconds=2.0,
        video=encoder.video.of_length(1.0) if encoder.video else None,
        audio=None,
    )
    with torch.inference_mode():
        last = encoder.encode("video", [clip.video], ["vt"])["vt"]
    assert_near(features["video_vt"][1], F.normalize(last, dim=-1)[0])
    assert features.end_seconds.tolist() == pytest.approx([2.0, 3.0])


def test_sentence_transformers_and_mteb_take_it_in_the_space_of_both(
    encoder: PeAvEncoder, file: Path
) -> None:
    from vatt import MtebModel
    from vatt.sentence_transformers import as_sentence_transformer

    extractor = FeatureExtractor(encoder)
    with pytest.raises(UserError, match="no space of all its modalities: .* va, vt, at, avt"):
        as_sentence_transformer(extractor)
    model = as_sentence_transformer(extractor, space="avt")
    assert model.modalities == ["text", ("audio", "video"), "message"]
    found = model.encode([{"video": file, "audio": file}, TEXTS[0]], convert_to_tensor=True)
    both = extractor.encode_video_audio(file)
    assert_near(found, torch.cat([both, extractor.encode_text(TEXTS[0], space="avt")]))
    with pytest.raises(UserError, match="no space 'avt' for video"):
        model.encode([file])
    pytest.importorskip("mteb")
    spaces = {
        "avt": ["video", "audio", "text"],
        "vt": ["video", "text"],
        "at": ["audio", "text"],
        "va": ["video", "audio"],
    }
    mteb_model = MtebModel(extractor, "org/pe-av")
    assert {space: mteb_model._space(names) for space, names in spaces.items()} == {
        space: space for space in spaces
    }
    assert mteb_model.mteb_model_meta.revision == encoder.digest()
