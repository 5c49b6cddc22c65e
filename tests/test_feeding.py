"""Labelled images as batches: parts, what cannot be read, augmentation that depends on the place alone."""

import random

import numpy as np
import pytest
import torch
from conftest import write_images
from finetuning_parts import RECIPE, make_source

from featcache import ImageSource
from featcache.errors import FinetuneError
from featcache.finetuning import ImageFeed
from featcache.finetuning.seeding import epoch_order, seeded


def feed_of(source, **options):
    return ImageFeed(source, RECIPE, progress=False, **options)


def test_a_batch_is_what_the_recipe_gives():
    source = make_source(12)
    feed = feed_of(source)
    images, codes = feed.batch(np.array([3, 0]), 0, 0, 0, True)
    assert images.dtype == torch.float32 and codes.dtype == torch.int64
    assert np.array_equal(images.numpy(), np.stack([RECIPE(source.read(3)), RECIPE(source.read(0))]))
    assert [feed.classes[c] for c in codes] == [source.columns["label"][3], source.columns["label"][0]]


def test_named_splits_decide_and_a_missing_validation_part_is_drawn_from_the_training_rows():
    splits = ["test" if i % 4 == 0 else "train" for i in range(24)]
    feed = feed_of(make_source(24, splits=splits), val_size=0.25, test_size=0.5)
    assert feed.rows["test"].tolist() == list(range(0, 24, 4))
    assert not set(feed.rows["val"]) & set(feed.rows["test"]) and len(feed.rows["val"]) > 0
    assert sorted(np.concatenate(list(feed.rows.values())).tolist()) == list(range(24))


def test_without_named_splits_nothing_tests_unless_asked_for():
    source = make_source(40)
    assert len(feed_of(source).rows["test"]) == 0
    feed = feed_of(source, test_size=0.3)
    assert len(feed.rows["test"]) > 0 and {feed.labels[r] for r in feed.rows["val"]} == {0, 1, 2}


def test_groups_stay_on_one_side():
    groups = [f"g{i // 4}" for i in range(48)]
    feed = feed_of(make_source(48, groups=groups), val_size=0.25, test_size=0.25)
    sides = [{groups[r] for r in rows} for rows in feed.rows.values()]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_parts_of_the_caller_are_checked():
    source = make_source(12)
    feed = feed_of(source, parts={"train": [0, 1, 2, 3], "test": [5]})
    assert feed.rows["val"].tolist() == [] and feed.rows["test"].tolist() == [5]
    for parts in ({"train": [0, 1], "val": [1]}, {"val": [1]}, {"train": [99]}, {"train": [0], "dev": [1]}):
        with pytest.raises(FinetuneError, match="parts"):
            feed_of(source, parts=parts)


def test_images_that_cannot_be_read_are_told_and_left_out(tmp_path):
    folder = write_images(tmp_path / "images", 12)
    (folder / "cat" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(FinetuneError, match=r"1 of 13, the first cat/broken\.jpg.*max_failed"):
        feed_of(folder)
    feed = feed_of(folder, max_failed=0.1)
    assert [name for name, _ in feed.failures] == ["cat/broken.jpg"]
    assert any("cannot be read" in note and "broken.jpg" in note for note in feed.notes)
    everything = np.concatenate(list(feed.rows.values()))
    assert feed.ids.index("cat/broken.jpg") not in everything and len(everything) == 12


def test_unknown_and_missing_labels():
    with pytest.raises(FinetuneError, match="classes"):
        feed_of(make_source(12), classes=["blue", "green"])
    with pytest.raises(FinetuneError, match="labels"):
        feed_of(ImageSource.from_arrays(np.zeros((4, 9, 9, 3), "u1")))
    feed = feed_of(ImageSource.from_arrays(np.zeros((9, 9, 9, 3), "u1"), labels=["a", "b", ""] * 3))
    assert any("no label" in note for note in feed.notes) and feed.labels.min() == -1
    assert len(np.concatenate(list(feed.rows.values()))) == 6


def flipping():
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.ColorJitter(0.3)])


