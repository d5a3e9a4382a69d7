"""Tables of inputs, parameters and FLOPs of models, with the paper's numbers."""

from collections.abc import Sequence
from pathlib import Path

from vatt.config.model import VATTConfig
from vatt.config.presets import PRESETS
from vatt.errors import UserError, nearest
from vatt.models.checkpoint import read_config
from vatt.network.flops import count_flops, count_parameters, kept_tokens, published

DROP_RATES = (0.0, 0.25, 0.5, 0.75)  # DropToken in the paper's Table 5


def describe(name: str) -> list[str]:
    """Lines of a table with the costs of one model, or of every preset.

    Args:
        name: Preset, model folder or checkpoint; `all` gives a table of all presets.

    Raises:
        UserError: there is no such model.
    """
    if name == "all":
        return _preset_table()
    config = PRESETS[name] if name in PRESETS else _config_of(name)
    kind = {"agnostic": "one encoder for all", "specific": "an encoder each"}[config.arrangement]
    lines = [f"{name}: {', '.join(config.modalities)}; {kind}"]
    for title, table in (
        ("inputs of one sample", _inputs(config)),
        ("parameters", _parameters(config)),
        _forward_pass(config),
    ):
        lines += ["", title, *(f"  {line}".rstrip() for line in table)]
    return lines


def _config_of(name: str) -> VATTConfig:
    """The configuration that a model folder or checkpoint holds."""
    path = Path(name)
    if not path.exists():
        hint = nearest(name, [*PRESETS, "all"])
        raise UserError(
            f"no model {name!r}.{hint} Give a preset ({', '.join(PRESETS)}), all, "
            "or the path of a model folder or checkpoint."
        )
    return read_config(path)


def _inputs(config: VATTConfig) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "", "patch", "grid", "tokens", "in training")]
    for name, describe in (("video", _video), ("audio", _audio)):
        if name in config.modalities:
            geometry = config.video if name == "video" else config.audio
            kept = kept_tokens(geometry, config.drop_rate(name))
            counts = f"{geometry.num_tokens:,}", f"{kept:,}"
            rows.append((name, *describe(config), _times(geometry.grid), *counts))
    if "text" in config.modalities:
        words = str(config.text.max_words)
        what = f"captions of {words} words, {config.text.vocab_size:,} in the vocabulary"
        rows.append(("text", what, "", words, words, words))
    return _table(rows, num_left=4)


def _video(config: VATTConfig) -> tuple[str, str]:
    """Size of the input, and of one patch."""
    video = config.video
    what = f"{video.num_frames} frames of {video.image_size} × {video.image_size}"
    what += f", {video.frame_rate:g} per second: {video.duration_seconds:.3g} s"
    return what, _times(video.patch_size)


def _audio(config: VATTConfig) -> tuple[str, str]:
    """Size of the input, and of one patch."""
    audio, mel = config.audio, config.audio.spectrogram
    what = f"{audio.num_samples:,} samples at {audio.sample_rate / 1000:g} kHz"
    what += f": {audio.duration_seconds:.3g} s"
    if mel is None:
        return what, str(audio.patch_size)
    return f"{what}, {mel.num_mels} mel bins", _times(mel.patch_size)


def _parameters(config: VATTConfig) -> list[str]:
    count, known = count_parameters(config), published(config)
    parts = {
        **{name: getattr(count, name) for name in config.modalities},
        "shared encoder": count.shared,
        "word vectors": count.word_vectors,
        "heads": count.heads,
    }
    rows = [(name, f"{number:,}") for name, number in parts.items() if number]
    rows.append(("total", f"{count.total:,}"))
    if count.word_vectors:  # the paper leaves them out
        rows.append(("  without word vectors", f"{count.total - count.word_vectors:,}"))
    rows.append(("  that learn", f"{count.trainable:,}"))
    if known.official_parameters is not None:
        rows.append(("total in the official code", f"{known.official_parameters:,}"))
    if known.parameters is not None:
        rows.append(("total in the paper", f"{known.parameters / 1e6:.0f} million"))
    return _table(rows, num_left=1)


def _forward_pass(config: VATTConfig) -> tuple[str, list[str]]:
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
    rows: list[tuple[str, ...]] = [("DropToken", *(f"{rate:.0%}" for rate in rates))]
    rows += [(part, *(_tenths(getattr(one, part) / unit) for one in ours)) for part in parts]
    rows.append(("total, as the paper counts", *(_tenths(total / unit) for total in as_paper)))
    if paper := published(config).flops:
        known = (_tenths(paper[rate] / unit) if rate in paper else "–" for rate in rates)
        rows.append(("total in the paper", *known))
    captions = f" with {num_captions} captions" if num_captions > 1 else ""
    return f"forward pass of one sample{captions}, {name}", [
        *_table(rows, num_left=1),
        "",
        "Training takes 3 times as many. The paper counts one of the two products of attention,",
        "and projects patches that DropToken drops.",
    ]


def _preset_table() -> list[str]:
    """All presets but the one for tests, as a table for a terminal and for Markdown."""
    header: tuple[str, ...] = ("preset", "parameters", "paper")
    for rate in (0.0, 0.5):
        header += (f"GFLOPs, {rate:.0%} dropped", "as the paper counts", "paper")
    rows = [header]
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = _table([rows[0], rule, *rows[1:]], num_left=1, separator=" | ")
    return [f"| {line} |" for line in lines]


def _tenths(value: float) -> str:
    return "< 0.1" if 0 < value < 0.05 else f"{value:,.1f}"


def _times(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


def _table(rows: Sequence[Sequence[str]], *, num_left: int, separator: str = "  ") -> list[str]:
    """Lines of aligned cells; columns from `num_left` on are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        separator.join(
            f"{cell:<{width}}" if number < num_left else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
