"""The commands `vatt shards build` and `vatt shards check`."""

from pathlib import Path
from typing import Annotated, Literal

from vatt.config.checks import at_least
from vatt.config.options import Reencoding
from vatt.errors import UserError
from vatt.system.machine import num_cores

Workers = Annotated[int, at_least(0)]
SAMPLES_PER_SHARD = 500
SHARD_BYTES = 1_000_000_000


def build(
    source: Path,
    out: Annotated[Path | None, "-o", "--out"] = None,
    *,
    captions: Annotated[Path | None, "FILE"] = None,
    samples_per_shard: Annotated[int, at_least(1)] = SAMPLES_PER_SHARD,
    shard_bytes: Annotated[int, "BYTES", at_least(1)] = SHARD_BYTES,
    order: Literal["shuffled", "sorted"] = "shuffled",
    check_media: bool = True,
    workers: Workers = num_cores(),  # noqa: B008 - the machine does not change
    reencoding: Reencoding | None = None,
) -> int:
    """Packs media with captions into shards, or writes the indexes of existing tars.

    Media files are copied. With --short-side, videos are re-encoded as H.264/AAC mp4 for fast
    reading of clips, with the same times and content. Run the same command again to continue a
    stopped build.

    Args:
        source: Folder of media, with captions.jsonl, .csv or .parquet, or with .srt, .vtt, .ass,
            Whisper's .json or .txt beside them; or folder of tars.
        out: Folder to create. For tars, folder of the indexes. None: beside the tars.
        captions: Caption file in another place, or HowTo100M's captions (JSON or folder). None:
            those of the folder.
        samples_per_shard: Largest number of samples in a tar.
        shard_bytes: Size of the media at which a tar ends.
        order: Order of the files: by a hash of their paths, as training mixes the samples of a few
            neighbouring tars only, or by path.
        check_media: Open every file, and leave out those that cannot be opened.
        workers: Number of processes that open or encode files.
        reencoding: Re-encoding, with --short-side.
    """
    from vatt.packing.build import build_shards
    from vatt.packing.index_tars import index_shards
    from vatt.shards.places import holds_shards_only

    if holds_shards_only(source, out):
        options = {
            "captions": captions is not None,
            "no-check-media": not check_media,
            "samples-per-shard": samples_per_shard != SAMPLES_PER_SHARD,
            "shard-bytes": shard_bytes != SHARD_BYTES,
            "order": order != "shuffled",
            "short-side": reencoding is not None,
        }
        for option in (name for name, is_given in options.items() if is_given):
            raise UserError(
                f"{source} holds tar shards, which are used as they are: --{option} is for media "
                "files"
            )
        indexed = index_shards(source, out, num_workers=workers, show_progress=True)
        print(indexed)
        return int(not indexed.is_usable)
    if out is None:
        raise UserError(
            f"{source} holds no tar shards to index: if it holds media, name the folder to make, "
            f"`vatt shards build {source} OUT`"
        )
    report = build_shards(
        source,
        out,
        samples_per_shard=samples_per_shard,
        shard_bytes=shard_bytes,
        order=order,
        captions=captions,
        check_media=check_media,
        reencoding=reencoding,
        num_workers=workers,
        show_progress=True,
    )
    print(report)
    return 0


def check(
    folder: str,
    *,
    workers: Workers = num_cores(),  # noqa: B008 - the machine does not change
    time_limit: Annotated[int, "SECONDS", at_least(1)] = 60,
    csv: Annotated[Path | None, "FILE"] = None,
) -> int:
    """Decodes every sample and lists the faults; the exit code is 1 if there are any.

    Args:
        folder: Folder of shards, or an address (s3://, gs://, hf://, https://).
        workers: Number of processes that decode.
        time_limit: Time without a decoded packet after which a sample counts as hanging.
        csv: File to write with one row per sample. None: no file.
    """
    from vatt.packing.check import check_shards

    report = check_shards(
        folder,
        num_workers=workers,
        limit_seconds=time_limit,
        show_progress=True,
    )
    print(report)
    if csv is not None:
        report.write_csv(csv)
    return int(bool(report.faults))


shards = {"build": build, "check": check}
