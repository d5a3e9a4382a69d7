"""Small models of others with random weights, saved as their own libraries save them.

Each function makes a model of the real class, with the real processor and a tokenizer trained on a
few sentences, in a folder. Weights are drawn with a fixed seed, and so large that other inputs give
clearly other vectors. Nothing is downloaded.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from vatt.encoders.torchvision_loading import load_torchvision
from vatt.encoders.transformers_loading import (
    load_sentence_transformers,
    load_timm,
    load_transformers,
    without_prints,
)

load_torchvision()  # before Lightning, whose packages import it without care
MAX_TOKENS = 24  # of a text, with what the tokenizer puts before and behind it
SENTENCES = (
    "a dog barks at the red ball",
    "someone plays the guitar in a small room",
    "rain falls on a street while two cars drive by",
    "a woman explains how to cut an onion",
)
# CLIP's and RoBERTa's ends of a text, and BERT's; padding is 1, as CLAP's positions assume
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
IMAGE_MEAN, IMAGE_STD = [0.48, 0.45, 0.40], [0.26, 0.26, 0.27]


def skip_without(*packages: str) -> None:
    """Skips a test, or the module that calls this at its top, if a package is not installed.

    Unlike `pytest.importorskip`, it imports nothing: transformers needs `load_transformers`.
    """
    extra = "pe-av" if {"timm", "torchvision"} & set(packages) else "hf"
    for package in packages:
        if find_spec(package) is None:
            reason = f"{package} is not installed: vatt[{extra}]"
            pytest.skip(reason, allow_module_level=True)


def make_tokenizer(max_tokens: int = MAX_TOKENS) -> Any:
    """A tokenizer of byte-level BPE that writes `<s> … </s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    ends = [("<s>", SPECIAL.index("<s>")), ("</s>", SPECIAL.index("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def save_clip(folder: Path) -> Path:
    """Saves a CLIP model: pictures of 32 × 32 pixels after a crop, and texts; a space of 16."""
    transformers = load_transformers()
    tokenizer = make_tokenizer()
    config = transformers.CLIPConfig(
        text_config={**_text_sizes(tokenizer), "max_position_embeddings": MAX_TOKENS},
        vision_config={**_sizes(), "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    processor = transformers.CLIPProcessor(
        _picture_processor("CLIPImageProcessor")(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_mean=IMAGE_MEAN,
            image_std=IMAGE_STD,
        ),
        tokenizer,
    )
    return _save(folder, transformers.CLIPModel(config), processor)


def save_siglip(folder: Path) -> Path:
    """Saves a SigLIP model, as the fixed sizes of SigLIP 2 are: pictures of 32 × 32 pixels."""
    transformers = load_transformers()
    tokenizer = make_tokenizer()
    config = transformers.SiglipConfig(
        text_config={**_text_sizes(tokenizer), "max_position_embeddings": MAX_TOKENS},
        vision_config={**_sizes(), "image_size": 32, "patch_size": 8},
    )
    processor = transformers.SiglipProcessor(
        _picture_processor("SiglipImageProcessor")(size={"height": 32, "width": 32}), tokenizer
    )
    return _save(folder, transformers.SiglipModel(config), processor)


def save_siglip2(folder: Path) -> Path:
    """Saves a SigLIP 2 model of any aspect ratio (NaFlex), with patches of 16 × 16 pixels.

    Its processor class cuts pictures to 256 patches and pads texts to 64 tokens.
    """
    transformers = load_transformers()
    tokenizer = make_tokenizer(max_tokens=64)
    config = transformers.Siglip2Config(
        text_config={**_text_sizes(tokenizer), "max_position_embeddings": 64},
        vision_config={**_sizes(), "num_patches": 16, "patch_size": 16},
    )
    pictures = _picture_processor("Siglip2ImageProcessor")(patch_size=16, max_num_patches=256)
    processor = transformers.Siglip2Processor(pictures, tokenizer)
    return _save(folder, transformers.Siglip2Model(config), processor)


def save_clap(folder: Path) -> Path:
    """Saves a CLAP model: sound of up to a second at 16 kHz, and texts; a space of 16."""
    transformers = load_transformers()
    tokenizer = make_tokenizer()
    config = transformers.ClapConfig(
        text_config={
            **_text_sizes(tokenizer),
            "max_position_embeddings": MAX_TOKENS + 2,  # RoBERTa counts from padding + 1
            "projection_dim": 16,
        },
        audio_config={
            "window_size": 2,
            "num_mel_bins": 16,
            "spec_size": 64,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "hidden_size": 32,
            "projection_dim": 16,
            "depths": [2, 2],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "patch_embeds_hidden_size": 16,
        },
        projection_dim=16,
    )
    sound = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16_000,
        hop_length=160,
        fft_window_size=512,
        max_length_s=1,
        frequency_max=8_000,
        truncation="rand_trunc",
    )
    return _save(
        folder, transformers.ClapModel(config), transformers.ClapProcessor(sound, tokenizer)
    )


def save_sentence_transformer(folder: Path) -> Path:
    """Saves a text model of sentence-transformers: BERT, the mean of its tokens, unit length."""
    transformers = load_transformers()
    load_sentence_transformers()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Normalize,
        Pooling,
        Transformer,
    )

    tokenizer = make_tokenizer()
    config = transformers.BertConfig(
        **{**_text_sizes(tokenizer), "max_position_embeddings": MAX_TOKENS}
    )
    backbone = _save(folder.with_name(f"{folder.name}-backbone"), _bert(config), tokenizer)
    words = Transformer(str(backbone))
    model = SentenceTransformer(
        modules=[words, Pooling(words.get_embedding_dimension(), "mean"), Normalize()],
        device="cpu",
    )
    model.save(str(folder))
    return folder


def save_sentence_clip(folder: Path) -> Path:
    """Saves a CLIP model as one of sentence-transformers, for pictures and texts."""
    load_transformers()
    load_sentence_transformers()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    backbone = save_clip(folder.with_name(f"{folder.name}-backbone"))
    SentenceTransformer(modules=[Transformer(str(backbone))], device="cpu").save(str(folder))
    return folder


def save_pe_av(folder: Path, num_frames: int | None = None) -> Path:
    """Saves a PE-AV model: frames of 28 × 28 pixels, sound at 8 kHz with 64 samples per token.

    Args:
        folder: Folder to write.
        num_frames: Frames that its processor takes from each video, as the published 16-frame
            models do. None: all, as the others do.
    """
    load_timm()
    transformers = load_transformers()
    tokenizer = make_tokenizer()
    with without_prints():
        model = transformers.PeAudioVideoModel(_pe_av_config(tokenizer))
    frames = transformers.PeVideoVideoProcessor(
        size={"height": 28, "width": 28},
        do_sample_frames=num_frames is not None,
        num_frames=num_frames,
        **_PE_AV_PICTURES,
    )
    sound = transformers.PeAudioFeatureExtractor(sampling_rate=8_000, hop_length=64)
    processor = transformers.PeAudioVideoProcessor(sound, frames, tokenizer)
    return _save(folder, model, processor)


# those of the published models
_PE_AV_PICTURES = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def _pe_av_config(tokenizer: Any) -> Any:
    """Settings of the published models with other sizes, in each of the configurations within."""
    transformers = load_transformers()
    settings = transformers.PeAudioVideoConfig().to_dict()
    both = settings["audio_video_config"]
    tower = {**_sizes(), "head_dim": 16, "num_key_value_heads": 2}
    for one in (both, both["audio_config"], both["video_config"]):
        one.update(tower)
    text = settings["text_config"]
    del text["layer_types"]  # one per layer
    text.update(_text_sizes(tokenizer))
    both["audio_config"]["dac_config"].update(
        encoder_hidden_size=8,
        hidden_size=32,
        codebook_dim=16,
        downsampling_ratios=[2, 4, 8],
        hop_length=64,
        sampling_rate=8_000,
    )
    both["video_config"]["vision_config"].update(
        architecture="vit_pe_core_tiny_patch16_384",
        num_classes=24,
        model_args={
            **{"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2},
            "ref_feat_shape": (2, 2),
        },
    )
    return transformers.PeAudioVideoConfig(**settings)


def _sizes() -> dict[str, int]:
    """Sizes of a transformer of two layers."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }


def _text_sizes(tokenizer: Any) -> dict[str, int]:
    """Sizes of a text tower of two layers for a tokenizer."""
    return {
        **_sizes(),
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _bert(config: Any) -> Any:
    return load_transformers().BertModel(config)


def _picture_processor(name: str) -> Any:
    """Processor of pictures: with torchvision if that is installed, else with Pillow."""
    return getattr(load_transformers(), name if find_spec("torchvision") else f"{name}Pil")


def _save(folder: Path, model: Any, processor: Any) -> Path:
    """Saves a model with drawn weights, and its processor or tokenizer."""
    _draw_weights(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _draw_weights(model: Any) -> None:
    """Draws weights; those that the library sets begin so small that all inputs look alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias") and parameter.numel() > 1:
                parameter.copy_(0.1 * drawn)
            elif parameter.ndim == 1 and parameter.numel() > 1:  # scales of norms
                parameter.copy_(1 + 0.1 * drawn)
            elif parameter.ndim > 1 and not name.endswith("alpha"):  # PE-AV divides by those
                parameter.copy_(drawn / parameter[0].numel() ** 0.5)  # of its inputs
