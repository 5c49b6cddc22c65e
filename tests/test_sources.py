"""Sources: what is found, in what order, under what ids, with what columns; and what is refused, in what words."""

from __future__ import annotations

import io
import os
import pickle
import random
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from featcache.errors import ImageError, SourceError
from featcache.images import open_rgb
from featcache.sources import FileStat, ImageSource


def png(level: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), level).save(stream, "PNG")
    return stream.getvalue()


def fill(root, *names):
    for level, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(level % 256))
    return root


def refused(message, call, *args, **kwargs):
    with pytest.raises(SourceError, match=message) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- folders


def test_label_is_the_first_folder_level(tmp_path):
    fill(tmp_path, "cat/1.jpg", "cat/deep/er/1.jpg", "dog/1.jpg", "Zebra/1.JPG", "01/1.png")
    source = ImageSource.from_folder(tmp_path)
    assert source.ids == ("01/1.png", "Zebra/1.JPG", "cat/1.jpg", "cat/deep/er/1.jpg", "dog/1.jpg")
    assert source.columns["label"].tolist() == ["01", "Zebra", "cat", "cat", "dog"]
    assert source.columns["label"].dtype.kind == "U"
    assert source.roles == {"label": "label"}
    assert source.name == tmp_path.name
    assert source.location == str(tmp_path)


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "VALID", "Test"), ("train", "val"), ("validation",)])
def test_split_folders(tmp_path, names):
    fill(tmp_path, *(f"{name}/{label}/x.jpg" for name in names for label in ("a", "b")))
    source = ImageSource.from_folder(tmp_path)
    meaning = {"valid": "val", "validation": "val"}
    expected = [meaning.get(i.split("/")[0].lower(), i.split("/")[0].lower()) for i in source.ids]
    assert source.columns["split"].tolist() == expected
    assert source.columns["label"].tolist() == [i.split("/")[1] for i in source.ids]
    assert source.roles == {"label": "label", "split": "split"}


def test_a_class_called_train_is_a_class_among_others(tmp_path):
    source = ImageSource.from_folder(fill(tmp_path, "train/1.jpg", "car/1.jpg"))
    assert source.columns["label"].tolist() == ["car", "train"]
    assert "split" not in source.columns


def test_flat_is_unlabelled_and_stray_images_have_no_label(tmp_path):
    flat = ImageSource.from_folder(fill(tmp_path / "flat", "b.jpg", "a.jpg"))
    assert flat.ids == ("a.jpg", "b.jpg")
    assert flat.columns == {}
    mixed = ImageSource.from_folder(fill(tmp_path / "mixed", "b.jpg", "x/a.jpg"))
    assert mixed.columns["label"].tolist() == ["", "x"]
    split = ImageSource.from_folder(fill(tmp_path / "split", "train/b.jpg", "test/a.jpg"))
    assert split.roles == {"split": "split"}


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    names = [
        f"{folder}/{name}.png" for folder in ("b", "a", "a!", "ä", "Ω", "a b") for name in ("10", "9", "é", "Z", "z")
    ]
    fill(tmp_path, *names)
    expected = tuple(sorted(names, key=lambda name: name.encode()))
    assert ImageSource.from_folder(tmp_path).ids == expected
    from featcache.sources import folders

    entries = folders._entries
    for seed in range(3):
        monkeypatch.setattr(folders, "_entries", lambda f, s=seed: random.Random(s).sample(e := entries(f), len(e)))
        source = ImageSource.from_folder(tmp_path)
        assert source.ids == expected
        assert all(source.read(i) == (tmp_path / source.ids[i]).read_bytes() for i in range(len(source)))


def test_what_is_a_candidate(tmp_path):
    fill(tmp_path, "a.jpg", "noextension", "photo.dat", ".hidden.jpg", ".git/x.jpg", "__MACOSX/x.jpg", "vector.eps")
    (tmp_path / "index.csv").write_text("file\na.jpg\n")
    (tmp_path / "README").write_text("no image")
    (tmp_path / "broken.jpeg").write_text("no image, but called one")
    (tmp_path / "x.tar.gz").write_bytes(b"")
    source = ImageSource.from_folder(tmp_path)
    assert source.ids == ("a.jpg", "broken.jpeg", "noextension", "photo.dat")
    assert source.ignored == {"(hidden)": 3, "(no extension)": 1, ".csv": 1, ".eps": 1, ".gz": 1}


