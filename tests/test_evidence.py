"""report(): every step alone, the page as a whole, odd data, and what a browser makes of it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images

import featcache as fc
from featcache.cli import run
from featcache.errors import HeadError, SourceError
from featcache.evidence import SECTIONS, report
from featcache.evidence.calibration import reliability_bins
from featcache.evidence.confusion import class_scores, confused_pairs
from featcache.evidence.contest import shots_for
from featcache.evidence.describing import examples
from featcache.evidence.held import held_out
from featcache.evidence.neighbours import asked_rows, nearest_images
from featcache.evidence.projection import project
from featcache.evidence.protocol import section as protocol_section
from featcache.evidence.subjects import chosen_rows, digest_of, plain_images, sampled
from featcache.evidence.thumbnails import thumbnail, thumbnails

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "]]></svg><svg onload=alert(1)>",
    "javascript:alert('\"`&amp;')",
    "right\u202eto\u2066left\u200f \u05d0",
    "bell\x07 esc\x1b line\nbreak\u2028 del\x7f",
    "lone \udce9 surrogate",
    "L" * 300,
    "$x^2$ | *bold* [link](http://127.0.0.1/x) {{7*7}} %s",
)


def codes(n=60, classes=3, d=12, seed=0, names=None, **more):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = (rng.normal(size=(classes, d))[y] + 0.7 * rng.normal(size=(n, d))).astype("f4")
    labels = np.asarray(names if names is not None else [f"class {c}" for c in range(classes)])[y]
    return fc.FeatureSet(X, labels, **more)


def pictures(ids, grain=20):
    side = 160 // grain
    noise = np.random.default_rng(0).integers(0, 256, (len(ids), side, side, 3), dtype="u1")
    return fc.ImageSource.from_arrays([np.kron(x, np.ones((grain, grain, 1), "u1")) for x in noise], ids=list(ids))


QUICK = {"heads": ["lda", "centroid"], "seeds": 2, "projection": "pca", "progress": False}


# -- the steps -------------------------------------------------------------------------------------------------------


def test_a_sample_is_drawn_by_id_keeps_classes_and_whole_groups():
    data = codes(90, 9)
    few = sampled(data, 30)
    assert len(few) == 27 and len(few.classes) == 9  # three of each ten
    back = np.random.default_rng(1).permutation(90)
    assert set(sampled(data.select(back), 30).row_ids) == set(few.row_ids)
    grouped = codes(90, 2, groups=np.repeat(np.arange(9), 10).astype(str))
    rows = chosen_rows(grouped, 25)
    assert {(grouped.groups[rows] == g).sum() for g in np.unique(grouped.groups[rows])} == {10}
    views = fc.FeatureSet(np.zeros((4, 2)), list("abab"), ["1", "2", "v1", "v2"], view_of=["", "", "1", "2"])
    assert plain_images(views).row_ids.tolist() == ["1", "2"] and len(sampled(views, 4)) == 4
    assert digest_of(data) == digest_of(data.select(back)) != digest_of(few)


def test_held_out_tests_each_image_once_and_does_not_depend_on_the_order_of_rows():
    data = codes()
    found, other = (held_out(d, "ridge") for d in (data, data.select(np.random.default_rng(3).permutation(60))))
    assert found.ids.tolist() == sorted(data.row_ids.tolist())
    assert found.predicted.tolist() == other.predicted.tolist()
    np.testing.assert_allclose(found.evaluation.scores, other.evaluation.scores, atol=1e-9)
    np.testing.assert_allclose(found.evaluation.scores.sum(axis=1), 1)
    own = codes(splits=np.where(np.arange(60) < 40, "train", "test"))
    assert sorted(held_out(own, "lda").ids.tolist()) == sorted(own.row_ids[40:].tolist())


def test_a_head_without_probabilities_gets_calibrated_ones_and_one_without_scores_none():
    from sklearn.tree import DecisionTreeClassifier

    class Mute(DecisionTreeClassifier):
        predict_proba = property()  # as a classifier that names classes only

    found = held_out(codes(300, 3, d=20), "centroid")
    assert found.head == "centroid" and abs(found.confidence.mean() - found.right.mean()) < 0.08
    assert found.calibration_error < 0.1
    mute = held_out(codes(), Mute(max_depth=2))
    assert mute.evaluation.scores is None and mute.confidence is None and mute.calibration_error is None


def test_scores_per_class_and_pairs_are_those_of_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    data = codes(200, 4, d=3, seed=4)
    held = held_out(data, "centroid")
    y, said, classes = held.y, held.predicted, held.evaluation.classes
    precision, recall, f1, support = precision_recall_fscore_support(y, said, labels=classes)
    scores = class_scores(held.evaluation)
    assert (y != said).any() and [line["f1"] for line in scores] == sorted(line["f1"] for line in scores)
    for line in scores:
        i = classes.index(line["class"])
        assert (line["precision"], line["recall"], line["images"]) == (precision[i], recall[i], support[i])
        assert line["f1"] == pytest.approx(f1[i])
        assert line["times"] == max(((y == line["class"]) & (said == c) & ~held.right).sum() for c in classes)
    pairs = confused_pairs(held.evaluation)
    assert sum(p["images"] for p in pairs) == (y != said).sum()
    a, b = pairs[0]["pair"]
    assert pairs[0]["images"] == sum((t, s) in ((a, b), (b, a)) for t, s in zip(y, said, strict=True))


def test_bins_of_known_shares():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 40_000)
    for shift in (0.0, 0.2):
        bins = reliability_bins(confidence, rng.random(40_000) < confidence - shift)
        assert sum(line["count"] for line in bins) == 40_000
        for line in bins[3:]:
            assert line["confidence"] - line["accuracy"] == pytest.approx(shift, abs=0.03)


def test_projection_keeps_groups_apart_and_is_the_same_twice():
    data = codes(60, 3, d=30, seed=5)
    places, said = project(data.X, "tsne")
    assert said.startswith("t-SNE") and places.min() == 0 and places.max() == 1
    again, _ = project(data.X, "tsne")
    np.testing.assert_array_equal(places, again)
    for odd in (np.zeros((5, 3)), np.ones((1, 4)), np.arange(3.0)[:, None], np.zeros((12, 6))):
        for method in ("auto", "pca", "tsne"):
            assert np.isfinite(project(odd, method)[0]).all() and project(odd, method)[0].shape == (len(odd), 2)
    with pytest.raises(HeadError, match="expected one of"):
        project(data.X, "magic")


def test_umap_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(HeadError, match=r"featcache\[umap\]"):
        project(codes().X, "umap")


def test_planted_copies_are_shown_and_counted():
    data = codes(120, 3, d=40, seed=2)
    planted = fc.FeatureSet(np.vstack([data.X, data.X[:2]]), np.append(data.y, data.y[:2]), name="d")
    page = report(planted, sections=["summary", "findings"], heads=["lda"], shots=["all"], seeds=1, progress=False)
    rows = page.sections[1].data["findings"]
    assert [row["ids"] for row in rows if row["kind"] == "exact duplicate"] == [["0", "120"], ["1", "121"]]
    assert "2 copies" in page.to_html() and "Copies of one image: 2." in page.to_html()


def test_what_cannot_be_audited_is_said_and_not_called_clean():
    grid = fc.FeatureSet(np.random.default_rng(0).normal(size=(8, 2, 3, 3)))
    page = report(grid, sections=["summary", "findings", "protocol"], progress=False)
    assert [s.key for s in page.sections] == ["summary", "protocol"]
    assert "not audited" in page.to_html() and "Are the data clean?" not in page.to_html()


def test_neighbours_and_examples_cover_the_classes():
    data = codes(60, 6)
    assert len(set(data.y[asked_rows(data, 6)])) == 6 and len(set(data.y[examples(data, 12)])) == 6
    wrong = frozenset(data.row_ids[:10].tolist())
    assert sum(i in wrong for i in data.row_ids[asked_rows(data, 8, wrong=wrong)]) >= 4
    cosines, rows = nearest_images(data, np.array([0, 1]), 3)
    centred = data.X - data.X.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    expected = unit[0] @ unit.T
    expected[0] = -2
    assert rows[0].tolist() == np.argsort(-expected)[:3].tolist()
    np.testing.assert_allclose(cosines[0], np.sort(expected)[::-1][:3], atol=1e-5)


def test_shots_follow_the_classes():
    assert (
        shots_for([3, 3]) == (1, "all") and shots_for([200] * 3) == (1, 5, 20, 80, "all") and shots_for([1]) == ("all",)
    )


def test_thumbnails_keep_to_the_budget_and_say_what_is_missing(tmp_path):
    ids = [f"{i:02d}" for i in range(20)]
    source = pictures(ids)
    album = thumbnails(source, [*ids, "gone"], budget=10**6)
    assert len(album.pictures) == 20 and (album.unknown, album.left_out) == (1, 0)
    small = thumbnails(source, ids, budget=3 * len(album.pictures["00"]) + 600)
    assert 0 < len(small.pictures) < 5 and small.left_out == 20 - len(small.pictures)
    same = fc.ImageSource.from_arrays([np.zeros((50, 20, 3), "u1")] * 9, ids=ids[:9])
    assert len(set(thumbnails(same, ids[:9], budget=400).pictures.values())) == 1
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8 no image")
    broken = thumbnails(
        fc.ImageSource.from_paths([tmp_path / "x.jpg"]), fc.ImageSource.from_paths([tmp_path / "x.jpg"]).ids
    )
    assert len(broken.failed) == 1 and not broken.pictures


def test_a_thumbnail_keeps_proportions():
    from io import BytesIO

    from PIL import Image

    assert Image.open(BytesIO(thumbnail(np.zeros((400, 100, 3), "u1"), 64))).size == (16, 64)
    assert Image.open(BytesIO(thumbnail(np.zeros((7, 3), "u1")))).size == (3, 7)


# -- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    data = codes(90, 3, name="three", ids=[f"a/{i:03d}.png" for i in range(90)], locator={"value": "/secret/place.pth"})
    return report(data, images=pictures(data.row_ids.tolist()), **QUICK)


def test_all_sections_are_there_in_order_and_as_json(page):
    assert [s.key for s in page.sections] == [name for name in SECTIONS if name != "rank"]  # one set of codes
    plain = json.loads(page.to_json())
    assert plain["sections"][0]["data"]["cards"][0]["question"] == "Which head?"
    assert plain["about"]["versions"]["featcache"] == fc.__version__
    errors = next(s for s in plain["sections"] if s["key"] == "errors")
    assert sum(map(sum, next(b for b in errors["blocks"] if b["kind"] == "matrix")["counts"])) == 90
    assert "secret" not in page.to_html() + page.to_json() + page.to_markdown()


def test_the_page_is_the_same_twice_and_whatever_the_order_of_the_rows():
    data, shuffled = codes(), codes().select(np.random.default_rng(0).permutation(60))
    untimed = [name for name in SECTIONS if name not in ("comparison", "advice")]  # these tell seconds
    timeless = re.compile(r'"?fit[_ ]s\w*"?: ?[\d.]+|>\d+\.\d\d<')
    first, second = (timeless.sub("", report(d, sections=untimed, **QUICK).to_html()) for d in (data, shuffled))
    assert first == second


def test_written_as_html_markdown_and_json(tmp_path, page):
    for name in ("a.html", "b c.md", "d.json"):
        assert page.write(tmp_path / name).stat().st_size > 1000
    text = (tmp_path / "b c.md").read_text()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(shown) > 20 and all((tmp_path / name.replace("%20", " ")).is_file() for name in shown)
    assert any(p.suffix == ".svg" for p in (tmp_path / "b c.files").iterdir())
    for name, said in (("x.pdf", "ending in"), ("no/x.html", "folder that exists")):
        with pytest.raises(HeadError, match=said):
            page.write(tmp_path / name)


def test_several_sets_are_compared_and_the_best_is_shown(tmp_path):
    good, bad = codes(seed=1, name="good.features"), codes(seed=1, name="bad.features")
    bad = fc.FeatureSet(np.random.default_rng(0).normal(size=(60, 12)), bad.y, name="bad.features")
    wanted = ["summary", "data", "comparison"]
    page = report([bad, good], tmp_path / "r.html", sections=wanted, **QUICK)
    assert page.title == "good" and "2 sets of codes" in page.subtitle
    assert {row["dataset"] for row in page.sections[2].data["results"]} == {"good", "bad"}


def nodes(n=90):
    """Three nodes of one network, the middle one best, as a store has them."""
    names, own = ["early", "middle", "late"], {"fingerprint": "f" * 64, "name": "net.features"}
    spec = {"backbone": {"arch": "net", "nodes": names}}
    best, rng = codes(n, 3, d=12, seed=3), np.random.default_rng(8)
    X = [best.X + noise * rng.normal(size=best.X.shape).astype("f4") for noise in (4.0, 0.0, 1.0)]
    return [
        fc.FeatureSet(x, best.y, best.row_ids, node=node, spec=spec, **own) for x, node in zip(X, names, strict=True)
    ]


def test_codes_are_ranked_and_advised_on():
    early, middle, late = nodes()
    wanted = ["summary", "rank", "advice"]
    page = report(late, layers=[early, middle], sections=wanted, heads=["lda"], seeds=2, progress=False)
    assert [s.key for s in page.sections] == wanted
    rank, advice = page.sections[1], page.sections[2]
    assert [row["codes"] for row in rank.data["results"]][0] == "net:middle" and "Kendall" in page.to_html()
    assert [row["node"] for row in advice.data["profile"]] == ["early", "middle", "late"]
    assert advice.data["node"] == "middle" and len(advice.data["curve"]) > 1
    text = page.to_html()
    for said in ("What to train?", "featcache rank net.features", "from the first layer (top) to the last"):
        assert said in text
    figures = [block.title for section in page.sections for block in section.blocks if hasattr(block, "svg")]
    assert len(figures) == 3
    again = report([early, middle, late], sections="rank", heads=["lda"], seeds=2, progress=False)
    order = [row["node"] for row in again.sections[0].data["results"]]
    assert order == [row["node"] for row in rank.data["results"]]


def test_what_cannot_be_ranked_is_a_note():
    early, middle, _ = nodes()
    other = fc.FeatureSet(middle.X, middle.y[::-1].copy(), middle.row_ids, name="other")
    page = report([early, other], sections=["rank", "protocol"], heads=["lda"], seeds=2, progress=False)
    assert [s.key for s in page.sections] == ["protocol"] and "could not be ranked" in page.to_html()
    lonely = fc.FeatureSet(np.eye(4), list("abcd"))
    page = report(lonely, sections=["advice", "protocol"], progress=False)
    assert [s.key for s in page.sections] == ["protocol"] and "no advice" in page.to_html()


def test_sections_alone_results_and_findings_that_are_at_hand():
    data = codes(name="d")
    result = fc.compare(data, ["lda"], shots=[2, "all"], seeds=2)
    page = report(data, sections=["findings", "summary", "curves"], result=result, found=[], progress=False)
    assert [s.key for s in page.sections] == ["summary", "curves", "findings"]
    rows = [{"kind": "black", "ids": ["3"], "score": None, "detail": "all pixels equal"}]
    page = report(data, sections="findings", found=rows, progress=False)
    assert "all pixels equal" in page.to_html()
    refused = [({"sections": ["nope"]}, "sections"), ({"sections": []}, "sections"), ({"max_rows": 0}, "max_rows")]
    for wrong, said in [*refused, ({"projection": "x"}, "projection"), ({"out": "x.pdf"}, "ending in")]:
        with pytest.raises(HeadError, match=said):
            report(data, **wrong)
    with pytest.raises(SourceError):
        report(data, images="/no/such/folder")


def test_results_of_others_and_forecasts_have_their_place(monkeypatch):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Ranking:
        rows: tuple
        trust: str = "not too far"
        notes: tuple = ("mind the gap",)

    @dataclass(frozen=True)
    class Forecast:
        dataset: str = "d"
        head: str = "lda"
        factor: float = 2.0
        gain: float = 0.018
        gain_sd: float = 0.006
        gain_ci95: tuple = (-0.001, 0.04)
        metric: str = "accuracy"

        def statement(self):
            return "doubling adds 1.8 points"

    monkeypatch.setattr(fc.evaluation, "forecast", lambda result: (Forecast(),), raising=False)
    more = [Ranking(({"codes": "a<b", "score": 0.51239, "ci95": [0.4, 0.6], "ok": True},))]
    data, wanted = codes(name="d"), ["summary", "curves", "protocol"]
    page = report(data, heads=["lda"], seeds=2, sections=wanted, more=more, progress=False)
    assert [s.title for s in page.sections[-2:]] == ["Backbones and layers ranked", "Protocol and fingerprints"]
    text = page.to_html()
    for said in (
        "a&lt;b",
        "0.5124",
        "0.4 to 0.6",
        "mind the gap",
        "not too far",
        "Doubling them: +1.8 ± 0.6 points",
        "-0.1 to +4.0",
    ):
        assert said in text


def test_data_of_which_little_can_be_said():
    rng = np.random.default_rng(0)
    unlabelled = report(fc.FeatureSet(rng.normal(size=(9, 4))), projection="pca", progress=False)
    assert {"data", "map", "neighbours", "findings", "protocol"} <= {s.key for s in unlabelled.sections}
    assert "Name two classes" in unlabelled.to_html()
    one = report(fc.FeatureSet(np.zeros((1, 4)), ["a"]), progress=False)
    assert one.to_html()
    pairs = fc.FeatureSet(rng.normal(size=(4, 4)), list("aabb"))
    assert "In short" in report(pairs, heads=["centroid"], shots=["all"], progress=False).to_html()
    lonely = report(fc.FeatureSet(np.eye(4), list("abcd")), projection="pca", progress=False)
    assert "heads could not be compared" in lonely.to_html() and "errors" not in {s.key for s in lonely.sections}
    with pytest.raises(HeadError, match="NaN"):
        report(fc.FeatureSet(np.full((5, 3), np.nan)), progress=False)
    grid = fc.FeatureSet(rng.normal(size=(8, 2, 3, 3)))
    assert report(grid, progress=False).to_html()


def test_many_classes_and_rows_keep_the_page_short():
    data = codes(600, 150, names=[f"class {'x' * 250} {i}" for i in range(150)])
    page = report(data, heads=["centroid"], shots=["all"], seeds=1, max_rows=300, projection="pca", progress=False)
    text = page.to_html()
    assert len(text) < 400_000 and "too many classes for a matrix" in text and "300 of 600 images" in text
    assert "126 other classes" in text


def test_images_that_do_not_belong_are_said_to(page):
    data = codes(name="d")
    said = report(data, images=pictures(["x", "y"]), sections=["data"], progress=False).to_html()
    assert "None of the images is in the source" in said
    some = report(data, images=pictures(sorted(data.row_ids)[:30]), sections=["map"], projection="pca", progress=False)
    assert "30 of 60 images shown here are not in the source" in some.to_html()


def test_a_small_budget_gives_a_small_page():
    data = codes(90, 3)
    page = report(data, images=pictures(sorted(data.row_ids), 2), sections=["data", "map"], projection="pca",
                  max_bytes=110_000, progress=False)  # fmt: skip
    assert len(page.to_html()) <= 110_000 and "points of the map have no picture" in page.to_html()


def test_provenance_names_the_fingerprint_and_no_place():
    data = codes(fingerprint="f" * 64, spec={"backbone": {"arch": "r"}}, locator={"value": "/x/y", "sha256": "abc"})
    plain = json.dumps(protocol_section({"d": data}, {}).data)
    assert "f" * 64 in plain and "abc" in plain and "/x/y" not in plain


def test_the_command_has_the_words_of_the_callable(capsys, tmp_path):
    from featcache.cli.commands import app

    command = next(c.callback for c in app.registered_commands if c.callback.__name__ == "report")
    options, library = (inspect.signature(f).parameters for f in (command, report))
    shared = set(options) & set(library) - {"out", "heads"}
    assert len(shared) >= 8 and all(options[name].default == library[name].default for name in shared)
    assert tuple(options["heads"].default.split(",")) == library["heads"].default
    folder = write_images(tmp_path / "images", 12)
    tiny = ["--backbone", "squeezenet1_1", "--weights", "random", "--resize", "64", "--crop", "64"]
    tiny += ["--precision", "fp32"]
    assert run(["extract", str(folder), "-o", str(tmp_path / "s"), *tiny, "-q"]) == 0
    capsys.readouterr()
    words = ["report", str(tmp_path / "s"), "-o", str(tmp_path / "r.html"), "--heads", "centroid", "--shots", "all"]
    words += ["-q", "--sections", "summary,data,map", "--json"]
    assert run(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == 12 and found["bytes"] == (tmp_path / "r.html").stat().st_size
    assert run([*words[:3], str(tmp_path / "r.pdf")]) == 1 and "ending in" in capsys.readouterr().err
    assert run([*words[:-1], "--images", "none", "--sections", "data"]) == 0
    assert "0 pictures" in capsys.readouterr().err
    for more, seen in (([], 12), (["--images", "none"], 0)):  # an audit finds the images where a report does
        capsys.readouterr()
        assert run(["audit", str(tmp_path / "s"), "-q", "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["settings"]["images"] == seen
    shutil.rmtree(folder)
    assert run(["audit", str(tmp_path / "s"), "-q"]) == 0 and "no images given" in capsys.readouterr().out
    np.save(tmp_path / "x.npy", np.eye(6))
    assert run(["report", str(tmp_path / "x.npy"), "-o", str(tmp_path / "x.md"), "-q", "--sections", "data"]) == 0


# -- what a browser makes of it --------------------------------------------------------------------------------------

_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--allow-file-access-from-files", "--enable-logging=stderr"),
]

# A frame, since a headless window is at least 500 pixels wide; its script asks the page what it is.
_FRAME = """<body><iframe src="%s" style="border:0;width:%dpx;height:900px"></iframe><pre></pre><script>
onload=()=>{const d=document.querySelector("iframe").contentDocument,e=d.documentElement;
const q=s=>d.querySelectorAll(s).length;
const svg=d.querySelector("#cloud svg");let tip="";
if(svg){svg.dispatchEvent(new d.defaultView.KeyboardEvent("keydown",{key:"ArrowRight",bubbles:true}));
tip=d.querySelector(".tip").innerText}
const found={wide:e.scrollWidth-e.clientWidth,tip,text:d.body.innerText,scripts:q("script"),
foreign:q("iframe,object,embed,link,base,form,video,audio,[onerror],[onload],[onclick]"),
urls:[...d.querySelectorAll("[src],[href]")].map(x=>x.getAttribute("src")||x.getAttribute("href")).filter(
u=>!u.startsWith("#")&&!u.startsWith("data:image/")),titles:[...d.querySelectorAll("[title]")].map(x=>x.title)};
document.querySelector("pre").textContent=JSON.stringify(found)}</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Open a page in a frame of some width: what the page says of itself, and what the browser logged."""
    names = [os.environ.get("FEATCACHE_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    program = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if program is None:
        pytest.skip("no Chromium: install chromium, or name one in FEATCACHE_CHROMIUM")
    folder = tmp_path_factory.mktemp("browser")

    def look(text, width=390):
        (folder / "page.html").write_text(text, encoding="utf-8")
        (folder / "frame.html").write_text(_FRAME % ((folder / "page.html").as_uri(), width))
        with tempfile.TemporaryDirectory() as profile:
            words = [program, *_FLAGS, f"--user-data-dir={profile}", "--dump-dom", (folder / "frame.html").as_uri()]
            done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        import html

        found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.S)
        assert found and found[1], done.stderr[-2000:]
        log = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return json.loads(html.unescape(found[1])), log

    return look


def test_the_browser_test_sees_what_it_looks_for(browse):
    policy = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    found, log = browse(
        f"{policy}<body><div style='width:900px'>x</div><img src='http://127.0.0.1:9/x.png' onerror='x'>"
    )
    assert (
        found["wide"] > 400
        and found["foreign"] == 1
        and found["urls"]
        and any("Security Policy" in line for line in log)
    )


def test_a_browser_shows_the_page_on_a_phone(browse, page):
    for width in (390, 1200):
        found, log = browse(page.to_html(), width)
        assert log == [] and found["wide"] <= 0 and found["foreign"] == 0 and found["urls"] == []
        assert found["scripts"] == 2 and re.search(r"class \d\n[\s\S]*\.png", found["tip"])


def test_hostile_names_are_shown_as_text(browse):
    from featcache.reporting.escaping import short, visible

    ids = [f"{name} {i}/{name[:40]}{i}" for i in range(6) for name in HOSTILE]
    data = codes(48, 8, names=HOSTILE, ids=ids, name=HOSTILE[0], groups=ids)
    readable = [i for i in ids if "\udce9" not in i]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "r.html"
        page = report(data, out, images=pictures(sorted(readable, key=lambda i: i.encode())), **QUICK)
        text = out.read_text(encoding="utf-8")
        page.write(Path(folder) / "r.md")
        page.write(Path(folder) / "r.json")
        assert json.loads((Path(folder) / "r.json").read_text(encoding="utf-8"))["title"] == short(HOSTILE[0], 80)
        assert "<img" not in (Path(folder) / "r.md").read_text(encoding="utf-8").replace("&lt;img", "")
    found, log = browse(text)
    assert log == [] and found["foreign"] == 0 and found["urls"] == [] and found["scripts"] == 2 and found["wide"] <= 0
    shown = re.sub(r"\s+", " ", found["text"])
    for name in HOSTILE:
        assert re.sub(r"\s+", " ", short(name, 48)) in shown, name
    assert visible(HOSTILE[6]) in " ".join(found["titles"])
    assert len(text.encode()) < 3_000_000
