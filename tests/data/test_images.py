from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import easy_vqa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

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


def refusal(call: Callable[[], object]) -> str | None:
    """The message of an ImageError that names row 0; None if the call works."""
    try:
        call()
    except ImageError as error:
        found = str(error)
    else:
        return None
    assert found.startswith("row 0")
    return found


MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "I;16",
    "I;16B",
    "F",
]
FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "BMP", "GIF", "PPM", "TGA", "JPEG2000", "QOI", "ICO", "MPO", "DDS"]
Image.init()
FORMATS = [name for name in FORMATS if name in Image.SAVE]  # older Pillows write fewer


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    orientation=st.integers(0, 9),
    width=st.integers(1, 24),
    height=st.integers(1, 24),
    as_pil=st.booleans(),
)
def test_sizes_agree_with_decoded_pixels(
    kind: str, mode: str, orientation: int, width: int, height: int, as_pil: bool
) -> None:
    """Every mode that a format can store, at every orientation, from the file and from PIL."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    given_image = Image.new(mode, (width, height))
    if as_pil:
        given_image.info["exif"] = exif.tobytes()
        loaded = load_image(given_image, where="row 0")
    else:
        try:
            data = encoded(given_image, kind, exif=exif)
        except (OSError, ValueError, KeyError, TypeError):
            return  # the format has no such mode
        if refusal(lambda: load_image(data, where="row 0")):
            return
        loaded = load_image(data, where="row 0")
    result = decode(loaded, where="row 0")
    assert result.mode == "RGB"
    assert result.size == loaded.size


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_pixels(kind: str, orientation: int) -> None:
    """The pixels are those of Pillow's `exif_transpose`, once, from the file and from PIL."""
    plain = Image.frombytes("RGB", (5, 3), bytes(range(45)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(plain, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    tagged = plain.copy()
    tagged.getexif()[0x0112] = orientation
    wanted = ImageOps.exif_transpose(tagged)
    assert (wanted.size, wanted.tobytes()) != (plain.size, plain.tobytes()) or orientation == 1
    with Image.open(BytesIO(data)) as opened:
        for given_image in (data, opened):
            found = decode(load_image(given_image, where="row 0"))
            assert (found.size, found.tobytes()) == (wanted.size, wanted.tobytes())


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I;16", [0, 257, 32896, 65535], [0, 1, 128, 255]),
        ("I", [0, 7, 255, 100], [0, 7, 255, 100]),
        ("I", [-100, 0, 100, 300], [0, 64, 128, 255]),
        ("I", [0, 1, 2**20, 2**20], [0, 0, 255, 255]),
        ("F", [0.0, 0.5, 1.0, 0.25], [0, 128, 255, 64]),
        ("F", [0.0, 128.0, 255.0, 1.0], [0, 128, 255, 1]),
        ("F", [-1.0, 0.0, 1.0, 3.0], [0, 64, 128, 255]),
        ("F", [float("nan"), float("inf"), 1.0, 0.0], [0, 255, 255, 0]),
        ("F", [5.0, 5.0, 5.0, 5.0], [5, 5, 5, 5]),
        ("F", [500.0, 500.0, 500.0, 500.0], [0, 0, 0, 0]),
    ],
)
def test_wide_values_are_scaled_by_the_rule(mode: str, values: list[float], expected: list[int]) -> None:
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(np.array([values], dtype))
    assert image.mode == mode
    for given_image in (image, encoded(image, "TIFF")):
        result = decode(load_image(given_image, where="row 0"))
        assert [result.getpixel((place, 0)) for place in range(4)] == [(value,) * 3 for value in expected]


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
@pytest.mark.parametrize(
    ("values", "expected"), [([0, 257, 32896, 65535], [0, 1, 128, 255]), ([0, 7, 255, 100], [0, 0, 1, 0])]
)
def test_sixteen_bits_in_a_file_are_sixteen_bits_however_dark(
    kind: str, values: list[int], expected: list[int]
) -> None:
    data = encoded(Image.fromarray(np.array([values], np.uint16)), kind)
    result = decode(load_image(data, where="row 0"))
    assert [result.getpixel((place, 0)) for place in range(4)] == [(value,) * 3 for value in expected]


def test_remarks() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(gif, where="row 0").remark == "animated, of which the first frame is used"
    assert "fractions" in str(load_image(Image.new("F", (4, 4)), where="row 0").remark)
    assert "32-bit" in str(load_image(Image.new("I", (4, 4)), where="row 0").remark)
    assert load_image(encoded(image(4, 4)), where="row 0").remark is None


@pytest.mark.skipif("AVIF" not in Image.SAVE, reason="an older Pillow")
def test_damaged_files_of_every_format_are_named() -> None:
    avif = bytearray(encoded(Image.effect_noise((64, 48), 60).convert("RGB"), "AVIF"))
    del avif[-120:]
    with Image.open(BytesIO(encoded(Image.effect_noise((64, 48), 60), "JPEG")[:900])) as cut:
        cases = [
            bytes(avif),
            b"DDS |" + b"\0" * 130,
            b"\1\0\0\0" + b"\0" * 36 + b" EMF" + b"\0" * 60,
            cut,
            b"%!PS-Adobe-3.0 EPSF-3.0\n",
        ]
        for damaged in cases:
            with pytest.raises(ImageError, match=r"^row 9"):
                decode(load_image(damaged, where="row 9"), where="row 9")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FORMATS), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8), st.floats(0, 1)
)
def test_damage_of_any_kind_is_an_image_error(kind: str, changes: list[tuple[float, int]], kept: float) -> None:
    data = bytearray(encoded(Image.effect_noise((16, 12), 60).convert("RGB"), kind))
    for place, value in changes:
        data[int(place * len(data))] = value
    cut = bytes(data[: int(kept * len(data))])
    refusal(lambda: decode(load_image(cut, where="row 0"), where="row 0"))