def test_known_extensions_are_not_opened(tmp_path, monkeypatch):
    from featcache.sources import folders

    fill(tmp_path, "a.jpg", "b.txt", "c.csv")

    def never(path):
        raise AssertionError(path)

    monkeypatch.setattr(folders, "_begins_like_image", never)
    assert ImageSource.from_folder(tmp_path).ids == ("a.jpg",)


def test_links(tmp_path):
    fill(tmp_path / "data", "a/1.jpg", "b/1.jpg")
    fill(tmp_path / "elsewhere", "2.jpg")
    data = tmp_path / "data"
    (data / "a" / "up").symlink_to(data)
    (data / "a" / "self").symlink_to("self")
    (data / "b" / "here").symlink_to(".")
    (data / "c").symlink_to(tmp_path / "elsewhere")
    (data / "b" / "file.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    (data / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = ImageSource.from_folder(data)
    assert source.ids == ("a/1.jpg", "b/1.jpg", "b/file.jpg", "b/gone.jpg", "c/2.jpg")
    assert source.ignored["(link loop)"] == 2
    gone = source.ids.index("b/gone.jpg")
    assert source.stat(gone) is None
    with pytest.raises(OSError, match="gone"):
        source.read(gone)
    linked = tmp_path / "link"
    linked.symlink_to(data)
    assert ImageSource.from_folder(linked).ids == source.ids


def test_links_to_each_other_end(tmp_path):
    for one in "abc":
        fill(tmp_path, f"{one}/1.jpg")
        for other in "abc":
            (tmp_path / one / f"to_{other}").symlink_to(tmp_path / other)
    source = ImageSource.from_folder(tmp_path)
    assert len(source) == 3 * (1 + 2 + 2)  # every way through the three folders that comes by none twice
    assert source.ignored["(link loop)"] > 0


def test_pipes_sockets_and_folders_called_like_images_do_not_hold_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        fill(tmp_path, "folder.jpg/x.jpg")
        source = ImageSource.from_folder(tmp_path)
        assert source.ids == ("folder.jpg/x.jpg", "pipe.jpg", "socket.jpg")
        assert source.ignored == {"(no extension)": 1}
        with pytest.raises(ImageError, match="expected a file, got a pipe"):
            source.read(1)
        with pytest.raises(OSError):
            source.read(2)
    with pytest.raises(ImageError, match="a device"):
        ImageSource.from_paths(["/dev/zero"]).read(0)


def test_names_that_are_not_utf_8(tmp_path):
    raw = [b"caf\xe9/\xff.png", b"caf\xc3\xa9/1.png", b"back\\slash.png", b"new\nline.png", b"caf\\xe9/\\xff.png"]
    for name in raw:
        path = os.fsencode(tmp_path) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(png())
    source = ImageSource.from_folder(tmp_path)
    assert sorted(source.ids) == sorted(
        ["caf\\xe9/\\xff.png", "café/1.png", "back\\x5cslash.png", "new\nline.png", "caf\\x5cxe9/\\x5cxff.png"]
    )
    assert all(identity.encode("utf-8") for identity in source.ids)
    assert [source.read(i) for i in range(5)] == [png()] * 5
    assert "caf\\xe9" in source.columns["label"].tolist()
    assert all(source.stat(i).path.encode("utf-8") for i in range(5))
    again = pickle.loads(pickle.dumps(source))
    assert again.ids == source.ids
    assert again.read(0) == png()


def test_stat(tmp_path):
    source = ImageSource.from_folder(fill(tmp_path, "a.jpg"))
    found = os.stat(tmp_path / "a.jpg")
    assert source.stat(0) == FileStat(
        str(tmp_path / "a.jpg"), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev
    )


def test_a_moved_working_directory_does_not_matter(tmp_path, monkeypatch):
    fill(tmp_path, "d/a.jpg")
    monkeypatch.chdir(tmp_path)
    sources = [ImageSource.from_folder("d"), ImageSource.from_paths(["d/a.jpg"])]
    monkeypatch.chdir("/")
    assert [source.read(0) for source in sources] == [png()] * 2
    assert sources[0].name == "d"


def test_folders_that_cannot_serve(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("expected images .*got an empty folder", ImageSource.from_folder, tmp_path / "empty")
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").write_text("")
    refused(r"got only 3 \.txt; give the folder", ImageSource.from_folder, tmp_path / "texts")
    refused("did you mean '.*/texts'", ImageSource.from_folder, tmp_path / "text")
    refused("did you mean '.*/texts'", ImageSource.from_folder, tmp_path / "text" / "deeper")
    refused("has no 'qqqq'", ImageSource.from_folder, tmp_path / "qqqq" / "deeper")
    refused("got a file; .*from_list", ImageSource.from_folder, tmp_path / "texts" / "0.txt")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    refused("got a broken link", ImageSource.from_folder, tmp_path / "dangling")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    fill(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    refused("b: expected a folder that can be listed, got Permission denied", ImageSource.from_folder, tmp_path)


def test_scanning_is_fast(tmp_path):
    import time

    for label in range(10):
        (tmp_path / str(label)).mkdir()
        for i in range(500):
            (tmp_path / str(label) / f"{i}.jpg").touch()
    start = time.perf_counter()
    source = ImageSource.from_folder(tmp_path)
    assert len(source) == 5000
    assert time.perf_counter() - start < 2  # 0.02 s on an idle machine


# --------------------------------------------------------------------------------------------------------- lists


def listing(root, text, name="list.csv", encoding="utf-8"):
    path = root / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def images(tmp_path):
    return fill(tmp_path, "a.jpg", "b.jpg", "c/d.jpg")


def test_csv_stays_text(images):
    path = listing(images, "ID,File,Class,Split,group,width\n7,b.jpg,01,test,g1,NA\n8,a.jpg,1,train,,003\n")
    source = ImageSource.from_list(path)
    assert source.ids == ("a.jpg", "b.jpg")
    assert source.roles == {"label": "Class", "split": "Split", "group": "group"}
    assert {name: column.tolist() for name, column in source.columns.items()} == {
        "ID": ["8", "7"],
        "Class": ["1", "01"],
        "Split": ["train", "test"],
        "group": ["", "g1"],
        "width": ["003", "NA"],
    }
    assert [source.read(i) for i in range(2)] == [png(0), png(1)]
    assert source.name == "list"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_dialects(images, delimiter, encoding, end):
    rows = [("note, with; all", "path", "label"), ("x", "a.jpg", "é"), ('"say ""hi"" \n', "b.jpg", "f")]
    cells = [[f'"{c}"' if i == 0 and k == 0 else c for i, c in enumerate(row)] for k, row in enumerate(rows)]
    cells[2][0] = '"two\nlines"'
    text = end.join(delimiter.join(row) for row in cells) + end + delimiter * 2 + end + end
    source = ImageSource.from_list(listing(images, text, encoding=encoding))
    assert source.ids == ("a.jpg", "b.jpg")
    assert source.columns["label"].tolist() == ["é", "f"]


def test_tsv_and_excel_hint(images):
    assert len(ImageSource.from_list(listing(images, "path\tlabel\na.jpg\tx,y\n", "l.tsv"))) == 1
    assert len(ImageSource.from_list(listing(images, "sep=;\npath;label\na.jpg;x,y\n"))) == 1


def test_other_names_root_and_suffix(images, tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    path = listing(folder, "what,where\n1,a\n2,b.jpg\n")
    options = {"root": images, "suffix": ".jpg", "path_column": "WHERE", "label_column": "what"}
    source = ImageSource.from_list(path, **options)
    assert source.ids == ("a.jpg", "b.jpg")
    assert source.roles == {"label": "what"}
    assert ImageSource.open(path, **options).ids == source.ids


def test_paths_are_normalised_and_absolute_ones_stated(images, tmp_path):
    other = fill(tmp_path / "other", "x.jpg")
    path = listing(images, f"path\n./c/../a.jpg\n{images}/b.jpg\n{other}/x.jpg\nc//d.jpg\n")
    source = ImageSource.from_list(path)
    assert set(source.ids) == {"a.jpg", "b.jpg", "c/d.jpg", "other/x.jpg"}
    outside = listing(other, f"path\n{images}/b.jpg\n../a.jpg\nx.jpg\n")
    source = ImageSource.from_list(outside)
    assert set(source.ids) == {f"{images}/b.jpg", "../a.jpg", "x.jpg"}
    assert sorted(source.read(i) for i in range(3)) == sorted([png(1), png(0), png(0)])


def test_backslashes(images):
    fill(images, "literal\\name.jpg")
    source = ImageSource.from_list(listing(images, "path\nc\\d.jpg\nliteral\\name.jpg\n"))
    assert source.ids == ("c/d.jpg", "literal\\x5cname.jpg")
    assert source.read(1) == png()
    again = ImageSource.from_list(listing(images, "path\n" + "\n".join(source.ids) + "\n"))
    assert again.ids == source.ids


def test_duplicates(images):
    source = ImageSource.from_list(listing(images, "path,label\na.jpg,x\n./a.jpg,x\nb.jpg,y\n"))
    assert source.ids == ("a.jpg", "b.jpg")
    path = listing(images, "path,label\na.jpg,x\nb.jpg,y\na.jpg,z\n")
    refused(
        "line 4: expected 'a.jpg' to be listed once, got label 'z' here and 'x' in line 2", ImageSource.from_list, path
    )


def test_missing_images(images):
    source = ImageSource.from_list(listing(images, "path\na.jpg\nmissing.jpg\n"))
    assert source.stat(1) is None
    with pytest.raises(FileNotFoundError):
        source.read(1)
    refused("got none of 2, the first .*/u; give root=", ImageSource.from_list, listing(images, "path\nu\nv\n"))
    refused(r"give suffix='\.jpg'", ImageSource.from_list, listing(images, "path\na\nb\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected column names and at least one row, got 0"),
        ("path,label\n", "got 1 lines"),
        ("name,label\na.jpg,x\n", "expected a column path, file, image, filename, got name, label; give path_column="),
        ("a.jpg\nb.jpg\n", "path_column="),
        ("path,label\na.jpg\n", "line 2: expected 2 cells as in the first line, got 1"),
        ("path,label\na.jpg,x\nb.jpg,x,y\n", "line 3: expected 2 cells"),
        ("path,path\na.jpg,x\n", "'path' twice"),
        ('path,label\na.jpg,"x\nb.jpg,y\n', "check the quotes"),
        ("path,label\n,x\n", "line 2: expected the path of an image, got ''"),
        ("path\na\0.jpg\n", "line 2"),
        ("path\nhttps://example.org/a.jpg\n", "a file on this machine"),
        ("path,label\na.jpg," + "x" * 200_000 + "\n", "field larger"),
    ],
)
def test_lists_that_cannot_serve(images, text, message):
    refused(message, ImageSource.from_list, listing(images, text))


def test_other_things_that_are_no_list(images):
    refused(
        r"line 3: expected UTF-8, got byte 0xe9; save it",
        ImageSource.from_list,
        listing(images, "path\na\né\n", encoding="cp1252"),
    )
    refused("got a folder; use from_folder", ImageSource.from_list, images)
    path = listing(images, "path\na.jpg\n")
    refused("did you mean '.*list.csv'", ImageSource.from_list, images / "lisst.csv")
    refused("folder that the list's paths", ImageSource.from_list, path, root=images / "nowhere")
    refused("expected a column 'cls', got path; give label_column=", ImageSource.from_list, path, label_column="cls")


def test_a_long_text_does_not_explode(images, monkeypatch):
    from featcache.sources import columns

    monkeypatch.setattr(columns, "_MAX_TEXT_BYTES", 1000)
    path = listing(images, "path,caption\na.jpg," + "x" * 300 + "\n")
    refused("column 'caption': .*leave the column out", ImageSource.from_list, path)


def test_large_list(images):
    import time

    text = "path,label,note\n" + "".join(f"{i}.jpg,{i % 10},n{i}\n" for i in range(100_000)) + "a.jpg,x,y\n"
    path = listing(images, text)
    start = time.perf_counter()
    source = ImageSource.from_list(path)
    assert len(source) == 100_001
    assert time.perf_counter() - start < 10  # 0.7 s on an idle machine, most of it asking for files that are not there


def test_parquet(images):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table(
        {
            "image": ["b.jpg", "a.jpg"],
            "label": arrow.array(["x", None]).dictionary_encode(),
            "number": arrow.array([1, 2], arrow.int16()),
            "gap": [3, None],
            "weight": [0.5, None],
            "flag": [True, False],
            "day": arrow.array([0, 1], arrow.date32()),
            "pixels": [b"1", b"2"],
            "box": [[1, 2], [3]],
        }
    )
    parquet.write_table(table, images / "list.parquet")
    source = ImageSource.open(images / "list.parquet")
    assert source.ids == ("a.jpg", "b.jpg")
    columns = source.columns
    assert columns["label"].tolist() == ["", "x"]
    assert columns["number"].dtype == np.int64
    assert columns["number"].tolist() == [2, 1]
    assert columns["gap"].tolist() == ["", "3"]
    assert columns["weight"].dtype == np.float64
    assert np.isnan(columns["weight"][0])
    assert columns["flag"].tolist() == [False, True]
    assert columns["day"].tolist() == ["1970-01-02", "1970-01-01"]
    assert sorted(key.split(":")[0] for key in source.ignored) == ["(column box", "(column pixels"]
    (images / "bad.parquet").write_bytes(b"PAR1 no")
    refused("expected a parquet file", ImageSource.from_list, images / "bad.parquet")


def test_parquet_without_pyarrow(images, monkeypatch):
    (images / "list.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(r"pip install 'featcache\[parquet\]'", ImageSource.from_list, images / "list.parquet")


# -------------------------------------------------------------------------------------------------------- memory


def test_arrays():
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    source = ImageSource.from_arrays(images, [7, 8, 9], groups=["a", None, "b"], splits=["train", "val", "test"])
    assert source.ids == ("00000000", "00000001", "00000002")
    assert source.columns["label"].dtype == np.int64
    assert source.columns["group"].tolist() == ["a", "", "b"]
    assert source.roles == {"label": "label", "group": "group", "split": "split"}
    assert np.array_equal(source.read(1), images[1])
    assert source.stat(0) is None
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(2), images[2])


def test_ids_of_arrays_bring_their_rows_along():
    images = [Image.new("L", (1, 1), level) for level in range(3)]
    source = ImageSource.from_arrays(images, ["2", "10", "1"], ids=["b", "ä", "B"])
    assert source.ids == ("B", "b", "ä")
    assert source.columns["label"].tolist() == ["1", "2", "10"]
    assert [source.read(i).getpixel((0, 0)) for i in range(3)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": []}, "at least one image"),
        ({"images": np.zeros((8, 8, 3))}, "put a single image into a list"),
        ({"images": np.zeros((8, 8))}, "put a single image into a list"),
        ({"images": Image.new("L", (1, 1))}, "put a single image into a list"),
        ({"images": ["a.jpg"]}, r"images\[0\].*from_paths"),
        ({"images": [np.zeros((2, 2))], "labels": [1, 2]}, "labels: expected 1 values"),
        ({"images": [np.zeros((2, 2))] * 2, "labels": ["a", 1]}, "labels: .*a mixture"),
        ({"images": [np.zeros((2, 2))], "labels": [[1, 2]]}, "labels: expected 1 values"),
        ({"images": [np.zeros((2, 2))] * 2, "ids": ["a", "a"]}, "'a' twice"),
        ({"images": [np.zeros((2, 2))] * 2, "ids": ["a"]}, "ids: expected 2"),
        ({"images": [np.zeros((2, 2))], "ids": [1]}, "ids: expected text"),
        ({"images": [np.zeros((2, 2))], "ids": ["\udcff"]}, "ids: expected text"),
    ],
)
def test_arrays_that_cannot_serve(arguments, message):
    refused(message, lambda: ImageSource.from_arrays(**arguments))


# ------------------------------------------------------------------------------------------------------ data sets


class Items:
    """A map-style data set of given items."""

    def __init__(self, items, **attributes):
        self.items = items
        self.reads = []
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads.append(i)
        item = self.items[i]
        return item() if callable(item) else item


def pil(level=0):
    return Image.new("RGB", (4, 3), (level, level, level))


def test_torchvision_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Normalize, PILToTensor, RandomCrop, ToTensor

    root = tmp_path / "set"
    for k, label in enumerate(("cat", "dog")):
        (root / label).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(9 * k + i).integers(0, 256, (6, 5, 3), np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    plain = ImageSource.from_dataset(ImageFolder(root))
    assert plain.columns["label"].tolist() == ["cat"] * 3 + ["dog"] * 3
    assert plain.location == str(root)
    for transform in (ToTensor(), PILToTensor()):
        source = ImageSource.from_dataset(ImageFolder(root, transform))
        assert source.read(4).dtype == np.uint8
        for i in range(6):
            assert np.array_equal(np.asarray(source.read(i)), np.asarray(plain.read(i)))
    normalised = ImageFolder(root, Compose([ToTensor(), Normalize([0.5] * 3, [0.1] * 3)]))
    refused("without Normalize", ImageSource.from_dataset, normalised)
    refused("the same pixels in two reads", ImageSource.from_dataset, ImageFolder(root, RandomCrop(2)))
    assert ImageSource.from_dataset(ImageFolder(root, RandomCrop(2)), version="2").version == "2"


def test_subset_and_concat_keep_class_names():
    from torch.utils.data import ConcatDataset, Subset, TensorDataset

    items = Items([(pil(i), i % 2) for i in range(6)], classes=["even", "odd"], targets=[0, 1] * 3)
    subset = ImageSource.from_dataset(Subset(items, [5, 0]))
    assert subset.columns["label"].tolist() == ["odd", "even"]
    joined = ImageSource.from_dataset(ConcatDataset([items, items]))
    assert joined.columns["label"].tolist() == ["even", "odd"] * 6
    import torch

    tensors = TensorDataset(torch.zeros(3, 1, 4, 4), torch.tensor([3, 4, 5]))
    source = ImageSource.from_dataset(tensors)
    assert source.columns["label"].tolist() == ["3", "4", "5"]
    assert source.read(0).shape == (4, 4, 1)


def test_labels_in_a_list_spare_reading_all_items():
    items = Items([(pil(), i) for i in range(1000)], targets=list(range(1000)))
    source = ImageSource.from_dataset(items)
    assert source.columns["label"].tolist() == [str(i) for i in range(1000)]
    assert len(items.reads) < 50


def test_labels_in_a_list_that_says_otherwise_are_not_believed():
    items = Items([(pil(), 1 - i % 2) for i in range(10)], targets=[i % 2 for i in range(10)])
    assert ImageSource.from_dataset(items).columns["label"].tolist() == [str(1 - i % 2) for i in range(10)]
    shifted = Items([(pil(), i + 5) for i in range(4)], targets=list(range(4)), target_transform=lambda t: t + 5)
    assert ImageSource.from_dataset(shifted).columns["label"].tolist() == ["5", "6", "7", "8"]


@pytest.mark.parametrize("form", ["dict", "pair", "bare", "list"])
def test_forms_of_items(form):
    wrap = {"dict": lambda i: {"Image": pil(i), "label": i}, "pair": lambda i: (pil(i), i)}
    wrap |= {"bare": pil, "list": lambda i: [pil(i), str(i), "more"]}
    source = ImageSource.from_dataset(Items([wrap[form](i) for i in range(3)]))
    assert source.read(2).getpixel((0, 0)) == (2, 2, 2)
    assert ("label" in source.columns) == (form != "bare")
    if form != "bare":
        assert source.columns["label"].tolist() == ["0", "1", "2"]


def test_tensors():
    import torch

    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    for tensor in (
        levels,
        levels / 255,
        levels[0],
        (levels / 255).double(),
        (levels / 255).bfloat16(),
        (levels / 255).half(),
    ):
        array = ImageSource.from_dataset(Items([tensor])).read(0)
        if tensor.dtype == torch.bfloat16:  # not exact, but never off by more than its own rounding
            assert np.abs(np.asarray(array).reshape(-1).astype(float) - np.arange(256)).max() <= 1
        else:
            assert np.array_equal(array.reshape(-1), np.arange(256))
    between = torch.full((3, 2, 2), 0.3, requires_grad=True)
    array = ImageSource.from_dataset(Items([between])).read(0)
    assert array.dtype == np.float32
    assert np.asarray(open_rgb(array))[0, 0].tolist() == [77, 77, 77]


def test_random_items_are_found_even_when_they_are_coins():
    rng = random.Random(0)
    for count in (1, 2, 5, 100):
        items = Items([lambda: pil(rng.randint(0, 1)) for _ in range(count)])
        refused("different ones; take the random transforms out", ImageSource.from_dataset, items)


def test_a_broken_item_is_for_the_ledger():
    def broken():
        raise KeyError("nothing here")

    source = ImageSource.from_dataset(Items([(pil(), 1), broken, (pil(), 2)]))
    assert source.columns["label"].tolist() == ["1", "", "2"]
    with pytest.raises(ImageError, match="item 1 of Items: expected an image, got KeyError: 'nothing here'"):
        source.read(1)
    refused("expected images, got: item", ImageSource.from_dataset, Items([broken, broken]))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items([]), "at least one item"),
        (Items(["text"]), "expected a PIL image, an array or a tensor, got str"),
        (Items([{"text": 1}]), "got NoneType"),
        (Items([(pil(), [0, 1])]), r"label '\[0, 1\]'"),
        (iter([]), "a length and items"),
    ],
)
def test_data_sets_that_cannot_serve(dataset, message):
    refused(message, ImageSource.from_dataset, dataset)


