"""Pages for people: one file each, opened from disk, with nothing fetched and nothing trusted.

A template under `templates/` extends `base.html.j2` and fills its blocks. What a page needs travels inside of it: one style sheet,
the scripts it names, its images once per image, its data as JSON.

Texts of data sets and models are never trusted: jinja2 escapes what a template prints, `<`, `>`, `&` and `'` are escaped in JSON, and
the page's own policy lets run only the scripts whose hash it names: no handler in an attribute, no request to anywhere.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image, ImageOps

from boresight.errors import ConfigError

PLOTLY = "plotly"
"""Named among a page's scripts, it stands for plotly.js as the Python package carries it (about 4.8 MB)."""

MAX_IMAGE_SIDE = 512
"""Pixels of the longer side that an image keeps in a page; a smaller one is kept as it is."""
MAX_VERBATIM_BYTES = 32 * 1024


class Images:
    """The images of one page, each held once however often it is shown.

    A template shows one by the macro of `image.html.j2`, a script by an ``<img data-image="NAME">``; both are filled
    in and made zoomable by `base.js`.

    Args:
        max_side: pixels that the longer side keeps.
    """

    def __init__(self, *, max_side: int = MAX_IMAGE_SIDE) -> None:
        self.max_side = max_side
        self.uris: dict[str, str] = {}
        """Name → data URI, in the order of first use."""

    def add(self, source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> str:
        """Hold an image, and return the name by which the page shows it.

        Args:
            source: a file, or its bytes.
            name: the image's digest where it is known; None: the SHA-256 of its bytes.
        """
        if name is not None and name in self.uris:
            return name
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        name = name or hashlib.sha256(content).hexdigest()
        if name not in self.uris:
            self.uris[name] = data_uri(content, max_side=self.max_side)
        return name


def data_uri(content: bytes, *, max_side: int = MAX_IMAGE_SIDE) -> str:
    """An encoded image as a page carries it: small PNG, JPEG and WebP files byte for byte, others scaled down to WebP.

    Args:
        content: the encoded image.
        max_side: pixels that the longer side keeps.
    """
    with Image.open(io.BytesIO(content)) as image:
        kind = (image.format or "").lower()
        if kind in ("png", "jpeg", "webp") and max(image.size) <= max_side and len(content) <= MAX_VERBATIM_BYTES:
            return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        upright = ImageOps.exif_transpose(image)
        upright.thumbnail((max_side, max_side))
        has_alpha = "A" in upright.getbands() or "transparency" in upright.info
        buffer = io.BytesIO()
        upright.convert("RGBA" if has_alpha else "RGB").save(buffer, "WEBP", quality=82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def safe_json(value: Any) -> Markup:
    """JSON that may stand in a script element: no text in it can end the element. NaN and infinities are refused."""
    return htmlsafe_json_dumps(value, dumps=_dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def packed(value: Any) -> str:
    """JSON, compressed, in base64: a quarter to a tenth of its size, unpacked by `unpack` of `base.js`."""
    content = _dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


_dumps = json.dumps


def render_page(
    template: str,
    *,
    title: str,
    data: Any = None,
    images: Mapping[str, str] | None = None,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    connect: bool = False,
    **context: Any,
) -> str:
    """A whole page.

    Args:
        template: a file of `templates/` that extends `base.html.j2`.
        title: of the window.
        data: what the scripts read as `pageData()`.
        images: `Images.uris`.
        scripts: files of `templates/`, or `PLOTLY`, run in this order after `base.js`.
        styles: files of `templates/`, after `base.css`.
        connect: whether scripts may ask the page's own server (`boresight report --watch`); a file on disk asks nobody.
        context: what the template names.

    Raises:
        ConfigError: plotly is asked for and not installed.
    """
    sources = [_script(name) for name in ("base.js", *scripts)]
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            policy=content_policy(sources, connect=connect),
            style=Markup("\n".join(_read(name) for name in ("base.css", *styles))),
            scripts=[Markup(source) for source in sources],
            data=safe_json(data),
            image_data=safe_json(dict(images or {})),
            **context,
        )
    )


def content_policy(scripts: Sequence[str], *, connect: bool = False) -> str:
    """The page's Content-Security-Policy: these very scripts, styles and images inside the page, and nothing else."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts
    )
    rules = [
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
    ]
    rules += [f"script-src {hashes}"] + (["connect-src 'self'"] if connect else [])
    return "; ".join(rules)


def _script(name: str) -> str:
    return _plotly() if name == PLOTLY else _read(name)


@cache
def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError("Run pages need plotly: pip install 'boresight[report]'") from error
    return get_plotlyjs()


def _read(name: str) -> str:
    return (files("boresight.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("boresight.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment


def number(value: float | None, digits: int = 2) -> str:
    """A number for people: thousands grouped, an en dash for nothing."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")
