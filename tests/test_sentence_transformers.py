"""The sentence-transformers library loads our models: its vectors are those of the extractor."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign_models import save_clap, skip_without
from media_files import KINDS, make_file, make_still
from tiny_models import make_model

from vatt import (
    FeatureExtractor,
    MediaError,
    Tokenizer,
    UserError,
    load_model,
    preset,
    save_model,
)
from vatt.encoders.transformers_loading import prepare_imports
from vatt.models.checkpoint import weights_digest

skip_without("sentence_transformers", "transformers")
prepare_imports()
from sentence_transformers import SentenceTransformer  # noqa: E402

import vatt.sentence_transformers  # noqa: E402

TEXTS = ["a dog barks at the cat", "the red ring spins"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    path = tmp_path_factory.mktemp("models") / "model"
    save_model(make_model(), path, Tokenizer.train(TEXTS, 20))
    return path


@pytest.fixture(scope="module")
def extractor(folder: Path) -> FeatureExtractor:
    return FeatureExtractor.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def model(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video with sound, a sound and an image."""
    path = tmp_path_factory.mktemp("media")
    make_file(path / "dog.mp4", KINDS["mono.mp4"])
    make_file(path / "bark.m4a", KINDS["sound.m4a"])
    make_still(path / "photo.png", "png")
    return path


def close(found: Any, expected: torch.Tensor) -> bool:
    found, expected = torch.as_tensor(found).squeeze(0), expected.squeeze(0)
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)


def test_a_model_folder_loads_with_the_flag_and_runs_no_code_that_lies_in_it(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="not part of Sentence Transformers"):
        SentenceTransformer(str(folder))
    planted = tmp_path / "planted"
    save_model(load_model(folder), planted)
    (planted / "vatt").mkdir()
    for name in ("vatt.py", "sentence_transformers.py", "vatt/__init__.py"):
        (planted / name).write_text("raise SystemExit('code of the folder ran')")
    loaded = SentenceTransformer(str(planted), trust_remote_code=True, device="cpu")
    assert type(loaded[0]) is vatt.sentence_transformers.VATTModule


def test_texts_sounds_videos_and_images_get_the_vectors_of_the_extractor(
    model: SentenceTransformer, extractor: FeatureExtractor, media: Path
) -> None:
    from PIL import Image

    video, sound, photo = (str(media / name) for name in ("dog.mp4", "bark.m4a", "photo.png"))
    assert close(model.encode(TEXTS), extractor.encode_text(TEXTS))
    assert close(model.encode(TEXTS[0]), extractor.encode(TEXTS[0]))
    watched = extractor.encode_video(video)
    forms = [video, Path(video), {"video": video}, {"bytes": Path(video).read_bytes(), "path": ""}]
    assert all(close(model.encode([one]), watched) for one in forms)
    with Path(video).open("rb") as file:
        assert close(model.encode([file]), watched)
    heard = extractor.encode_audio([sound, video], space="vt")
    assert close(model.encode([sound, {"audio": video}]), heard)
    seen = extractor.encode_video(photo)
    with Image.open(photo) as image:
        for one in (photo, {"image": Path(photo)}, image, {"image": image}):
            assert close(model.encode([one]), seen)
    mixed = [TEXTS[0], video, sound, photo, TEXTS[1]]
    assert close(model.encode(mixed, batch_size=2), extractor.encode(mixed))


def test_a_video_with_a_sound_gets_the_vector_of_both(
    model: SentenceTransformer, extractor: FeatureExtractor, media: Path
) -> None:
    video, sound = media / "dog.mp4", media / "bark.m4a"
    watched = extractor.encode_video(video)
    both = extractor.encode_video_audio(video, audio=sound)
    assert ("audio", "video") in model.modalities
    assert model.supports(("audio", "video"))
    for pair in ({"video": str(video), "audio": str(sound)}, {"audio": sound, "video": video}):
        assert close(model.encode([pair]), both)
    several = [{"video": video, "audio": None}, {"video": video, "audio": sound}, TEXTS[0]]
    expected = torch.cat([watched, both, extractor.encode_text(TEXTS[0])])
    assert close(model.encode(several), expected)
    three = F.normalize(both + extractor.encode_text(TEXTS[0]), dim=-1)
    content = [
        {"type": "video", "video": video},
        {"type": "audio", "audio": sound},
        {"type": "text", "text": TEXTS[0]},
    ]
    assert close(model.encode([[{"role": "user", "content": content}]]), three)
    assert close(model.encode([{"role": "user", "content": TEXTS[0]}]), expected[2:])


