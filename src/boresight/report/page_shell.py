"""What all HTML pages share: one self-contained file each, which opens from disk and loads nothing from a network.

A template extends `base.html.j2` and fills its blocks. The page carries all it needs: one style sheet, its scripts, each image
once, and its data as JSON. Run pages (`report.page`) and comparisons (`compare.page`) are rendered by `render_page`.

Texts of data sets and models are never trusted. jinja2 escapes what a template prints; `<`, `>`, `&` and `'` are escaped in JSON; and the
page's Content-Security-Policy allows only the scripts whose hashes it lists: no inline handlers, no requests.
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

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image, ImageOps

from boresight.errors import ConfigError

PACKAGE = "boresight.report"
PLOTLY = "plotly"
"""Stands for plotly.js among a page's scripts; the Python package carries it (about 4.8 MB)."""

MAX_IMAGE_SIDE = 512
"""The longer side of an image in a page, in pixels at most; a smaller image keeps its size."""
MAX_VERBATIM_BYTES = 32 * 1024


class Images:
    """The images of one page, each held once however often it is shown.

    A template shows one by the macro of `image.html.j2`, a script by an ``<img data-image="NAME">``; `base.js` fills in both and
    makes them zoomable.

    Args:
        max_side: the longer side in pixels, at most.
    """

    def __init__(self, *, max_side: int = MAX_IMAGE_SIDE) -> None:
        self.max_side = max_side
        self.uris: dict[str, str] = {}
        """Name → data URI, in the order of first use."""

    def add(self, source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> str:
        """Add an image, and return the name by which the page shows it.

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
    """An encoded image as a data URI: small PNG, JPEG and WebP files byte for byte, others scaled down to WebP.

    Args:
        content: the encoded image.
        max_side: the longer side in pixels, at most.
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
    """JSON for a script element: no text in it can end the element. NaN and infinities are refused."""
    return htmlsafe_json_dumps(value, dumps=_dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def packed(value: Any) -> str:
    """JSON, compressed, in base64: a quarter to a tenth of its size, unpacked by `unpack` of `base.js`."""
    content = _dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


_dumps = json.dumps


def render_page(
    template: str,
    *,
    package: str = PACKAGE,
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
        template: a file that extends `base.html.j2`.
        package: the package whose folder `templates/` has the template, scripts and styles; the base files are this package's.
        title: of the window.
        data: what the scripts read as `pageData()`.
        images: `Images.uris`.
        scripts: files, or `PLOTLY`, run in this order after `base.js`.
        styles: files, after `base.css`.
        connect: whether scripts may send requests to the page's own server (`boresight report --watch`).
        context: the template's variables.

    Raises:
        ConfigError: the page needs plotly, and it is not installed.
    """
    sources = [_read("base.js"), *(_plotly() if name == PLOTLY else _read(name, package) for name in scripts)]
    return (
        _environment(package)
        .get_template(template)
        .render(
            title=title,
            policy=content_policy(sources, connect=connect),
            style=Markup("\n".join([_read("base.css"), *(_read(name, package) for name in styles)])),
            scripts=[Markup(source) for source in sources],
            data=safe_json(data),
            image_data=safe_json(dict(images or {})),
            **context,
        )
    )


def content_policy(scripts: Sequence[str], *, connect: bool = False) -> str:
    """The page's Content-Security-Policy: these scripts, and styles and images inside the page; nothing else."""
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


@cache
def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs  # here, because it is optional: the extra `report`
    except ImportError as error:
        raise ConfigError("Run pages need plotly: pip install 'boresight[report]'") from error
    return get_plotlyjs()


def _read(name: str, package: str = PACKAGE) -> str:
    return (files(package) / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(PACKAGE)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment


def number(value: float | None, digits: int = 2) -> str:
    """The number with its thousands grouped; an en dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")
