"""Only regular files inside the allowed folder are opened, whatever names them."""

from __future__ import annotations

import base64
import json
import os
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from boresight.data import RowDataset, check_rows, load_image, load_rows
from boresight.data.opener import MAX_FILE_BYTES, local_path, written_bytes
from boresight.errors import DataError, ImageError

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def png(width: int = 4) -> bytes:
    stream = BytesIO()
    Image.effect_noise((width, 4), 60).save(stream, "PNG")
    return stream.getvalue()


def test_what_is_no_file_is_named_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "queue.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: it takes no space
    cases = {
        tmp_path / "queue.png": "is a queue (FIFO), not a file",
        Path("/dev/zero"): "is a device, not a file",
        tmp_path: "is a folder, not a file",
        tmp_path / "huge.png": "1 GiB at most",
        tmp_path / "none.png": "No such file",
        tmp_path / ("x" * 300): "File name too long",
    }
    for path, says in cases.items():
        found: list[Exception] = []

        def load(path: Path = path, found: list[Exception] = found) -> None:
            try:
                load_image(path, where="row 3")
            except ImageError as error:
                found.append(error)

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        thread.join(20)
        assert found and str(found[0]).startswith("row 3") and says in str(found[0])


@pytest.mark.parametrize(
    "address",
    [
        "file:///a%20b/c.png",
        "FILE:///a%20b/c.png",
        "file://localhost/a%20b/c.png",
        "file:/a%20b/c.png",
        "File:///%61%20b/c.png",
    ],
)
def test_every_way_to_write_an_address_is_one_path(address: str) -> None:
    assert local_path(address, "row 0") == Path("/a b/c.png")


@pytest.mark.parametrize("address", ["https://x/a.png", "HTTP://x/a.png", "s3://b/a.png", "file://elsewhere/a.png"])
def test_other_machines_are_not_asked(address: str) -> None:
    with pytest.raises(ImageError, match=r"row 0: .* is not on this machine. Download"):
        local_path(address, "row 0")


def test_images_written_as_text() -> None:
    data = png(40)
    text = base64.b64encode(data).decode()
    lines = base64.encodebytes(data).decode()
    forms = [
        text,
        lines,
        text.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        f"data:image/png;base64,{text}",
        f"DATA:;base64,{lines}",
    ]
    for form in forms:
        assert load_image(form, where="row 0").source == data
        assert load_image({"bytes": form, "path": None}, where="row 0").source == data
    assert written_bytes("images/" + "a" * 80 + ".png", "row 0") is None
    dense = text.rstrip("=")
    with pytest.raises(ImageError) as error:
        load_image(dense[: (len(dense) - 2) // 4 * 4 + 1], where="row 0")  # no text of this length is base64
    assert len(str(error.value)) < 500 and "base64" in str(error.value)


OUTSIDE = "/usr/share/pixmaps/x.png"


@pytest.mark.parametrize(
    "path",
    [
        OUTSIDE,
        f"FILE://{OUTSIDE}",
        f"file://localhost{OUTSIDE}",
        "file:///%75sr/x.png",
        "../x.png",
        "a/../../x.png",
        "link/x.png",
    ],
)
@pytest.mark.parametrize("kind", ["image", "part", "image_url", "json text", "saved", "parquet"])
def test_no_path_leaves_the_folder(tmp_path: Path, path: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    (folder / "here").mkdir(parents=True)
    (folder / "link").symlink_to("/usr/share")
    monkeypatch.chdir(folder / "here")
    content: Any = [{"type": "image", "image": path}]
    if kind == "image_url":
        content = [{"type": "image_url", "image_url": {"url": path}}]
    talk: Any = [{"role": "user", "content": content}]
    row: dict[str, Any] = {"prompt": json.dumps(talk) if kind == "json text" else talk}
    if kind in ("image", "saved", "parquet"):
        row = {"prompt": "q", "image": path if kind == "image" else {"bytes": None, "path": path}}
    source = folder / "rows.jsonl"
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"prompt": datasets.Value("string"), "image": struct})
    if kind == "saved":
        datasets.Dataset.from_list([row], features=features).save_to_disk(source := folder / "saved")
        (source / "link").symlink_to("/usr/share")
    elif kind == "parquet":
        datasets.Dataset.from_list([row], features=features).to_parquet(source := folder / "a.parquet")
    else:
        source.write_text(json.dumps(row) + "\n")
    with pytest.raises(ImageError, match=r"^row 0: the image's path .* leads out of .*--image_root"):
        load_rows(source)


def test_links_of_a_named_root_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.png").write_bytes(png(9))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "rows.csv").write_text("prompt,image\nq,images/x.png\n")
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(ImageError, match="leads out"):
        load_rows("rows.csv")
    row = RowDataset(load_rows("rows.csv", image_root=tmp_path / "data"))[0]  # pyright: ignore[reportArgumentType]
    assert row.images[0].size == (9, 4)


def test_what_names_no_file_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = ["a\0b.png", "~nobody_here/x.png", "https://x/a.png", "data:image/png;base64,???", "", None]
    path.write_text("".join(json.dumps({"prompt": "q", "image": value}) + "\n" for value in bad))
    with pytest.raises(DataError, match=r"4 of 6 rows cannot be used:\nrow 0.*\nrow 1.*\nrow 2.*\nrow 3"):
        check_rows(load_rows(path))