def test_arrays_are_read_at_the_rates_given_with_them(
    model: SentenceTransformer, extractor: FeatureExtractor
) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (12, 30, 40, 3), dtype=np.uint8)
    wave = random.uniform(-1, 1, 9000).astype(np.float32)
    watched = extractor.encode_video(frames, frame_rate=8)
    pictures = [Image.fromarray(frame) for frame in frames]
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for array in (frames, channels_first, pictures, list(frames)):
        video = {"array": array, "video_metadata": {"fps": 8}}
        assert close(model.encode([video]), watched)
        assert close(model.encode([{"video": video}]), watched)
    heard = extractor.encode_audio(wave, sample_rate=9000, space="vt")
    for sound in ({"array": wave, "sampling_rate": 9000}, (wave, 9000)):
        assert close(model.encode([sound]), heard)
        assert close(model.encode([{"audio": sound}]), heard)
    assert close(model.encode([frames[0]]), extractor.encode_video(frames[0]))
    assert close(model.encode([channels_first[0]]), extractor.encode_video(frames[0]))


def test_arrays_without_a_rate_have_that_of_the_model_with_a_warning(
    folder: Path, extractor: FeatureExtractor
) -> None:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (12, 30, 40, 3), dtype=np.uint8)
    wave = random.uniform(-1, 1, 9000).astype(np.float32)
    config = extractor.model.config
    watched = extractor.encode_video(frames, frame_rate=config.video.frame_rate)
    heard = extractor.encode_audio(wave, sample_rate=config.audio.sample_rate, space="vt")
    for name, arrays, expected, message in (
        ("video", (frames, list(frames)), watched, "pictures without a rate count as 5 frames/s"),
        ("audio", (wave, torch.from_numpy(wave)), heard, "sound without a rate count as 8000 Hz"),
    ):
        model = vatt.sentence_transformers.load(folder, device="cpu")
        with pytest.warns(UserWarning, match=message):
            assert close(model.encode([{name: arrays[0]}]), expected)
        assert close(model.encode([{name: arrays[1]}]), expected)  # it warns once
        assert close(model.encode([arrays[0]]), expected)


def test_options_of_loading_are_those_of_the_extractor(
    folder: Path, extractor: FeatureExtractor, media: Path
) -> None:
    video, sound = str(media / "dog.mp4"), str(media / "bark.m4a")
    options = {"space": "va", "num_windows": 1, "dtype": "bfloat16"}
    model = SentenceTransformer(
        str(folder), trust_remote_code=True, device="cpu", model_kwargs=options
    )
    assert model[0].extractor.encoder.dtype == torch.bfloat16
    ours = FeatureExtractor.from_pretrained(folder, device="cpu", dtype="bfloat16")
    assert close(model.encode([video]), ours.encode_video(video, space="va", num_windows=1))
    heard = ours.encode_audio(sound, space="va", num_windows=1)
    assert close(model.encode([{"audio": sound}]), heard)
    assert model.get_embedding_dimension() == extractor.model.config.head.d_va
    assert model.modalities == ["image", "video", "audio", ("audio", "video"), "message"]
    with pytest.raises(ValueError, match="Modality 'text' is not supported"):
        model.encode(TEXTS)
    with pytest.raises(UserError, match="no space 'va' for text"):
        model.encode([TEXTS[0], video])
    with pytest.raises(UserError, match="no space 'joint', it has va, vt"):
        vatt.sentence_transformers.load(folder, space="joint", device="cpu")
    with pytest.raises(UserError, match="model_kwargs has spaces, which no model of vatt takes"):
        SentenceTransformer(
            str(folder), trust_remote_code=True, device="cpu", model_kwargs={"spaces": "va"}
        )


def test_features_of_the_backbone_are_of_one_modality(
    folder: Path, extractor: FeatureExtractor, media: Path
) -> None:
    model = vatt.sentence_transformers.load(folder, space=None, device="cpu")
    video = str(media / "dog.mp4")
    assert close(model.encode([video]), extractor.encode_video(video, space=None))
    with pytest.raises(UserError, match="text and video cannot be compared by features"):
        model.encode([video, TEXTS[0]])


