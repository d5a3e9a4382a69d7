"""Tables of inputs, parameters and FLOPs of models, with the paper's numbers."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from vatt.config.model import VATTConfig
from vatt.config.presets import PRESETS
from vatt.errors import UserError, nearest
from vatt.models.checkpoint import read_config
from vatt.network.flops import count_flops, count_parameters, kept_tokens, published
from vatt.system.tables import text_table

DROP_RATES = (0.0, 0.25, 0.5, 0.75)  # DropToken in the paper's Table 5
Rows = list[tuple[str, ...]]


def describe(name: str) -> str:
    """Tables with the costs of one model, or a table of every preset.

    Args:
        name: Preset, model folder, run folder or checkpoint; `all` gives a table of all presets.

    Raises:
        UserError: there is no such model.
    """
    if name == "all":
        return _preset_table()
    if name not in PRESETS and not Path(name).exists():
        hint = nearest(name, [*PRESETS, "all"])
        raise UserError(
            f"no model {name!r}.{hint} Give a preset ({', '.join(PRESETS)}), all, "
            "or the path of a model folder, run folder or checkpoint."
        )
    config = PRESETS[name] if name in PRESETS else read_config(name)
    kind = {"agnostic": "one encoder for all", "specific": "an encoder each"}[config.arrangement]
    title, flops = _forward_pass(config)
    tables = (
        ("inputs of one sample", text_table(_inputs(config), num_left=4, indent="  ")),
        ("parameters", text_table(_parameters(config), indent="  ")),
        (title, text_table(flops, indent="  ")),
    )
    return "\n".join(
        [
            f"{name}: {', '.join(config.modalities)}; {kind}",
            *(f"\n{title}\n{table}" for title, table in tables),
            "\n  Training takes 3 times as many. The paper counts one of the two products of",
            "  attention, and projects patches that DropToken drops.",
        ]
    )


def _inputs(config: VATTConfig) -> Rows:
    rows: Rows = [("", "", "patch", "grid", "tokens", "in training")]
    video, audio, mel = config.video, config.audio, config.audio.spectrogram
    pictures = (
        f"{video.num_frames} frames of {video.image_size} × {video.image_size}, "
        f"{video.frame_rate:g} per second: {video.duration_seconds:.3g} s"
    )
    sound = (
        f"{audio.num_samples:,} samples at {audio.sample_rate / 1000:g} kHz: "
        f"{audio.duration_seconds:.3g} s" + (f", {mel.num_mels} mel bins" if mel else "")
    )
    patch = mel.patch_size if mel else (audio.patch_size,)
    for name, geometry, what, sizes in (
        ("video", video, pictures, video.patch_size),
        ("audio", audio, sound, patch),
    ):
        if name in config.modalities:
            kept = kept_tokens(geometry, config.drop_rate(name))
            counts = f"{geometry.num_tokens:,}", f"{kept:,}"
            rows.append((name, what, _times(sizes), _times(geometry.grid), *counts))
    if "text" in config.modalities:
        words = str(config.text.max_words)
        what = f"captions of {words} words, {config.text.vocab_size:,} in the vocabulary"
        rows.append(("text", what, "", words, words, words))
    return rows


def _parameters(config: VATTConfig) -> Rows:
    count, known = count_parameters(config), published(config)
    parts = {
        **{name: getattr(count, name) for name in config.modalities},
        "shared encoder": count.shared,
        "word vectors": count.word_vectors,
        "heads": count.heads,
        "total": count.total,
        # the paper leaves them out
        "without word vectors": count.total - count.word_vectors if count.word_vectors else 0,
        "that learn": count.trainable,
        "total in the official code": known.official_parameters,
    }
    rows: Rows = [(name, f"{number:,}") for name, number in parts.items() if number]
    if known.parameters is not None:
        rows.append(("total in the paper", f"{known.parameters / 1e6:.0f} million"))
    return rows


def _forward_pass(config: VATTConfig) -> tuple[str, Rows]:
    """Title and table of FLOPs."""
    # without a picture or sound there is nothing to drop
    rates = DROP_RATES if {"video", "audio"} & set(config.modalities) else DROP_RATES[:1]
    num_captions = 1 if config.head is None else 5
    ours = [count_flops(config, num_captions=num_captions, drop_token=rate) for rate in rates]
    as_paper = [
        count_flops(config, num_captions=num_captions, drop_token=rate, convention="paper").total
        for rate in rates
    ]
    unit, name = (1e9, "GFLOPs") if ours[0].total >= 1e9 else (1e6, "MFLOPs")
    parts = [*config.modalities, *(["heads"] if ours[0].heads else []), "total"]
    rows: Rows = [("DropToken", *(f"{rate:.0%}" for rate in rates))]
    rows += [(part, *(_tenths(getattr(one, part) / unit) for one in ours)) for part in parts]
    rows.append(("total, as the paper counts", *(_tenths(total / unit) for total in as_paper)))
    if paper := published(config).flops:
        known = (_tenths(paper[rate] / unit) if rate in paper else "–" for rate in rates)
        rows.append(("total in the paper", *known))
    captions = f" with {num_captions} captions" if num_captions > 1 else ""
    return f"forward pass of one sample{captions}, {name}", rows


def _preset_table() -> str:
    """All presets but the one for tests, as a table for a terminal and for Markdown."""
    header: tuple[str, ...] = ("preset", "parameters", "paper")
    for rate in (0.0, 0.5):
        header += (f"GFLOPs, {rate:.0%} dropped", "as the paper counts", "paper")
    rows: Rows = []
    for name, config in PRESETS.items():
        if name == "tiny":
            continue
        known = published(config)
        row: tuple[str, ...] = (name, f"{count_parameters(config).total / 1e6:.1f} M")
        row += (f"{known.parameters / 1e6:.0f} M" if known.parameters else "–",)
        for rate in (0.0, 0.5):
            ours = count_flops(config, drop_token=rate)
            as_paper = count_flops(config, drop_token=rate, convention="paper")
            row += tuple(_tenths(one.total / 1e9) for one in (ours, as_paper))
            row += (_tenths(known.flops[rate] / 1e9) if rate in known.flops else "–",)
        rows.append(row)
    aligned = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=aligned)


def _tenths(value: float) -> str:
    return "< 0.1" if 0 < value < 0.05 else f"{value:,.1f}"


def _times(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))
