"""A small network with blocks, and images that it can learn: what the tests of fine-tuning share."""

from __future__ import annotations

import contextlib
from unittest import mock

import numpy as np
import torch
from torch import nn

from featcache import ImageSource, Preprocess
from featcache.finetuning import Block, ImageFeed, Stage, Training, train

RECIPE = Preprocess(resize=16, crop=16)


class TinyNet(nn.Module):
    """Three blocks (the last one with dropout) and a head."""

    def __init__(self, n_classes=3, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
            self.two = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
            self.three = nn.Sequential(nn.Conv2d(12, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2))
            self.head = nn.Linear(16, n_classes)

    def forward(self, x):
        return self.head(self.three(self.two(self.one(x))).mean((2, 3)))


def blocks_of_tiny(model):
    return tuple(
        Block(
            name,
            tuple(n for n, _ in model.named_parameters() if n.startswith(name + ".")),
            tuple(n for n, _ in model.named_modules() if n == name or n.startswith(name + ".")),
            True,
        )
        for name in ("one", "two", "three")
    )


def make_source(n=48, seed=0, classes=("blue", "green", "red"), **columns):
    """Noise with a tint by class: learnable, not trivial."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 200, (n, 18, 20, 3))
    for i in range(n):
        images[i, :, :, 2 - i % 3] += 25
    labels = [classes[i % 3] for i in range(n)]
    return ImageSource.from_arrays(images.clip(0, 255).astype("u1"), labels=labels, **columns)


def make_feed(n=48, **options):
    return ImageFeed(make_source(n), RECIPE, progress=False, val_size=0.25, **options)


def two_stages(**options):
    first = Stage("head", epochs=2, batch_size=16, lr=1e-2)
    return Training((first, Stage(2, epochs=3, batch_size=8, lr=1e-2)), **options)


def run(folder, training=None, feed=None, model=None, plot=False, **options):
    """Train; without the figure, which takes longer than all of these runs."""
    model = model or TinyNet()
    options = {"progress": False, **options}
    drawn = contextlib.nullcontext() if plot else mock.patch("featcache.finetuning.plotting.plot_history")
    with drawn:
        return train(
            model, feed or make_feed(), training or two_stages(), folder, blocks=blocks_of_tiny(model), **options
        )


def same(a, b):
    """Whether two networks have the same bits."""
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
