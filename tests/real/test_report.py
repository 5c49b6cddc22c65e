"""The report of real photographs: what is on it, and that it stays small."""

from __future__ import annotations

import numpy as np
import pytest

import featcache as fc

pytestmark = pytest.mark.real


def test_a_report_of_photographs(data_dir, tmp_path):
    folder = data_dir / "datasets" / "clothing10"
    if not folder.is_dir():
        pytest.skip("no data set clothing10")
    paths = sorted(path for kind in ("hat", "pants", "shoes") for path in (folder / kind).iterdir())[::6]
    lines = ["path,label", *(f"{path.relative_to(folder)},{path.parent.name}" for path in paths)]
    (tmp_path / "some.csv").write_text("\n".join(lines))
    source = fc.ImageSource.from_list(tmp_path / "some.csv", root=folder)
    data = fc.extract(source, fc.Backbone("embedded"), tmp_path / "s", precision="fp32", progress=False).load()
    page = fc.report(
        data, tmp_path / "r.html", images=source, heads=["ridge", "lda"], shots=[5, "all"], seeds=2, progress=False
    )
    assert (tmp_path / "r.html").stat().st_size < 3_000_000
    assert set(page.images) == set(data.row_ids.tolist())
    errors = next(section.data for section in page.sections if section.key == "errors")
    assert errors["wrong"] < 0.3 * len(data) and len(errors["classes"]) == 3
    assert np.mean([len(content) for content in page.images.values()]) < 5000