@pytest.mark.parametrize("augment", ["views", flipping()])
def test_augmentation_depends_on_seed_stage_epoch_and_image_alone(augment):
    source = make_source(24)
    one = feed_of(source, augment=augment, workers=1)
    other = feed_of(source, augment=augment, workers=3, memory=0)
    rows = one.rows["train"]
    whole = one.batch(rows, 1, 2, 0, True)[0]
    parts = torch.cat([other.batch(rows[:5], 1, 2, 7, True)[0], other.batch(rows[5:], 1, 2, 8, True)[0]])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, one.batch(rows, 1, 3, 0, True)[0])
    assert not torch.equal(whole, feed_of(source, augment=augment, seed=1).batch(rows, 1, 2, 0, True)[0])
    plain = one.batch(rows, 1, 2, 0, False)[0]
    assert torch.equal(plain, feed_of(source).batch(rows, 1, 2, 0, False)[0])


def test_views_are_the_views_of_the_store(tmp_path):
    """The key of an image is its content key, as in extraction: cached views are the same pixels."""
    from featcache.fingerprint import digest_bytes

    source = ImageSource.from_folder(write_images(tmp_path / "images", 6))
    feed = feed_of(source, augment="views", n_views=3)
    row = int(feed.rows["train"][0])
    views = RECIPE.normalize(RECIPE.views(source.read(row), digest_bytes(source.read(row)), 3))
    seen = {feed.batch(np.array([row]), 0, epoch, 0, True)[0][0].numpy().tobytes() for epoch in range(40)}
    assert seen == {view.tobytes() for view in views}


def test_a_transform_leaves_the_random_states_of_the_caller():
    feed = feed_of(make_source(12), augment=flipping())
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    feed.batch(feed.rows["train"], 0, 0, 0, True)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tobytes())


@pytest.mark.parametrize("kind", ["pil", "array", "uint8", "float"])
def test_what_a_transform_may_return(kind):
    from torchvision.transforms.v2 import functional as F

    plain = feed_of(make_source(9))

    def transform(image):
        small = F.resize(image, [16, 16])
        made = {"pil": lambda: small, "array": lambda: np.asarray(small), "uint8": lambda: F.pil_to_tensor(small)}
        return made[kind]() if kind in made else torch.full((3, 16, 16), 0.25)

    images = feed_of(make_source(9), augment=transform).batch(plain.rows["train"][:2], 0, 0, 0, True)[0]
    assert images.shape == (2, 3, 16, 16)
    if kind == "float":
        assert (images == 0.25).all()


def test_a_transform_that_returns_something_else_is_named():
    feed = feed_of(make_source(9), augment=lambda image: "text")
    with pytest.raises(FinetuneError, match="augment"):
        feed.batch(feed.rows["train"], 0, 0, 0, True)


def test_an_image_that_is_gone_later_is_named(tmp_path):
    folder = write_images(tmp_path / "images", 6)
    feed = feed_of(folder, memory=0)
    row = int(feed.rows["train"][0])
    (folder / feed.ids[row]).unlink()
    with pytest.raises(FinetuneError, match=feed.ids[row]):
        feed.batch(np.array([row]), 0, 0, 0, True)


def test_the_order_of_an_epoch_follows_ids_not_rows():
    ids = ["c", "a", "b", "d"]
    first = [ids[row] for row in epoch_order(ids, np.arange(4), 0, 0, 0)]
    again = [sorted(ids)[row] for row in epoch_order(sorted(ids), np.array([3, 1, 0, 2]), 0, 0, 0)]
    assert first == again
    orders = {tuple(epoch_order(ids, np.arange(4), 0, 0, epoch)) for epoch in range(20)}
    assert len(orders) > 5


def test_the_digest_knows_images_labels_and_parts():
    digests = [feed_of(make_source(12)).digest, feed_of(make_source(12, seed=1)).digest]
    digests += [feed_of(make_source(12), val_size=0.4).digest, feed_of(make_source(12), augment="views").digest]
    assert len(set(digests)) == 4 and digests[0] == feed_of(make_source(12)).digest


def test_seeded_puts_everything_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ValueError), seeded(3):
        torch.rand(3)
        raise ValueError
    assert torch.equal(before, torch.get_rng_state())
