"""An audit of real cells: pairs that are in truth one cell are found, and planted copies with them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import featcache as fc

pytestmark = pytest.mark.real


def test_copies_of_real_cells_are_found(data_dir, mobilenet_weights, tmp_path):
    folder = data_dir / "datasets" / "bccd_cells"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png"))[::5]
    pictures = [Image.open(folder / name).convert("RGB") for name in names]
    large = [i for i, picture in enumerate(pictures) if min(picture.size) >= 60][:8]
    pictures += [pictures[i].transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((96, 96)) for i in large]
    names += [f"planted/{i}" for i in large]
    source = fc.ImageSource.from_arrays(pictures, ids=names)
    fc.extract(source, fc.Backbone("mobilenet_v2", weights=str(mobilenet_weights)), tmp_path / "s", progress=False)
    found = fc.audit(fc.FeatureStore.open(tmp_path / "s").load(), images=source, progress=False)
    pairs = {tuple(row["ids"]) for row in found.of("near duplicate")}
    planted = {tuple(sorted((names[i], f"planted/{i}"))) for i in large}
    assert len(pairs & planted) >= 7 and len(pairs - planted) <= 2
    assert np.isfinite(found.expected["near duplicate"]) and not found.of("constant")