def test_models_load_without_modules_json_and_are_saved_with_it(
    folder: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    save_model(load_model(folder), old, Tokenizer.load(folder / "tokenizer.json"))
    (old / "modules.json").unlink()
    model = vatt.sentence_transformers.load(old, device="cpu")
    model.save_pretrained(str(tmp_path / "new"))
    again = SentenceTransformer(str(tmp_path / "new"), trust_remote_code=True, device="cpu")
    assert np.array_equal(model.encode(TEXTS), again.encode(TEXTS))
    assert weights_digest(load_model(tmp_path / "new")) == weights_digest(load_model(folder))
    ours = FeatureExtractor.from_pretrained(tmp_path / "new", device="cpu")
    assert close(again.encode(TEXTS), ours.encode_text(TEXTS))
    (module,) = json.loads((tmp_path / "new" / "modules.json").read_text())
    assert [module] == json.loads((folder / "modules.json").read_text())


def test_the_library_knows_what_it_asks_models_for(
    model: SentenceTransformer, extractor: FeatureExtractor
) -> None:
    config = extractor.model.config
    assert model.get_embedding_dimension() == config.head.d_vt
    with pytest.warns(FutureWarning, match="renamed"):
        assert model.get_sentence_embedding_dimension() == config.head.d_vt
    assert model.max_seq_length == config.text.max_words
    assert model.similarity_fn_name == "cosine"
    assert {"text", "audio", "video", "image", ("audio", "video")} <= {*model.modalities}
    model.max_seq_length = config.text.max_words
    with pytest.raises(UserError, match="cannot be changed, got 512"):
        model.max_seq_length = 512
    assert model.tokenizer is model[0].extractor.tokenizer


def test_copies_and_pickles_keep_one_set_of_weights(model: SentenceTransformer) -> None:
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0].extractor.model is other[0].model
        assert np.array_equal(other.encode(TEXTS), model.encode(TEXTS))


def test_the_extractor_follows_the_module_to_another_device(
    folder: Path, extractor: FeatureExtractor
) -> None:
    model = vatt.sentence_transformers.load(folder, device="cpu")
    model[0].extractor.encoder.device = torch.device("meta")  # as if it had been moved
    assert close(model.encode(TEXTS), extractor.encode_text(TEXTS))
    assert model[0].extractor.device == torch.device("cpu")


def test_calls_of_the_tools_that_take_sentence_transformers_work(
    folder: Path, extractor: FeatureExtractor
) -> None:
    expected = extractor.encode_text(TEXTS)
    # LanceDB; its width is that of the vector of one letter
    lance = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    vectors = lance.encode(TEXTS, convert_to_numpy=True, normalize_embeddings=True)
    assert close(vectors.tolist(), expected)
    # LangChain
    options = {"device": "cpu", "trust_remote_code": True}
    chain = SentenceTransformer(str(folder), cache_folder=None, **options)
    assert close(chain.encode(TEXTS, show_progress_bar=False).tolist(), expected)
    # LlamaIndex
    prompts = {"query": "the cat ", "text": ""}
    llama = SentenceTransformer(
        str(folder), **options, prompts=prompts, default_prompt_name="text", cache_folder=None
    )
    named = {"batch_size": 10, "normalize_embeddings": True, "show_progress_bar": False}
    assert close(llama.encode(TEXTS, prompt_name="text", **named).tolist(), expected)
    asked = extractor.encode_text(["the cat " + text for text in TEXTS])
    assert close(llama.encode(TEXTS, prompt_name="query", **named).tolist(), asked)
    # Haystack
    hay = SentenceTransformer(
        *(str(folder),),
        **options,
        token=None,
        revision=None,
        local_files_only=False,
        truncate_dim=None,
        model_kwargs=None,
        tokenizer_kwargs=None,
        config_kwargs=None,
        backend="torch",
    )
    found = hay.encode(
        TEXTS,
        batch_size=32,
        show_progress_bar=False,
        normalize_embeddings=False,
        precision="float32",
    )
    assert close(found.tolist(), expected)
    # txtai
    assert close(lance.encode(TEXTS, pool=None, batch_size=32), expected)
    assert close(lance.encode(TEXTS, convert_to_tensor=True), expected)
    assert close(lance.encode_query(TEXTS), expected)
    assert close(lance.encode_document(TEXTS), expected)
    assert lance.encode(TEXTS, truncate_dim=4).shape == (2, 4)
    assert close(lance.similarity(vectors, vectors), expected @ expected.T)


def test_texts_are_media_only_if_they_name_a_file_that_exists_or_a_url_that_ends_so(
    model: SentenceTransformer, extractor: FeatureExtractor, media: Path, tmp_path: Path
) -> None:
    texts = ["https://example.org/the-red-ring", "the dog.mp4", "cat.webm", "the cat\n" * 3000]
    with pytest.warns(UserWarning, match="longer texts are cut"):
        assert close(model.encode(texts), extractor.encode(texts, modality="text"))
    with pytest.raises(MediaError, match="cat.mp4"):
        model.encode(["http://127.0.0.1:9/cat.mp4"])
    (tmp_path / "dog.m4v").write_bytes((media / "dog.mp4").read_bytes())
    named = model.encode([str(tmp_path / "dog.m4v")])
    assert close(named, extractor.encode_video(media / "dog.mp4"))


