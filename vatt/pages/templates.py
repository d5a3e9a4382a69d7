"""Pages from Jinja2 templates in this folder; all values are escaped."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from vatt.system.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Clip in `clips.html`; addresses are file names or data URIs.

    Args:
        name: Heading.
        value: Number beside the heading.
        video: Address of an mp4 file, or empty.
        sound: Address of the sound, if the video does not contain it.
        pictures: Addresses of further pictures.
        lines: Texts below the heading, with numbers beside them.
    """

    name: str = ""
    value: str = ""
    video: str = ""
    sound: str = ""
    pictures: Sequence[str] = ()
    lines: Sequence[tuple[str, str]] = ()


def write_html(path: Path, template: str, **values: Any) -> None:
    """Writes a page that needs no network; an interrupted call leaves no partial file.

    Args:
        path: HTML file to write.
        template: Name of the template.
        values: Variables of the template; a missing one raises an error.
    """
    write_atomically(path, render(template, **values).encode("utf-8"))


def render(template: str, **values: Any) -> str:
    """Text of a page, or of a part of one.

    Args:
        template: Name of the template.
        values: Variables of the template; a missing one raises an error.
    """
    text: str = _environment().get_template(template).render(values)
    return text


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    files = resources.files("vatt.pages")
    environment = Environment(
        loader=PackageLoader("vatt.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals["source"] = lambda name: Markup(files.joinpath(name).read_text("utf-8"))
    environment.filters |= {"percent": percent, "duration": duration}
    return environment


def data_uri(content: bytes, media_type: str) -> str:
    """Data URI of some content."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def percent(value: float, format_spec: str = ".1f") -> str:
    """Percentage such as `71.3 %`, with a non-breaking space."""
    return f"{value:{format_spec}}\u00a0%"


def duration(seconds: float) -> str:
    """Time in words: "8.0 s", "5 min 12 s", "1 h 4 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}\u00a0s"
    if minutes < 60:
        return f"{minutes}\u00a0min {rest}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"
