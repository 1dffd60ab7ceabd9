from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import easy_vqa
import pytest
from PIL import Image

from boresight.data import decode, load_image
from boresight.errors import ImageError


def image(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 30, 60))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """An image 40 wide and 20 high whose EXIF says how to hold it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image(40, 20), kind, exif=exif)


def test_every_form_of_one_image_is_the_same_image(tmp_path: Path) -> None:
    data = encoded(image(30, 20))
    path = tmp_path / "a b.png"
    path.write_bytes(data)
    forms = [data, bytearray(data), str(path), path, path.as_uri(), {"bytes": data, "path": None}, {"path": str(path)}]
    forms.append({"bytes": data, "path": "elsewhere.png"})
    images = [load_image(form, where="row 0") for form in forms]
    assert {item.digest for item in images} == {hashlib.sha256(data).hexdigest()}
    assert {item.size for item in images} == {(30, 20)}
    assert images[0] == images[2]
    assert images[2].source == str(path)  # a path costs no memory
    assert load_image(images[0], where="row 0") is images[0]


def test_a_pil_image_is_kept_without_loss() -> None:
    image = Image.effect_noise((33, 17), 80).convert("RGB")
    kept = decode(load_image(image, where="row 0"))
    assert kept.tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 20)), (3, (40, 20)), (6, (20, 40)), (8, (20, 40))])
def test_size_and_pixels_follow_exif(orientation: int, size: tuple[int, int], kind: str) -> None:
    loaded = load_image(turned(orientation, kind), where="row 0")
    assert loaded.size == size
    assert decode(loaded).size == size


def test_exif_of_a_pil_image_is_applied_once() -> None:
    with Image.open(BytesIO(turned(6))) as image:
        loaded = load_image(image, where="row 0")
    assert loaded.size == (20, 40)
    assert decode(loaded).size == (20, 40)


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGB", (4, 4), (10, 20, 30)), (10, 20, 30)),
        (Image.new("L", (4, 4), 90), (90, 90, 90)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 255, 51)), (204, 204, 255)),
        (Image.new("LA", (4, 4), (40, 0)), (255, 255, 255)),
        (Image.new("RGB", (4, 4), (250, 0, 0)).convert("P"), (250, 0, 0)),
        (Image.new("I;16", (4, 4), 257 * 120), (120, 120, 120)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("HSV", (4, 4), (0, 255, 255)), (255, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_modes_become_rgb_over_white(image: Image.Image, pixel: tuple[int, int, int]) -> None:
    result = decode(load_image(image, where="row 0"))
    assert result.mode == "RGB"
    assert result.getpixel((1, 1)) == pytest.approx(pixel, abs=6 if image.mode == "P" else 0)


def test_a_palette_with_a_transparent_colour_is_laid_over_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    data = encoded(image, transparency=1)
    assert decode(load_image(data, where="row 0")).getpixel((0, 0)) == (255, 255, 255)


def test_real_images_decode() -> None:
    path = Path(easy_vqa.__file__).parent / "data" / "train" / "images" / "0.png"
    loaded = load_image(path, where="row 0")
    with Image.open(path) as image:
        assert decode(loaded).tobytes() == image.convert("RGB").tobytes()
    assert loaded.size == (64, 64)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "missing"),
        ("", "path is empty"),
        ("nowhere/a.png", "No such file"),
        ("https://example.org/a.png", "Download"),
        (b"", "broken"),
        (b"not an image", "broken"),
        (7, "int is no image"),
        ({"bytes": None, "path": None}, "keys"),
    ],
)
def test_what_is_no_image_names_the_row(value: object, says: str) -> None:
    with pytest.raises(ImageError, match=r"^row 5, images") as error:
        load_image(value, where="row 5, images[1]")
    assert says in str(error.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_cut_short_fails_when_decoded(kind: str) -> None:
    data = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    loaded = load_image(data[: len(data) // 2], where="row 0")
    with pytest.raises(ImageError, match=r"^row 9: the image cannot be decoded"):
        decode(loaded, where="row 9")


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(image(64, 48))
    for limit in (64 * 48 - 1, 64 * 48 // 3):  # Pillow warns above the limit and fails above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=r"row 2: the image is too large.*MAX_IMAGE_PIXELS"):
            load_image(data, where="row 2")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48)
    assert load_image(data, where="row 2").size == (64, 48)