def test_texts_without_a_known_word_are_like_nothing(model: SentenceTransformer) -> None:
    with pytest.warns(UserWarning, match="holds no word"):
        vectors = model.encode(["the cat", "…"])
    assert not vectors[1].any()
    assert float(model.similarity(vectors[0], vectors[1])) == 0


def test_files_that_cannot_be_read_stop_or_are_skipped(
    model: SentenceTransformer,
    extractor: FeatureExtractor,
    folder: Path,
    media: Path,
    tmp_path: Path,
) -> None:
    broken, video = tmp_path / "broken.mp4", media / "dog.mp4"
    broken.write_bytes(b"no media" * 100)
    with pytest.raises(MediaError, match="broken.mp4"):
        model.encode([str(broken)])
    tolerant = vatt.sentence_transformers.load(folder, device="cpu", on_error="skip")
    inputs = [{"video": broken}, {"video": video, "audio": broken}, TEXTS[0]]
    with pytest.warns(UserWarning, match="skipped: .*broken.mp4"):
        vectors = tolerant.encode(inputs)
    assert not vectors[:2].any()
    assert close(vectors[2:], extractor.encode_text(TEXTS[0]))
    with pytest.warns(UserWarning, match="skipped: the input {'video': None} holds nothing"):
        assert not tolerant.encode([{"video": None}]).any()


def test_wrong_inputs_are_refused_in_a_sentence(model: SentenceTransformer) -> None:
    for value, error, message in (
        ({"video": None}, UserError, "input {'video': None} holds nothing to encode: leave it out"),
        ({"vido": "a.mp4"}, UserError, r"unrecognized modality keys: \['vido'\]. Expected keys"),
        ({"array": np.zeros(9)}, UserError, "must also include 'sampling_rate'"),
        (("a dog", "a cat"), TypeError, "texts are str, got tuple"),
        (3, TypeError, "a source is a path, URL, bytes, file or array, got int"),
        ({"image": np.zeros((4, 5, 3))}, UserError, "a video array is uint8"),
        ({"audio": {"array": [1, 2], "sampling_rate": 8}}, UserError, "an audio array is float"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            UserError,
            "an entry of a message is of text, image, video, audio, got 'image_url'",
        ),
    ):
        with pytest.raises(error, match=message):
            model.encode([value])


def test_training_and_other_weights_than_float32_are_refused(folder: Path) -> None:
    model = vatt.sentence_transformers.load(folder, device="cpu")
    with pytest.raises(UserError, match="cannot train models of vatt: use `vatt fit`"):
        model.train()(model.preprocess(TEXTS))
    with pytest.raises(UserError, match=r"model_kwargs=\{\"dtype\": \"bfloat16\"\}"):
        model.bfloat16().encode(TEXTS)


def test_models_without_text_or_without_a_head_load(tmp_path: Path, media: Path) -> None:
    import dataclasses

    config = dataclasses.replace(preset("tiny"), modalities=("video", "audio"))
    save_model(make_model(config), tmp_path / "mute")
    mute = vatt.sentence_transformers.load(tmp_path / "mute", device="cpu")
    assert (mute[0].space, mute.max_seq_length) == ("va", None)
    ours = FeatureExtractor.from_pretrained(tmp_path / "mute", device="cpu")
    assert close(mute.encode([media / "dog.mp4"]), ours.encode([media / "dog.mp4"]))
    save_model(make_model(dataclasses.replace(preset("tiny"), head=None)), tmp_path / "headless")
    headless = vatt.sentence_transformers.load(tmp_path / "headless", device="cpu")
    assert headless[0].space is None
    assert headless.encode([media / "bark.m4a"]).shape == (1, 32)


def test_models_of_others_load_too_and_are_saved_by_their_library(
    media: Path, tmp_path: Path
) -> None:
    clap = save_clap(tmp_path / "clap")
    model = vatt.sentence_transformers.load(clap, device="cpu")
    ours = FeatureExtractor.from_pretrained(clap, device="cpu")
    assert model.modalities == ["text", "audio", "message"]
    assert model.get_embedding_dimension() == 16
    sound = media / "bark.m4a"
    assert close(model.encode([sound, TEXTS[0]]), ours.encode([sound, TEXTS[0]]))
    with pytest.raises(UserError, match="saved by its own library"):
        model.save_pretrained(str(tmp_path / "saved"))


def test_without_the_library_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['sentence_transformers'] = sys.modules['transformers'] = None\n"
        "try:\n    import vatt.sentence_transformers\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UserError models of others need transformers: pip install")
