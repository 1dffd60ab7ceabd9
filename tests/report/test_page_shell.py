from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import ChoiceLoader, DictLoader
from PIL import Image

from boresight.files import write_whole
from boresight.report import page_shell
from boresight.report.page_shell import Images, content_policy, data_uri, packed, render_page, safe_json
from boresight.types import EncodedImage
from tests.browser import PHONE, WIDE, opened

ATTACK = "</script><img src=x onerror=\"document.title='owned'\"><!-- <script>"

TEMPLATE = """{% extends "base.html.j2" %}
{% from "image.html.j2" import image %}
{% block main %}<section><p class="text">{{ text }}</p><div class="images">{{ image(name, text) }}</div></section>{% endblock %}"""


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_image: Callable[..., EncodedImage]) -> Path:
    """A page whose every text is an attack."""
    environment = page_shell._environment.__wrapped__(page_shell.PACKAGE)
    environment.loader = ChoiceLoader([DictLoader({"attacked.html.j2": TEMPLATE}), environment.loader])
    monkeypatch.setattr(page_shell, "_environment", lambda package: environment)
    images = Images()
    source: Any = make_image("red").source
    name = images.add(source)
    made = render_page(
        "attacked.html.j2", title=ATTACK, data={ATTACK: [ATTACK]}, images=images.uris, text=ATTACK, name=name
    )
    return write_whole(tmp_path / "page.html", made)


def pixels(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def png(size: tuple[int, int], noise: bool = False) -> bytes:
    image = Image.effect_noise(size, 90) if noise else Image.new("RGB", size, "navy")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_small_images_are_kept_byte_for_byte_and_large_ones_scaled_down() -> None:
    small = png((64, 48))
    assert data_uri(small) == "data:image/png;base64," + base64.b64encode(small).decode()
    wide = data_uri(png((900, 300)), max_side=300)
    assert wide.startswith("data:image/webp;") and pixels(wide).size == (300, 100)
    heavy = png((400, 400), noise=True)
    assert len(heavy) > page_shell.MAX_VERBATIM_BYTES
    assert data_uri(heavy).startswith("data:image/webp;") and pixels(data_uri(heavy)).size == (400, 400)


def test_an_image_stands_upright_and_keeps_its_transparency() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.new("RGB", (900, 300)).save(buffer, "JPEG", exif=exif)
    assert pixels(data_uri(buffer.getvalue(), max_side=300)).size == (100, 300)
    buffer = io.BytesIO()
    Image.new("RGBA", (800, 800), (255, 0, 0, 0)).save(buffer, "PNG")
    assert pixels(data_uri(buffer.getvalue())).getchannel("A").getextrema() == (0, 0)


def test_each_image_is_held_once(tmp_path: Path) -> None:
    content = png((8, 8))
    (tmp_path / "a.png").write_bytes(content)
    images = Images()
    first = images.add(tmp_path / "a.png")
    assert images.add(content) == first and len(images.uris) == 1
    assert images.add(tmp_path / "gone.png", name=first) == first  # known by its name: the file is not read


def test_no_text_ends_the_script_element_it_stands_in() -> None:
    said = str(safe_json({ATTACK: [ATTACK, "&'\u2028", "三角形"]}))
    assert not set("<>&'") & set(said)
    assert json.loads(said) == {ATTACK: [ATTACK, "&'\u2028", "三角形"]}
    with pytest.raises(ValueError):
        safe_json(float("nan"))
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed([ATTACK]))


def test_the_policy_lets_run_the_named_scripts_alone() -> None:
    policy = content_policy(["a"])
    assert "default-src 'none'" in policy and "connect-src" not in policy
    assert (
        "'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='" in policy
    )  # printf a | openssl sha256 -binary | base64
    assert "connect-src 'self'" in content_policy([], connect=True)


def test_nothing_of_a_data_set_runs(page: Path, chromium: Any) -> None:
    with opened(chromium, page) as seen:
        assert seen.page.title() == f"{ATTACK} · boresight"
        assert seen.page.locator("p.text").inner_text() == ATTACK
        assert seen.page.evaluate("pageData()") == {ATTACK: [ATTACK]}
        assert seen.page.locator("img[onerror], img[src=x]").count() == 0
        assert seen.is_quiet, (seen.complaints, seen.requests)


def test_what_slipped_through_would_be_stopped_by_the_policy(page: Path, chromium: Any) -> None:
    """The second wall, tried by tearing down the first: HTML put into the page as it is."""
    with opened(chromium, page) as seen:
        with seen.page.expect_console_message(lambda message: "inline event handler" in message.text):
            seen.page.evaluate("text => { document.querySelector('main').innerHTML = text }", ATTACK)
        assert seen.page.title() == f"{ATTACK} · boresight"
        assert not seen.requests and any("Content Security Policy" in complaint for complaint in seen.complaints)


def test_an_image_opens_large_and_closes(page: Path, chromium: Any) -> None:
    with opened(chromium, page) as seen:
        thumbnail, large = seen.page.locator("button.image img"), seen.page.locator("#zoom img")
        assert thumbnail.evaluate("image => image.naturalWidth") == 6
        assert not large.is_visible()
        thumbnail.click()
        assert large.is_visible() and large.get_attribute("src") == thumbnail.get_attribute("src")
        seen.page.keyboard.press("Escape")
        assert not large.is_visible()


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_both_colour_schemes_are_readable_at_both_widths(page: Path, chromium: Any, width: int) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        with opened(chromium, page, width=width, scheme=scheme) as seen:
            assert seen.overflow() <= 0
            grounds[scheme] = seen.page.evaluate(CONTRAST)
    assert grounds["light"]["ground"] > 0.8 and grounds["dark"]["ground"] < 0.05
    assert all(ground["contrast"] > 7 for ground in grounds.values())


# Relative luminance and contrast as WCAG 2 defines them.
CONTRAST = """() => {
  const luminance = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const style = getComputedStyle(document.body);
  const [ink, ground] = [luminance(style.color), luminance(style.backgroundColor)];
  return {ground, contrast: (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05)};
}"""
