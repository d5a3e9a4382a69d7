"""Equality with the official implementation: every array of every reference pack."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_packs import (
    Differences,
    Pack,
    Recorder,
    archives,
    classifier_packs,
    loss_config,
    model_packs,
    named,
    pretraining_packs,
    settings_of,
    training_packs,
)
from reference_runs import (
    check_gradients,
    check_moments,
    check_spline,
    classifier_inputs,
    dead_weights,
    in_double,
    intermediates,
    masks_of,
    nearest,
    official_losses,
    on_another_grid,
    optimizer_of,
    raw_input,
    train,
    weighted,
    whole_batch,
)

from vatt.network.classification_loss import average_views, classification_loss, probabilities
from vatt.network.contrastive_loss import ContrastiveLoss, LossOutput
from vatt.network.log_mel import LogMel
from vatt.official.convert import read_optimizer_state

OUTPUTS = {  # official output of the head → names of ours, whichever head the model has
    "video/toaud": ("video_va", "video_joint"),
    "video/totxt": ("video_vt", "video_joint"),
    "audio/tovid": ("audio_va", "audio_joint"),
    "text/tovid": ("text_vt", "text_joint"),
}
HEAD_PARTS = {  # official layer of the head → our modules, whichever the model has
    "vid_to_hid": ("head.video_hidden.linear",),
    "hid_to_va": ("head.video_va",),
    "va_to_vat": ("head.va_vt",),
    "aud_to_va": ("head.audio_va",),
    "txt_to_vat": ("head.text_vt", "head.joint.text"),
    "vid_to_vat": ("head.joint.video",),
    "aud_to_vat": ("head.joint.audio",),
}
FORMS = ("asymmetric", "symmetric")


@pytest.fixture(params=named(model_packs()), scope="module")
def pack(request: pytest.FixtureRequest) -> Pack:
    return Pack(request.param)


@pytest.fixture(params=named(pretraining_packs()), scope="module")
def pretrained(request: pytest.FixtureRequest) -> Pack:
    return Pack(request.param)


@pytest.fixture(params=named(classifier_packs()), scope="module")
def classifier(request: pytest.FixtureRequest) -> Pack:
    return Pack(request.param)


def test_every_intermediate_equals_the_official_one(pack: Pack) -> None:
    recorder = Recorder(pack.model)
    differences = Differences()
    for modality in pack.modalities:
        prefix = "act/base/" if pack.is_classifier else f"act/{modality}/"
        stages = intermediates(pack, modality, recorder)
        everything = list(recorder.everything())
        for key in [key for key in pack.io if key.startswith(prefix)]:
            reference = pack.io[key]
            ours = stages.get(key.removeprefix(prefix))
            if ours is None:  # a stage of a kind of tower that this test does not know by name
                ours = nearest(everything, reference)
            if modality == "text" and reference.ndim == 3:  # ours leaves out what all captions pad
                reference = reference[:, : ours.shape[1]]
            differences.add(key, ours, reference)
    for key in {"act/features_pooled"} & set(pack.io):
        differences.add(key, stages["features_pooled"], pack.io[key])
    differences.check(at_least=4)


def test_every_output_equals_the_official_one(pretrained: Pack) -> None:
    pack, model, differences = pretrained, pretrained.model, Differences()
    recorder = Recorder(model)
    with torch.no_grad():
        output = model(whole_batch(pack))
        for modality in pack.modalities:
            prefix = f"out/{modality}/"
            differences.add(
                f"{prefix}features_pooled",
                output.features[modality],
                pack.io[f"{prefix}features_pooled"],
            )
            tokens = model.encode_tokens(modality, raw_input(pack, modality))
            reference = pack.io[f"{prefix}features"]
            tokens = tokens[:, -reference[0, ..., 0].size :] if modality != "text" else tokens
            if modality == "text":
                tokens = tokens if model.config.text.tower == "linear" else tokens[:, 1:]
                reference = reference[:, : tokens.shape[1]]
            differences.add(f"{prefix}features", tokens, reference)
    for theirs, names in OUTPUTS.items():
        ours = next(output.embeddings[name] for name in names if name in output.embeddings)
        key = f"out/head_stack/bridge/{theirs}"
        differences.add(key, ours, pack.io[key])
    for key in [key for key in pack.io if key.startswith("act/head/")]:
        names = HEAD_PARTS[key.removeprefix("act/head/")]
        ours = next(recorder.outputs[name][0] for name in names if name in recorder.outputs)
        differences.add(key, ours, pack.io[key])
    differences.check(at_least=10)


def test_masks_of_words_are_the_official_ones(pretrained: Pack) -> None:
    ids = raw_input(pretrained, "text")
    np.testing.assert_array_equal(ids != 0, pretrained.io["out/text/attention_mask"] > 0)
    np.testing.assert_array_equal(ids, pretrained.io["out/text/word_ids"])


def test_similarities_equal_the_official_ones(pretrained: Pack) -> None:
    with torch.no_grad():
        embeddings = pretrained.model(whole_batch(pretrained)).embeddings
    unit = {name: F.normalize(value, dim=-1) for name, value in embeddings.items()}
    ours = {theirs: next(unit[n] for n in names if n in unit) for theirs, names in OUTPUTS.items()}
    temperature = loss_config(pretrained.settings).start_temperature
    words_BBK = torch.einsum("bd,ckd->bck", ours["video/totxt"], ours["text/tovid"]) / temperature
    sounds_BB = ours["video/toaud"] @ ours["audio/tovid"].T / temperature
    differences = Differences()
    differences.add("sim/vid_txt", words_BBK, pretrained.io["sim/vid_txt"])
    differences.add("sim/vid_aud", sounds_BB, pretrained.io["sim/vid_aud"])
    differences.check()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_losses_equal_the_official_ones(pretrained: Pack, form: str, masked: bool) -> None:
    pack, differences = pretrained, Differences()
    prefix = f"loss/{form}_nce/{'mask' if masked else 'nomask'}/"
    loss = ContrastiveLoss(loss_config(pack.settings, form=form))
    batch = whole_batch(pack, **masks_of(pack, masked=masked))
    with torch.no_grad():
        result: LossOutput = loss(pack.model(batch), batch)
    for key in [key for key in pack.io if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        ours = result.total if name == "total" else weighted(pack, result.losses, name)
        differences.add(key, ours, pack.io[key])
    differences.check(at_least=3)


def test_gradients_of_the_masked_loss_equal_the_official_ones(pretrained: Pack) -> None:
    pack, differences = pretrained, Differences()
    batch = whole_batch(pack, **masks_of(pack, masked=True))
    loss, double = ContrastiveLoss(loss_config(pack.settings)), in_double(pack)
    pack.model.zero_grad()
    result = loss(pack.model(batch), batch)
    result.total.backward()
    loss(double(batch), batch).total.backward()
    differences.add("loss_fn/total_loss", result.total, pack.io["loss_fn/total_loss"])
    for key in [key for key in pack.io if re.search(r"loss_fn/bridge_losses/.*_nce/", key)]:
        ours = weighted(pack, result.losses, key.rpartition("/")[2])
        differences.add(key, ours, pack.io[key])
    differences.check(at_least=3)
    check_gradients(pack, double)


def test_batch_norm_in_training_equals_the_official_one(pretrained: Pack) -> None:
    pack, differences = pretrained, Differences()
    head = copy.deepcopy(pack.model.head).train()
    embeddings = {}
    with torch.no_grad():
        for modality in pack.modalities:
            features = torch.from_numpy(pack.io[f"out/{modality}/features_pooled"])
            for space, value in head(modality, features).items():
                embeddings[f"{modality}_{space}"] = value
    for theirs, names in OUTPUTS.items():
        ours = next(embeddings[name] for name in names if name in embeddings)
        differences.add(theirs, ours, pack.io[f"head_train/{theirs}"])
    buffers = {f"head.{name}": value for name, value in head.named_buffers()}
    by_name = {
        name.rpartition("_bridge_heads/0/")[2]: part for name, (part, _) in pack.parts.items()
    }
    for key in [key for key in pack.io if key.startswith("head_train/new_")]:
        part = by_name[key.removeprefix("head_train/new_")]
        differences.add(key, buffers[part.ours], pack.io[key])
    differences.check(at_least=8)


def test_a_classifier_equals_the_official_one(classifier: Pack) -> None:
    pack, differences = classifier, Differences()
    multi_label = pack.model.config.classifier.multi_label
    pack.model.zero_grad()
    logits = pack.model(classifier_inputs(pack, pack.io)).logits
    targets = torch.from_numpy(pack.io["in/one_hot"])
    loss = classification_loss(logits, targets, multi_label=multi_label)
    loss.backward()
    double = in_double(pack)
    exact = double(classifier_inputs(pack, pack.io)).logits
    classification_loss(exact, targets.double(), multi_label=multi_label).backward()
    differences.add("logits", logits, pack.io["out/logits"])
    ours = probabilities(logits, multi_label=multi_label)
    differences.add("probabilities", ours, pack.io["out/probabilities"])
    differences.add("loss", loss, pack.io["loss_fn/total_loss"])
    differences.check(at_least=3)
    check_gradients(pack, double)


@pytest.mark.parametrize("path", named(archives("num_test_samples", "out/logits")))
def test_views_of_a_clip_are_averaged_as_officially(path: Path) -> None:
    pack, values, differences = Pack(path.parent), dict(np.load(path)), Differences()
    with torch.no_grad():
        logits = pack.model(classifier_inputs(pack, values)).logits
    logits = average_views(logits, int(values["num_test_samples"]))
    ours = probabilities(logits, multi_label=pack.model.config.classifier.multi_label)
    differences.add("logits", logits, values["out/logits"])
    differences.add("probabilities", ours, values["out/probabilities"])
    differences.check()


@pytest.mark.parametrize("folder", named(training_packs()))
def test_weights_after_training_steps_equal_the_official_ones(folder: Path) -> None:
    pack, differences = Pack(folder, "ckpt_before"), Differences()
    (after_folder,) = folder.glob("ckpt_after*")
    after = Pack(folder, after_folder.name)
    before = {name: value.clone() for name, value in pack.model.state_dict().items()}
    state = read_optimizer_state(after.bundle, after.model.config)
    config, double = optimizer_of(pack.settings, state), in_double(pack)
    optimizer, rates = train(pack, pack.model, config, differences)
    train(pack, double, config, Differences())
    ours, theirs, moved = pack.model.state_dict(), after.model.state_dict(), sum(rates)
    dead = dead_weights(pack, double)
    for name, (part, _) in pack.parts.items():
        mine, official, start = (pack.theirs(name, of[part.ours]) for of in (ours, theirs, before))
        if name in dead:
            assert ((mine - start)[dead[name]].abs() <= moved * 1.001).all(), name
            mine = mine.where(~dead[name], official)
        # a mean follows the dead biases before it
        rounding = moved if name.endswith("moving_mean") else moved / 100
        differences.add(name, mine, official.numpy(), rounding=rounding)
    assert int(state["steps"]) == len(rates)
    differences.check(at_least=30)
    check_moments(pack, optimizer, state, dead)


@pytest.mark.parametrize("path", named(archives("emb/video/toaud", "emb/text/tovid")))
def test_losses_of_random_embeddings_and_their_gradients_equal_the_official_ones(
    path: Path,
) -> None:
    values, differences = dict(np.load(path)), Differences()
    for key in [key for key in values if key.startswith("val/") and key.endswith("/total")]:
        _, form, weights, mask, _ = key.split("/")
        embeddings = {
            name.removeprefix("emb/"): torch.from_numpy(value).requires_grad_()
            for name, value in values.items()
            if name.startswith("emb/")
        }
        case = f"{form}/{weights}/{mask}"
        losses = official_losses(values, embeddings, form, mask, with_audio_text="aud" in weights)
        total = sum(loss * weight for loss, weight in losses.values())
        total = total / sum(weight for _, weight in losses.values())
        total.backward()
        differences.add(key, total, values[key])
        for name, (loss, weight) in losses.items():
            differences.add(f"{case}/{name}", loss * weight, values[f"val/{case}/{name}"])
        for name in [name for name in values if name.startswith(f"grad/{case}/")]:
            gradient = embeddings[name.removeprefix(f"grad/{case}/")].grad
            differences.add(name, gradient, values[name])
    differences.check(at_least=20)


@pytest.mark.parametrize("path", named(archives("mel/wav", "mel/normalized")))
def test_log_mel_equals_the_official_one(path: Path) -> None:
    values, differences = np.load(path), Differences()
    front_end = LogMel(sample_rate=48_000)
    waveform = torch.from_numpy(values["mel/wav"])[None]
    differences.add("mel/log_mel", front_end.log_mel(waveform), values["mel/log_mel"])
    differences.add("mel/normalized", front_end(waveform), values["mel/normalized"])
    differences.check()


@pytest.mark.parametrize("path", named(archives("video/in", "spt/in")))
@pytest.mark.parametrize("kind", ["video", "wat", "spt"])
def test_positions_on_another_grid_equal_the_official_ones(path: Path, kind: str) -> None:
    values = dict(np.load(path))
    audio = "spt" if kind == "spt" else "wat"  # the video is for the waveform model's weights
    results = []
    for folder in pretraining_packs():
        backbone = settings_of(folder)["backbone_config"]
        same_weights = str(backbone.get("audio_backbone")).startswith(audio)
        if same_weights and folder.parent == path.parent.parent:
            results.append(on_another_grid(Pack(folder), kind, values))
    assert results, "no model pack with these weights lies beside"
    min(results, key=lambda differences: len(differences.lines)).check(at_least=2)


@pytest.mark.parametrize("path", named(archives("restore_interpolate_pos/in")))
def test_resized_tables_equal_the_official_ones(path: Path) -> None:
    values, differences = dict(np.load(path)), Differences()
    table = torch.from_numpy(values["restore_interpolate_pos/in"])
    for key in [key for key in values if "interpolate_pos/out" in key]:
        check_spline(differences, key, table, values[key])
    differences.check(at_least=4)


def test_packs_were_found() -> None:
    assert len(model_packs()) >= 5
    assert len(training_packs()) >= 1