def test_iterable_data_sets_and_versions_that_are_none():
    from torch.utils.data import IterableDataset

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    refused("map-style", ImageSource.from_dataset, Stream())
    refused("version", ImageSource.from_dataset, Items([pil()]), version=3)


# --------------------------------------------------------------------------------------------------- paths and open


def test_paths(images, monkeypatch):
    monkeypatch.chdir(images)
    source = ImageSource.from_paths(["b.jpg", "./c", "b.jpg", images / "a.jpg"])
    assert source.ids == (f"{images}/a.jpg", "b.jpg", "c/d.jpg")
    assert source.columns == {}
    assert [source.read(i) for i in range(3)] == [png(0), png(1), png(2)]
    refused("did you mean '.*/a.jpg'", ImageSource.from_paths, ["a.jpgg"])
    refused("expected images", ImageSource.from_paths, [])
    (images / "none").mkdir()
    refused("expected images", ImageSource.from_paths, ["none"])


def test_open_chooses(images):
    folder = ImageSource.open(images)
    assert ImageSource.open(folder) is folder
    assert ImageSource.open(str(images)).ids == folder.ids
    assert len(ImageSource.open(listing(images, "path\na.jpg\n"))) == 1
    assert ImageSource.open(images / "a.jpg").name == "paths"
    assert len(ImageSource.open([str(images / "a.jpg"), images / "b.jpg"])) == 2
    assert ImageSource.open(np.zeros((2, 4, 4), np.uint8)).name == "arrays"
    assert ImageSource.open([pil()], labels=["x"]).roles == {"label": "label"}
    assert ImageSource.open(Items([pil()]), version="1").version == "1"
    refused("option suffix", ImageSource.open, images, suffix=".jpg")
    refused("got int", ImageSource.open, 3)
    refused("did you mean", ImageSource.open, images / "aa.jpg")
    (images / "notes.txt").write_text("")
    refused("another kind of file", ImageSource.open, images / "notes.txt")


