"""rank and advise on real images: a network whose late nodes are better, by the command line."""

from __future__ import annotations

import json
import shutil

import pytest

from featcache import Backbone, FeatureStore, extract, rank
from featcache.cli import run


@pytest.fixture(scope="module")
def store(data_dir, tmp_path_factory):
    source = data_dir / "datasets" / "clothing10"
    if not source.is_dir():
        pytest.skip("no clothing10")
    folder = tmp_path_factory.mktemp("images")
    for name in ("hat", "pants", "shoes", "dress"):
        (folder / name).mkdir()
        for path in sorted((source / name).glob("*.jpg"))[:24]:
            shutil.copy(path, folder / name)
    path = tmp_path_factory.mktemp("codes") / "some.features"
    extract(str(folder), Backbone("embedded", nodes="features.6,features.13,penultimate"), path, progress=False)
    return path


def test_late_nodes_rank_first(store, capsys):
    assert run(["rank", str(store), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    nodes = [row["node"] for row in found["results"]]
    assert nodes[0] == "flatten" and nodes[-1].startswith("features.6")
    assert found["results"][0]["ridge"] > 0.8 and found["results"][0]["backbone"] == "mobilenet_v2"
    opened = FeatureStore.open(store)
    assert rank([opened.load(node=node) for node in opened.nodes]).best()["ridge"] == found["results"][0]["ridge"]


def test_advice_names_a_node_of_the_store(store, capsys):
    assert run(["advise", str(store), "--json", "--quiet", "--seeds", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommendation"] == "head" and found["node"] == "flatten"  # 24 images per class are few
    assert [row["node"] for row in found["profile"]][-1] == "flatten" and found["doubling"]["points"] >= 0
    assert run(["advise", str(store), "--nodes", "flatten", "--quiet", "--seeds", "2"]) == 0
    assert "one node" in capsys.readouterr().out
