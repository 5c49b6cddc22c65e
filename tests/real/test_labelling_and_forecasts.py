"""On real photographs: copies saved again are not suggested beside their originals, and curves are carried on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import featcache as fc


@pytest.fixture(scope="module")
def codes(data_dir, squeezenet_weights, tmp_path_factory):
    """140 photographs of clothes, every seventh of them saved again with more compression."""
    folder = tmp_path_factory.mktemp("clothes")
    files = sorted((data_dir / "datasets" / "clothing10").glob("*/*.jpg"))[::10][:140]
    if len(files) < 100:
        pytest.skip("no clothing10")
    for number, path in enumerate(files):
        place = folder / path.parent.name
        place.mkdir(exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").save(place / f"{number:03d}.jpg", quality=92)
            if number % 7 == 0:
                image.convert("RGB").save(place / f"{number:03d}-copy.jpg", quality=60)
    store = tmp_path_factory.mktemp("store") / "clothes.features"
    fc.extract(folder, fc.Backbone("squeezenet1_1", weights=str(squeezenet_weights)), store, progress=False)
    return fc.FeatureStore.open(store).load()


@pytest.mark.parametrize("strategy", ["coverage", "mix"])
def test_copies_are_not_suggested_with_their_originals(codes, strategy):
    known = np.asarray([name.endswith(("1.jpg", "2.jpg")) for name in codes.ids])
    data = fc.FeatureSet(codes.X, np.where(known, codes.y, ""), ids=codes.ids)
    found = fc.suggest(data, 80, strategy=strategy)
    of = [name.replace("-copy", "") for name in found.ids]
    assert len(found) >= 60 and len(of) - len(set(of)) <= 1


def test_a_curve_is_carried_on(codes):
    data = codes.select(np.asarray(["-copy" not in name for name in codes.ids]))
    told = fc.forecast(fc.compare(data, ["centroid"], shots=[1, 2, 4, "all"], seeds=4))[0]
    assert 0 < told.gain < 0.3 and told.gain_ci95[0] < told.gain < told.gain_ci95[1] and told.mean < 1
