"""Each of the 44 awkward files is an image or a reason, in agreement with what Pillow does with it."""

from __future__ import annotations

import csv

import pytest

from featcache.errors import ImageError
from featcache.images import open_rgb
from featcache.sources import ImageSource

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def rows(data_dir):
    with (data_dir / "odd_images" / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_is_a_candidate(data_dir, rows):
    source = ImageSource.from_folder(data_dir / "odd_images")
    assert set(source.ids) == {row["file"] for row in rows}
    assert len(source) == 44
    assert source.ignored == {".csv": 1}


def test_read_or_refused_as_pillow_would(data_dir, rows):
    for row in rows:
        data = (data_dir / "odd_images" / row["file"]).read_bytes()
        try:
            image = open_rgb(data)
        except ImageError as error:
            assert row["pillow13_result"] != "ok", f"{row['file']}: {error}"
            assert "\n" not in str(error)
            continue
        assert row["pillow13_result"] == "ok", row["file"]
        assert image.mode == "RGB"
        size = tuple(int(side) for side in row["size"].split("x"))
        turned = row["exif_orientation"] in ("5", "6", "7", "8")
        assert image.size == (size[::-1] if turned else size)


def test_the_bomb_is_refused(data_dir):
    with pytest.raises(ImageError, match="at most 178956970 pixels.*bomb"):
        open_rgb((data_dir / "odd_images" / "decompression_bomb.gif").read_bytes())


def test_16_bit_grey_agrees_with_the_8_bit_original(data_dir):
    import numpy as np

    folder = data_dir / "odd_images"
    deep = np.asarray(open_rgb((folder / "hopper_16bit.pgm").read_bytes(), channels=1)).astype(float)
    plain = np.asarray(open_rgb((folder / "hopper.png").read_bytes(), channels=1)).astype(float)
    assert abs(deep - plain).mean() < 2
