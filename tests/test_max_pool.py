"""Max pooling as the fused engine does it."""

from __future__ import annotations

import pytest
import torch

from featcache import Backbone
from featcache.backbone import arguments, cut, fused, pooling

HAS_FUSION = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
needs_fusion = pytest.mark.skipif(not HAS_FUSION, reason="this PyTorch has no oneDNN")


def made(arch):
    return Backbone(arch, weights="random", preprocess={"resize": 64, "crop": 64})


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        (1, 1, 0),
        (2, 1, 1),
        (2, 2, 0),
        (3, 2, 0),
        (3, 2, 1),
        (3, 1, 1),
        (5, 3, 2),
        ((3, 2), (2, 1), (1, 0)),
        (3, None, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_max_pooling_is_pytorchs_to_the_last_bit(kernel, stride, padding, ceil_mode, dtype):
    pool = torch.nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    for seed, (height, width) in enumerate([(7, 7), (8, 13), (12, 5), (3, 3)]):
        x = torch.randn(2, 5, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for values, nonnegative in ((x, False), (x.relu(), False), (x.relu(), True), (torch.full_like(x, -3), False)):
            values = values.contiguous(memory_format=torch.channels_last)
            kept = values.clone()
            got, expected = pooling.MaxPool(pool, nonnegative)(values), pool(values)
            assert got.dtype == dtype and torch.equal(got, expected)
            assert torch.equal(values, kept), "the input belongs to others, too"


def test_max_pooling_of_negative_values_keeps_nan():
    x = torch.randn(1, 4, 6, 6)
    x[0, 1, 2, 2] = float("nan")
    pool = torch.nn.MaxPool2d(3, 2)
    got = pooling.MaxPool(pool, False)(x)
    assert torch.equal(got.isnan(), pool(x).isnan()) and got.isnan().any()


def test_max_pooling_with_indices_or_dilation_stays_pytorchs():
    assert not pooling.MaxPool.can_stand_for(torch.nn.MaxPool2d(3, dilation=2))
    assert not pooling.MaxPool.can_stand_for(torch.nn.MaxPool2d(3, return_indices=True))
    with pytest.raises(NotImplementedError, match="dilated"):
        pooling.MaxPool(torch.nn.MaxPool2d(3, dilation=2), False)


@needs_fusion
@pytest.mark.parametrize(("arch", "expected"), [("resnet18", [True]), ("squeezenet1_1", [True, True, True])])
def test_bits_are_compared_as_integers_only_where_nothing_is_negative(arch, expected):
    backbone = made(arch)
    trunk = backbone._network.engines.runner(arguments.Mode("fp32"), torch.device("cpu"), "fused", (3, 64, 64)).module
    assert [m.nonnegative for m in trunk.trunk.children() if isinstance(m, pooling.MaxPool)] == expected


@needs_fusion
def test_pooling_of_what_may_be_negative_is_not_taken_for_the_other():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.leaky = torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.LeakyReLU()

        def forward(self, x):
            y = self.conv(x)
            return torch.cat([self.pool(self.leaky(y)), self.pool(y)], 1)

    torch.manual_seed(0)
    traced = cut.trace(Net(), "net", ())
    traced.propagate(torch.empty(2, 3, 16, 16, device="cpu"))
    module = cut.Cut(traced, {"cat": "none"}, {"cat": ()}).eval()
    new = fused.rewritten(module, (4, 3, 16, 16))
    assert [m.nonnegative for m in new.trunk.children() if isinstance(m, pooling.MaxPool)] == [False, False]
