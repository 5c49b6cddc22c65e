"""The command line: same names and defaults as the library, one clear line per mistake, JSON for machines."""

import contextlib
import gc
import inspect
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import write_images
from PIL import Image

import featcache as fc
from featcache.cli import run
from featcache.cli.commands import app

TINY = ["--backbone", "squeezenet1_1", "--weights", "random", "--resize", "64", "--crop", "64", "--precision", "fp32"]


def ok(capsys, *words):
    status = run([str(w) for w in words])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def fails(capsys, status, *words):
    assert run([str(w) for w in words]) == status
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1, captured
    assert captured.err.startswith("featcache: ")
    return captured.err


@pytest.fixture
def store(capsys, image_folder, tmp_path):
    ok(capsys, "extract", image_folder, "-o", tmp_path / "s", *TINY, "-q")
    return tmp_path / "s"


def test_the_whole_path_with_json(capsys, image_folder, tmp_path):
    store, head = tmp_path / "s", tmp_path / "h"
    extracted = json.loads(ok(capsys, "extract", image_folder, "-o", store, *TINY, "--json"))
    assert {
        "store", "fingerprint", "images", "computed", "reused", "failed", "seconds", "images_per_second",
        "steady_images_per_second", "precision",
    } <= set(extracted)  # fmt: skip
    assert (extracted["images"], extracted["computed"], extracted["failed"]) == (12, 12, [])
    assert json.loads(ok(capsys, "extract", image_folder, "-o", store, *TINY, "--json"))["computed"] == 0
    info = json.loads(ok(capsys, "info", store, "--json"))
    assert {"fingerprint", "spec", "images", "nodes", "classes", "bytes"} <= set(info)
    assert info["classes"] == {"cat": 6, "dog": 6} and info["bytes"] > 0
    assert json.loads(ok(capsys, "check", store, "--deep", "--json")) | {"bytes": 0} == {
        "ok": True, "damaged": [], "shards": 1, "snapshots": 1, "deep": True, "bytes": 0,
    }  # fmt: skip
    compared = json.loads(
        ok(capsys, "compare", store, "--heads", "centroid,knn", "--shots", "1,2", "--seeds", 2, "--json")
    )
    wanted = {"head", "shots", "metric", "mean", "std", "ci95", "fit_seconds", "n_train", "n_test"}
    assert all(wanted <= set(row) for row in compared["results"]) and len(compared["results"]) == 4
    fitted = json.loads(ok(capsys, "fit", store, "--head", "logreg", "-o", head, "--json"))
    assert fitted["n_train"] == 12 and fitted["classes"] == ["cat", "dog"] and head.is_file()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no")
    assert run(["predict", str(head), str(image_folder), str(broken), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 13
    assert all(set(row) in ({"id", "label", "scores"}, {"id", "error"}) for row in rows)
    assert [row["id"] for row in rows if "error" in row] == [r["id"] for r in rows if r["id"].endswith("broken.jpg")]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_bar_on_the_terminal_leaves_lines_on_their_way_to_a_file(capsys, store, image_folder, tmp_path):
    import pty

    ok(capsys, "extract", image_folder, "-o", store, *TINY)
    ok(capsys, "fit", store, "--head", "ridge", "-o", tmp_path / "h")
    command = [sys.executable, "-m", "featcache", "predict", str(tmp_path / "h"), str(image_folder)]
    terminal, end = pty.openpty()
    with (tmp_path / "lines.txt").open("wb") as file:
        assert subprocess.run(command, stdout=file, stderr=end, check=False).returncode == 0
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal
        while piece := os.read(terminal, 65536):
            shown += piece
    os.close(terminal)
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert len(lines) == 12 and all(len(line.split("\t")) == 3 for line in lines)
    assert b"predicting" in shown and b"0000.jpg" not in shown


def test_people_see_short_answers(capsys, store, image_folder, tmp_path):
    assert "0 computed, 12 reused" in ok(capsys, "extract", image_folder, "-o", store, *TINY)
    assert "cat 6, dog 6" in ok(capsys, "info", store)
    assert ": ok" in ok(capsys, "check", store)
    assert "knn" in ok(capsys, "compare", store, "--heads", "knn", "--seeds", 2, "--plot", tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert "on 12 rows" in ok(capsys, "fit", store, "-o", tmp_path / "h")
    line = ok(capsys, "predict", tmp_path / "h", image_folder / "cat" / "0000.jpg").split("\t")
    assert len(line) == 3 and line[1] in ("cat", "dog")


def test_a_dry_run_writes_nothing(capsys, store, image_folder, tmp_path):
    assert "nothing was written" in ok(capsys, "extract", image_folder, "-o", tmp_path / "t", *TINY, "--dry-run")
    assert not (tmp_path / "t").exists()
    plan = json.loads(ok(capsys, "extract", image_folder, "-o", store, *TINY, "--dry-run", "--json"))
    assert (plan["images"], plan["reused"], plan["compute"], plan["seconds"]) == (12, 12, 0, 0.0)
    Image.new("RGB", (70, 70)).save(image_folder / "cat" / "extra.png")
    plan = json.loads(ok(capsys, "extract", image_folder, "-o", store, *TINY, "--dry-run", "--json"))
    assert (plan["new"], plan["compute"]) == (1, 1) and plan["seconds"] > 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["extract", "--frobnicate"], 2, "No such option"),
        (["extract"], 2, "source"),
        (["frobnicate"], 2, "frobnicate"),
        (["extract", "{images}", "-o", "{tmp}/x", "--batch-size", "zero"], 2, "batch-size"),
        (["extract", "{images}", "-o", "{tmp}/x", "--crop", "big"], 2, "--crop"),
        (["extract", "{images}", "-o", "{tmp}/x", "--add", "--replace"], 1, "exclude"),
        (["extract", "{tmp}/absent", "-o", "{tmp}/x"], 1, "absent"),
        (["extract", "{tmp}/empty", "-o", "{tmp}/x"], 1, "empty"),
        (["extract", "{images}", "-o", "{tmp}/x", "--backbone", "resnet5000", "--weights", "random"], 1, "resnet5000"),
        (["extract", "{images}", "-o", "{tmp}/x", "--backbone", "resnet18", "--weights", "{tmp}/no.pth"], 1, "no.pth"),
        (["extract", "{images}", "-o", "{tmp}/x", "--precision", "fp99"], 1, "fp99"),
        (["extract", "{images}", "-o", "{tmp}/taken"], 1, "holds other things"),
        (["extract", "{images}", "-o", "{tmp}/file"], 1, "file"),
        (["extract", "{images}", "-o", "{tmp}/taken", "--dry-run"], 1, "holds other things"),
        (["extract", "{images}", "-o", "{tmp}/x", *TINY, "--device", "cuda:99"], 1, "cuda:99"),
        (["extract", "{images}", "-o", "{tmp}/x", *TINY, "--device", "meta"], 1, "meta"),
        (["extract", "{images}", "-o", "{tmp}/x", *TINY, "--device", "gpu"], 1, "gpu"),
        (["extract", "{images}", "-o", "{tmp}/x", *TINY, "--view", "../x"], 1, "view"),
        (["extract", "", "-o", "{tmp}/x", *TINY], 2, "SOURCE"),
        (["extract", "{images}", "-o", "{tmp}/x", "--backbone", "resnet18", "--weights", ""], 2, "--weights"),
        (["extract", "{images}", "-o", "{tmp}/x", *TINY, "--nodes", ""], 2, "--nodes"),
        (["extract", "{tmp}/link", "-o", "{tmp}/x", *TINY], 1, "broken link"),
        (["extract", "{tmp}/list.csv", "-o", "{tmp}/x", *TINY, "--root", "{tmp}/file"], 1, "got a file"),
        (["info", "{store}", "--view", "absent"], 1, "no view"),
        (["compare", "{store}", "--seeds", "1000000000000"], 2, "--seeds"),
        (["compare", "{store}", "--plot", "{tmp}/p.xyz"], 1, "p.xyz"),
        (["compare", "{store}", "--plot", "{tmp}/absent/p.png"], 1, "absent"),
        (["fit", "{store}", "-o", "{tmp}/file"], 1, "is no head"),
        (["fit", "{store}", "-o", "{store}/store.json"], 1, "is no head"),
        (["fit", "{store}", "-o", "{tmp}/empty"], 1, "folder"),
        (["fit", "{store}", "-o", ""], 1, "folder"),
        (["fit", "{store}", "-o", "{tmp}/absent/h"], 1, "absent"),
        (["fit", "{store}", "-o", "{tmp}/h", "--seed", "-1"], 2, "--seed"),
        (["predict", "{head}", ""], 2, "IMAGE"),
        (["predict", "{head}", "{images}", "--device", "cuda:99"], 1, "cuda:99"),
        (["info", "{tmp}/absent"], 1, "no such store"),
        (["info", "{images}"], 1, "no store.json"),
        (["check", "{tmp}/absent"], 1, "no such store"),
        (["compare", "{tmp}/absent"], 1, "no such store"),
        (["compare", "{store}", "--heads", "magic"], 1, "magic"),
        (["compare", "{store}", "--shots", "0"], 2, "--shots"),
        (["compare", "{store}", "--metric", "luck"], 1, "luck"),
        (["compare", "{store}", "--view", "absent"], 1, "no view"),
        (["compare", "{store}", "--label", "absent"], 1, "no column"),
        (["fit", "{single}", "-o", "{tmp}/h"], 1, "two classes"),
        (["fit", "{flat}", "-o", "{tmp}/h"], 1, "no row has a label"),
        (["predict", "{tmp}/absent", "{images}"], 1, "absent"),
        (["predict", "{tmp}/file", "{images}"], 1, "file"),
        (["backbones", "resnet5000"], 2, "resnet5000"),
        (["backbones", "--nodes"], 2, "name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_each_mistake_gets_one_clear_line(capsys, mistakes, words, status, said):
    error = fails(capsys, status, *[w.format(**mistakes) for w in words])
    assert said in error
    assert not (mistakes["tmp"] / "x").exists() and (mistakes["tmp"] / "file").read_text() == "not a store"


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("mistakes")
    (tmp / "empty").mkdir()
    (tmp / "taken").mkdir()
    (tmp / "taken" / "thesis.tex").write_text("precious")
    (tmp / "file").write_text("not a store")
    images = write_images(tmp / "images", 6)
    write_images(tmp / "one", 4, classes=("only",))
    flat = write_images(tmp / "flatten", 4, classes=(".",))
    for name, folder in (("store", images), ("single", tmp / "one"), ("flat", flat)):
        assert run(["extract", str(folder), "-o", str(tmp / name), *TINY, "-q"]) == 0
    (tmp / "link").symlink_to("nowhere")
    (tmp / "list.csv").write_text("path\ncat/0000.jpg\n")
    assert run(["fit", str(tmp / "store"), "-o", str(tmp / "head"), "--head", "knn"]) == 0
    return {"tmp": tmp, "images": images, "head": tmp / "head", **{n: tmp / n for n in ("store", "single", "flat")}}


def test_another_crop_size_prints_the_difference(capsys, store, image_folder):
    words = [w if w != "64" else "48" for w in TINY]
    assert "preprocess.crop: 64, not 48" in fails(capsys, 1, "extract", image_folder, "-o", store, *words)


def test_damage_gives_status_3(capsys, store):
    shard = next((store / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.chmod(0o644)
    shard.write_bytes(data)
    assert run(["check", str(store), "--deep", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and shard.name in report["damaged"][0]["file"] and report["damaged"][0]["images"]
    assert run(["check", str(store), "--deep"]) == 3
    assert "costs 12 images" in capsys.readouterr().out
    assert shard.name in fails(capsys, 1, "compare", store)


def test_a_damaged_store_json_is_damage_too(capsys, store):
    (store / "store.json").chmod(0o644)
    (store / "store.json").write_text("{}")
    assert run(["check", str(store), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and [d["file"] for d in report["damaged"]] == ["store.json"]
    assert run(["check", str(store)]) == 3 and "1 damaged" in capsys.readouterr().out


def test_codes_that_cannot_be_opened_are_not_called_missing(capsys, store):
    shard = next((store / "shards").iterdir())
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:100])
    for words in (["compare", store], ["fit", store, "-o", store.parent / "h"]):
        assert shard.name in fails(capsys, 1, *words)


def test_a_store_inside_its_source_is_no_part_of_it(capsys, image_folder):
    words = ["extract", image_folder, "-o", image_folder / "codes", *TINY, "--json"]
    first = json.loads(ok(capsys, *words))
    again = [json.loads(ok(capsys, *words)) for _ in range(2)]
    assert [r["images"] for r in (first, *again)] == [12, 12, 12] and first["ignored"] == {}
    assert [r["ignored"] for r in again] == [{"(featcache store)": 1}] * 2
    assert again[0]["snapshot"] == again[1]["snapshot"]  # and looking at itself does not make it grow
    assert "1 (featcache store)" in fails(capsys, 1, "extract", image_folder / "codes", "-o", image_folder / "x", *TINY)


def test_a_head_replaces_a_head(capsys, store, tmp_path):
    for name in ("knn", "logreg"):
        assert name in ok(capsys, "fit", store, "-o", tmp_path / "h", "--head", name)
    (tmp_path / "h").write_bytes((tmp_path / "h").read_bytes()[:3000])  # a damaged one as well
    ok(capsys, "fit", store, "-o", tmp_path / "h")
    assert fc.FittedHead.load(tmp_path / "h").n_train == 12


def test_names_with_control_characters_stay_one_cell(capsys, store, image_folder, tmp_path):
    odd = image_folder / "dog" / "tab\tline\nred\x1b[31m.jpg"
    (image_folder / "dog" / "0001.jpg").rename(odd)
    ok(capsys, "fit", store, "-o", tmp_path / "h", "--head", "knn")
    lines = ok(capsys, "predict", tmp_path / "h", image_folder).splitlines()
    assert len(lines) == 12 and all(len(line.split("\t")) == 3 for line in lines)
    assert any(r"tab\tline\nred\x1b[31m.jpg" in line for line in lines)
    rows = json.loads(ok(capsys, "predict", tmp_path / "h", odd, "--json"))
    assert rows[0]["id"] == str(odd)


def test_warnings_of_pillow_are_no_concern(capsys, image_folder, tmp_path, recwarn):
    import warnings

    import featcache.preprocess.recipe as recipe

    original = recipe.Preprocess.pixels

    def noisy(self, payload):
        warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 982, "PIL.TiffImagePlugin")
        return original(self, payload)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.Preprocess, "pixels", noisy)
        ok(capsys, "extract", image_folder, "-o", tmp_path / "s", *TINY)
    assert not [w for w in recwarn if "EXIF" in str(w.message)]


@pytest.mark.parametrize(("name", "lacking"), [("label", "no train and no test part"), ("test", "no train part")])
def test_a_split_column_that_cannot_be_used_is_said(capsys, store, image_folder, tmp_path, name, lacking):
    if name == "test":
        image_folder.rename(tmp_path / "test")
        (tmp_path / "all").mkdir()
        (tmp_path / "test").rename(tmp_path / "all" / "test")
        store = tmp_path / "t"
        ok(capsys, "extract", tmp_path / "all", "-o", store, *TINY, "-q")
    words = ["--split", "label"] if name == "label" else []
    assert lacking in ok(capsys, "compare", store, "--heads", "knn", "--seeds", "2", *words)


def test_notes_are_said_once(capsys, store):
    assert run(["compare", str(store), "--heads", "knn", "--shots", "1", "--seeds", "2"]) == 0
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("nothing to choose on") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("backbones | head -1; exit ${{PIPESTATUS[0]}}", 0, "name"),
        ("info {store} >&-", 0, ""),
        ("info {store}/absent 2>&-", 1, ""),
        ("info {store} --json > /dev/full", 1, "No space left"),
        ("backbones resnet18", 0, "224"),
    ],
)
def test_streams_of_all_kinds(store, words, status, said):
    command = f"PYTHONIOENCODING=ascii {sys.executable} -m featcache {words.format(store=store)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == status and said in done.stdout + done.stderr, done
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == (1 if "full" in words else 0)


def test_failures_beyond_the_budget_exit_1_and_keep_the_rows(capsys, image_folder, tmp_path):
    (image_folder / "cat" / "broken.jpg").write_bytes(b"no")
    words = ["extract", image_folder, "-o", tmp_path / "s", *TINY]
    assert run([str(w) for w in [*words, "--json"]]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [f["id"] for f in report["failed"]] == ["cat/broken.jpg"] and report["computed"] == 12
    assert captured.err.count("\n") == 1
    assert json.loads(ok(capsys, *words, "--json", "--max-failed", "0.1"))["computed"] == 0


def test_help_is_fast_and_every_verb_has_an_example(capsys):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "featcache", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"Example: featcache {name}" in " ".join(ok(capsys, name, "--help").split())


def test_help_and_usage_import_nothing_heavy():
    code = "from featcache.cli import run; run(['--help']); run(['extract', '--nope'])"
    code += "\nimport sys; assert not {'torch', 'sklearn', 'h5py', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "name",
    ["advise", "audit", "compare", "extract", "finetune", "fit", "predict", "rank", "report", "suggest", "verify"],
)
def test_options_have_the_names_and_defaults_of_the_library(name):
    command = next(c.callback for c in app.registered_commands if c.callback.__name__ == name)
    options, library = inspect.signature(command).parameters, inspect.signature(getattr(fc, name)).parameters
    shared = set(options) & set(library)
    assert len(shared) >= 3
    for parameter in shared - {"cache"}:  # the command remembers results, a call does not unless it is told to
        default = library[parameter].default
        default = ",".join(map(str, default)) if isinstance(default, tuple) else default
        if default is not inspect.Parameter.empty and options[parameter].default is not inspect.Parameter.empty:
            assert options[parameter].default == default, parameter


def test_version(capsys):
    assert ok(capsys, "--version").strip() == f"featcache {fc.__version__}"


def test_backbones_and_nodes_are_listed(capsys):
    rows = json.loads(ok(capsys, "backbones", "--json"))
    assert rows[0]["name"] == "embedded" and any(r["name"] == "resnet50" for r in rows)
    assert "resnet18" in ok(capsys, "backbones", "resnet18")
    nodes = json.loads(ok(capsys, "backbones", "resnet18", "--nodes", "--json"))
    assert [n["pooled"] for n in nodes if n["penultimate"]] == [[512]]
    assert "→" in ok(capsys, "backbones", "resnet18", "--nodes")


def test_a_list_with_columns_of_other_names(capsys, image_folder, tmp_path):
    rows = ["bild,art,fall,teil"]
    for number, path in enumerate(sorted(image_folder.rglob("*.jpg"))):
        rows.append(f"{path.relative_to(image_folder).with_suffix('')},0{number % 2},p{number // 4},train")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    ok(
        capsys, "extract", tmp_path / "list.csv", "-o", tmp_path / "s", *TINY, "--root", image_folder,
        "--suffix", ".jpg", "--path-column", "bild", "--label-column", "art", "--group-column", "fall",
    )  # fmt: skip
    data = fc.FeatureStore.open(tmp_path / "s").load()
    assert data.classes.tolist() == ["00", "01"] and np.unique(data.groups).tolist() == ["p0", "p1", "p2"]


# -- starting and ending ---------------------------------------------------------------------------------------------


def test_a_command_leaves_the_collector_as_it_was():
    before = gc.get_threshold()
    assert run(["--version"]) == 0
    assert gc.get_threshold() == before


def test_the_end_runs_what_was_registered_and_loses_no_output():
    code = (
        "import atexit, sys; from featcache.cli.starting import leave; atexit.register(print, 'registered')\n"
        "print('written', end=''); leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "writtenregistered\n")


def test_joblibs_processes_do_not_keep_a_command_from_ending():
    code = (
        "import joblib, time\nfrom featcache.cli.starting import leave\n"
        "joblib.Parallel(n_jobs=2)(joblib.delayed(time.sleep)(0.5) for i in range(4)); leave(3)"
    )
    # They would wait five minutes for more work.
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_the_end_says_when_output_could_not_be_written():
    code = "from featcache.cli.starting import leave; print('much'); leave(0)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-c", code]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    assert done.returncode == 120 and "No space left" in done.stderr


def test_help_names_all_heads(capsys):
    from featcache.heads import HEADS

    words = " ".join(ok(capsys, "fit", "--help").split())
    assert all(name in words for name in HEADS)
