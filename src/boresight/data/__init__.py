"""From data sets to groups: rows are read, validated and encoded.

schema   one record of a data set, validated
images   one image, kept encoded until it is needed
sources  where records come from
mixture  several data sets as one
encode   text and images through the processor, once per prompt
spans    which tokens count: those that the assistant produced
budget   how many pixels an image may have
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boresight.lazy import lazy_names

if TYPE_CHECKING:
    from boresight.data.budget import set_pixel_budget
    from boresight.data.encode import Encoder
    from boresight.data.images import decode, load_image
    from boresight.data.mixture import DatasetConfig, DatasetMixtureConfig, get_dataset
    from boresight.data.schema import read_row
    from boresight.data.sources import RowDataset, RowStream, check_rows, load_rows

_HOMES = {
    "DatasetConfig": "mixture",
    "DatasetMixtureConfig": "mixture",
    "Encoder": "encode",
    "RowDataset": "sources",
    "RowStream": "sources",
    "check_rows": "sources",
    "decode": "images",
    "get_dataset": "mixture",
    "load_image": "images",
    "load_rows": "sources",
    "read_row": "schema",
    "set_pixel_budget": "budget",
}

__all__ = [
    "DatasetConfig",
    "DatasetMixtureConfig",
    "Encoder",
    "RowDataset",
    "RowStream",
    "check_rows",
    "decode",
    "get_dataset",
    "load_image",
    "load_rows",
    "read_row",
    "set_pixel_budget",
]


__getattr__ = lazy_names(__name__, _HOMES)