def test_constructor_checks_its_arguments():
    reader = ImageSource.from_arrays([pil()])._reader
    refused("sorted by UTF-8 bytes, got 'b' before 'a'", ImageSource, ["b", "a"], reader)
    refused("'a' before 'a'", ImageSource, ["a", "a"], reader)
    refused("column 'x'", ImageSource, ["a"], reader, {"x": np.zeros(2)})
    refused("role 'label'", ImageSource, ["a"], reader, {}, {"label": "x"})


def test_some_of_the_images(images):
    source = ImageSource.open(images)
    some = source.take([len(source) - 1, 0, 0])
    assert some.ids == (source.ids[0], source.ids[-1]) and some.roles == source.roles
    assert some.read(1) == source.read(len(source) - 1) and some.stat(0) == source.stat(0)
    assert all(column.tolist() == [source.columns[name][i] for i in (0, -1)] for name, column in some.columns.items())
    assert len(source.take([])) == 0
    with pytest.raises(SourceError, match="positions"):
        source.take([len(source)])
    with pytest.raises(SourceError, match="flatnonzero"):
        source.take(np.ones(len(source), dtype=bool))


def test_repr(images):
    assert repr(ImageSource.from_folder(images / "c")) == "<ImageSource 'c': 1 images>"


def test_listing_imports_neither_torch_nor_pyarrow(images):
    path = listing(images, "path\na.jpg\n")
    code = (
        "import sys; from featcache.sources import ImageSource; "
        f"ImageSource.open({str(images)!r}).read(0); ImageSource.open({str(path)!r}); "
        "print([m for m in ('torch', 'pyarrow', 'torchvision', 'sklearn', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
