"""Engines: fused, compiled, mixed precision and streams give what the plain network gives, or say why they do not."""

import os
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featcache import Backbone, Preprocess
from featcache.backbone import arguments, cuda, engines, fused, mixed, network, packages, packing, zoo
from featcache.backbone.normalise import normalised
from featcache.errors import BackboneError

HAS_FUSION = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
needs_fusion = pytest.mark.skipif(not HAS_FUSION, reason="this PyTorch has no oneDNN")


def pixels(n=3, size=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype="u1")


def made(arch, size=64, **options):
    return Backbone(arch, weights="random", preprocess={"resize": size, "crop": size}, **options)


def far(exact, other):
    return max(np.linalg.norm(exact[n] - other[n]) / max(np.linalg.norm(exact[n]), 1e-12) for n in exact)


class Own(nn.Module):
    """A user's network made of a body and a classifier."""

    def __init__(self, body):
        super().__init__()
        self.body, self.fc = body, nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def own(body, **options):
    torch.manual_seed(0)
    for norm in (m for m in body.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return Backbone(Own(body), version="1", preprocess=Preprocess(resize=16, crop=16), **options)


# -- fused against plain ----------------------------------------------------------------------------------------------

SAMPLE = [
    "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"
]  # fmt: skip
FIXED = {"vit_b_16": 224, "vit_b_32": 224, "vit_l_16": 224, "vit_l_32": 224, "vit_h_14": 224, "maxvit_t": 224}


def compare(arch, size, low):
    backbone, batch = made(arch, size), pixels(2, size)
    exact = backbone.encode(batch, engine="eager")
    assert far(exact, backbone.encode(batch)) < 1e-4
    report = backbone.engine_report()
    if HAS_FUSION:
        assert report["engine"] == "fused" and report["fused"] > 0 and not report["reason"], report
    if low:  # as far from the exact codes as PyTorch's own layers are, or hardly farther
        plain = far(exact, backbone.encode(batch, mode="bf16", engine="eager"))
        assert far(exact, backbone.encode(batch, mode="bf16")) <= 2 * plain + 0.01
    return report


@pytest.mark.parametrize("arch", SAMPLE)
def test_fused_codes_are_the_plain_networks(arch):
    compare(arch, 64, low=arch in ("mobilenet_v3_small", "resnet18", "swin_t"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(set(zoo.architectures()) - {"vit_h_14"}))
def test_fused_codes_of_every_architecture(arch):
    report = compare(arch, 96 if arch.startswith("inception") else FIXED.get(arch, 64), low=True)
    assert not HAS_FUSION or report["kept"] <= 1


class Odd(nn.Module):
    """What is seen in users' networks: functions, methods, operations in place, one module used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding="same", dilation=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.c = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False)
        self.even = nn.Conv2d(8, 8, 2, padding="same")
        self.odd, self.drop = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Dropout(inplace=True)

    def forward(self, x):
        x = F.relu(self.drop(self.norm(self.a(x))), inplace=True)
        y = torch.relu(self.b(x)) + self.b(x).relu_()  # one module twice
        z = self.c(y)
        z += x
        z = F.relu_(z)
        w = F.leaky_relu(self.even(z), 0.2) * torch.sigmoid(self.c(z))
        v = self.odd(w)
        u = self.c(v)
        return F.dropout(u, 0.5, self.training) + F.gelu(self.c(u)) + F.hardswish(self.c(v)) + F.silu(v)


class InPlaceOther(nn.Module):
    """The other side of an addition is changed in place, and used afterwards."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        x += y  # what `x` is below has changed
        z = self.c(x)
        x = x.relu_()
        return z + x


class LateOther(nn.Module):
    """Both sides of an addition are convolutions; subtraction, alpha, broadcasting must stay as they are."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.na, self.nb = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)

    def forward(self, x):
        x = torch.relu(self.na(self.a(x)) + self.nb(self.b(x)))
        x = torch.add(self.c(x), x, alpha=2) - self.c(x)
        x = self.c(x) + x.mean((2, 3), keepdim=True)
        return self.c(x) + 1.0 + torch.add(x, self.c(x))


class NeededOther(nn.Module):
    """What is added lives on: read later, through a view that was made before, or by the same convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.d = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        after = self.a(x)
        s = F.relu(self.c(self.b(after)) + after)
        s = s + self.d(after)  # a packed layer reads `after` once more
        between = self.b(s)
        u = self.c(self.b(between))
        w = self.c(between)  # reads it between the convolution and the addition
        s = self.d((u + between) + w)
        viewed = self.b(s)
        v = viewed[:, :4]
        s = self.d(self.c(self.b(viewed)) + viewed)
        mine = self.c(s)
        t = self.b(mine) + mine  # would be read while it is written
        once = self.d(t)
        return self.c(self.b(once)) + once + torch.cat([v, v], 1)


class Aliased(nn.Module):
    """What is changed in place was read before, under another name, and is read through that name afterwards."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout()

    def forward(self, x):
        o = self.a(x)
        v = o[:, :4]
        o += self.c(self.b(o))
        p = self.b(o)
        q = self.drop(p)
        p += self.c(self.b(p))
        r = self.drop(self.c(p))
        r += self.c(self.b(r))
        return self.b(r) + torch.cat([v, v], 1) + q


class LinearOther(nn.Module):
    """What a linear layer gave is added, and a linear layer is called by keyword."""

    def __init__(self):
        super().__init__()
        self.a, self.line, self.b = nn.Conv2d(3, 8, 1), nn.Linear(16, 16), nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1, groups=4)

    def forward(self, x):
        x = self.a(x)
        x = F.relu(self.line(x) + self.b(x))
        x = F.relu(self.c(x) + x)
        return self.b(x) + self.line(input=x)


@pytest.mark.parametrize("body", [Odd, InPlaceOther, LateOther, NeededOther, LinearOther])
@pytest.mark.parametrize("mode", ["fp32", "bf16", "bf16-except:body.a,body.c"])
def test_fusing_what_users_write(body, mode):
    torch.manual_seed(1)
    backbone = own(body())
    batch = pixels(5, 16)
    exact = backbone.encode(batch, engine="eager")
    assert far(exact, backbone.encode(batch, mode=mode)) < (1e-4 if mode == "fp32" else 0.05)
    if HAS_FUSION:
        assert backbone.engine_report(mode)["engine"] == "fused"


def test_a_change_that_is_seen_under_another_name():
    torch.manual_seed(0)
    network, batch = Own(Aliased()).eval(), pixels(5, 16)
    backbone = Backbone(network, version="1", nodes="body", preprocess=Preprocess(resize=16, crop=16))
    with torch.inference_mode():
        exact = network.body(normalised(batch, backbone.preprocess.mean, backbone.preprocess.std, torch.float32))
    assert far({"body": exact.mean((2, 3)).numpy()}, {"body": next(iter(backbone.encode(batch).values()))}) < 1e-4


@needs_fusion
def test_batch_norms_activations_and_additions_are_fused_away():
    backbone = made("resnet18")
    trunk = backbone._network.engines.runner(arguments.Mode("fp32"), torch.device("cpu"), "fused", (3, 64, 64)).module
    kinds = {type(m).__name__ for m in trunk.trunk.children()}
    assert kinds == {"PackedConv", "MaxPool", "AdaptiveAvgPool2d"}
    assert sum("add" in str(n.target) for n in trunk.trunk.graph.nodes) == 0


def in_place(module, shape, **options):
    """Return the layers that leave their sum where the other side of the addition was."""
    parts = fused.rewritten(module, shape, **options)
    return [parts.places[name] for name, part in parts.trunk.named_children() if getattr(part, "in_place", False)]


@needs_fusion
def test_sums_take_the_place_of_what_nobody_reads_again():
    found = in_place(made("resnet18")._network.module, (4, 3, 64, 64))
    # Not the first block's, whose other side is what max pooling gave.
    blocks = [f"layer{i}.{j}.{'downsample.0' if (i > 1 and j == 0) else 'conv2'}" for i in range(1, 5) for j in (0, 1)]
    assert found == blocks[1:]
    returned = in_place(made("resnet18", nodes="layer1.0,layer3.0,penultimate")._network.module, (4, 3, 64, 64))
    assert returned == [layer for layer in found if layer not in ("layer1.1.conv2", "layer3.1.conv2")]
    # `s` before the second reader of `after`, and `once`; nothing else.
    assert in_place(own(NeededOther())._network.module, (4, 3, 16, 16)) == ["body.d", "body.c"]
    assert in_place(own(LinearOther())._network.module, (4, 3, 16, 16)) == []
    cast = in_place(made("resnet18")._network.module, (4, 3, 64, 64), low=torch.bfloat16, kept=["layer1.1.conv2"])
    assert cast == found


@needs_fusion
@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_a_sum_in_place_has_the_bits_of_one_elsewhere(mode, monkeypatch):
    batch = pixels(12)
    backbone = made("resnet18")
    once = backbone.encode(batch, mode=mode)["flatten"]
    assert backbone.engine_report(mode)["engine"] == "fused"
    assert np.array_equal(backbone.encode(batch, mode=mode)["flatten"], once)  # made anew for each chunk
    others = made("resnet18", nodes="layer1.0,layer3.0,penultimate").encode(batch, mode=mode)["flatten"]
    monkeypatch.setattr(fused._Rewriting, "_dies", lambda *_: False)
    elsewhere = made("resnet18").encode(batch, mode=mode)["flatten"]
    assert np.array_equal(once, elsewhere) and np.array_equal(once, others)


@needs_fusion
def test_a_mixed_mode_is_found_where_a_linear_layers_result_is_added():
    backbone = own(LinearOther())
    mode = backbone.mixed_mode(pixels(16, 16), tolerance=0.9)
    assert mode is not None and backbone.engine_report(mode)["engine"] == "fused"


def test_nothing_is_fused_across_a_node_that_is_returned():
    nodes = "conv1,bn1,relu,layer1.0.conv1,layer1.0.bn2,layer1.0.add,layer1.0,layer2,layer2.0.downsample,penultimate"
    backbone = made("resnet18", nodes=nodes)
    batch = pixels()
    exact, found = backbone.encode(batch, engine="eager"), backbone.encode(batch)
    assert list(exact) == list(found) and len(found) >= 9
    for node in exact:
        assert far({node: exact[node]}, {node: found[node]}) < 1e-5


def test_maps_tokens_and_inputs_that_are_not_square():
    recipe = {"resize": [48, 80], "crop": [48, 80]}
    try:
        backbone = Backbone("resnet18", weights="random", preprocess=recipe, nodes="layer2,layer3", pooling="none")
        height, width, _ = backbone.preprocess.shape
    except Exception:  # this version of Preprocess has square crops only
        pytest.skip("square crops only")
    batch = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype="u1")
    assert far(backbone.encode(batch, engine="eager"), backbone.encode(batch)) < 1e-5


# -- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fp32", "bf16", "bf16-except:conv1,layer1.0.conv2"])
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_bits_depend_neither_on_batch_nor_on_threads_nor_on_neighbours(mode, engine):
    batch, before = pixels(11), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            backbone = made("resnet18")
            found.append(backbone.encode(batch, mode=mode, engine=engine)["flatten"])
            parts = [backbone.encode(batch[i : i + 3], mode=mode, engine=engine)["flatten"] for i in range(0, 11, 3)]
            found.append(np.concatenate(parts))
            found.append(backbone.encode(batch[::-1], mode=mode, engine=engine)["flatten"][::-1])
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found)


@pytest.mark.parametrize("size", [(5, 7, 9, 3), (2, 224, 224, 3), (1, 601, 640, 3), (3, 8, 8, 1)])
def test_normalised_as_torchvision_does(size):
    batch = np.random.default_rng(0).integers(0, 256, size, dtype="u1")
    mean, std = [0.485, 0.456, 0.406][: size[-1]], [0.229, 0.224, 0.225][: size[-1]]
    x = torch.from_numpy(batch).permute(0, 3, 1, 2).float().div(255)
    x = (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    found = normalised(batch, mean, std, torch.float32)
    assert torch.equal(found, x) and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(normalised(batch, mean, std, torch.bfloat16), x.to(torch.bfloat16))
    assert torch.equal(normalised(batch[:, ::-1], mean, std, torch.float32), x.flip(2))


# -- modes and engines as arguments -----------------------------------------------------------------------------------


def test_modes_are_read():
    assert arguments.parse_mode("bf16-except:a.b,c,a.b") == arguments.Mode("bf16", ("a.b", "c"))
    assert str(arguments.parse_mode("fp16-except:a,b")) == "fp16-except:a,b"
    for bad in ("fp8", "", None, 3, "bf16-except:", "bf16-except:a,,b", "fp32-except:a", "bf16-but:a"):
        with pytest.raises(BackboneError) as caught:
            arguments.check_mode(bad)
        assert "\n" not in str(caught.value)


def test_an_unknown_layer_or_engine_is_one_line():
    for options in ({"mode": "bf16-except:conv1,nothing"}, {"mode": "bf16-except:fc"}, {"engine": "warp"}):
        with pytest.raises(BackboneError) as caught:
            made("resnet18").encode(pixels(), **options)
        assert "\n" not in str(caught.value)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > -1e30 else x


def test_a_network_with_hooks_stays_plain_and_says_so():
    backbone = own(Untraceable(), nodes="body.conv")
    found = backbone.encode(pixels(3, 16))
    assert np.array_equal(found["body.conv"], backbone.encode(pixels(3, 16), engine="fused")["body.conv"])
    assert backbone.engine_report()["engine"] == "eager" and backbone.engine_report()["reason"]
    assert "traced" in backbone.engine_report(engine="fused")["reason"]
    assert backbone.package_state().startswith("impossible: this network cannot be traced")
    assert backbone.mixed_mode(pixels(3, 16)) is None
    with pytest.raises(BackboneError, match="cannot be traced"):
        backbone.encode(pixels(3, 16), mode="bf16-except:body.conv")


# -- what goes wrong --------------------------------------------------------------------------------------------------


@needs_fusion
@pytest.mark.parametrize("fault", ["missing", "refuses", "wrong", "wrong later"])
def test_an_engine_that_fails_or_lies_is_not_used(monkeypatch, fault):
    exact = made("squeezenet1_1").encode(pixels(), engine="eager")
    forward, calls = packing.PackedConv.forward, []

    def broken(self, x, other=None):
        calls.append(1)
        if fault == "refuses":
            raise NotImplementedError("no such kernel")
        right = forward(self, x, other)
        return right if fault == "wrong later" and x.shape[0] == 2 else right * 1.001

    def missing(*args, **kwargs):
        raise AttributeError("no such operation")

    monkeypatch.setattr(packing.PackedConv, *(("__init__", missing) if fault == "missing" else ("forward", broken)))
    backbone = made("squeezenet1_1")
    found = backbone.encode(pixels())
    report = backbone.engine_report()
    assert report["engine"] == "eager" and report["reason"].startswith("fused: ") and "\n" not in report["reason"]
    assert far(exact, found) == 0


@needs_fusion
def test_layers_that_cannot_be_packed_stay_as_they_are(monkeypatch):
    make = packing.PackedConv.__init__

    def some(self, conv, *args):
        if conv.kernel_size == (3, 3):
            raise RuntimeError("not this one")
        make(self, conv, *args)

    monkeypatch.setattr(packing.PackedConv, "__init__", some)
    backbone = made("resnet18")
    report = backbone.engine_report()
    assert report["engine"] == "fused" and report["kept"] == 16 and "16 layers: not this one" in report["reason"]
    assert far(backbone.encode(pixels(), engine="eager"), backbone.encode(pixels())) < 1e-5


def test_memory_that_runs_out_halves_the_chunk(monkeypatch):
    backbone, batch = made("squeezenet1_1"), pixels(6)
    exact = backbone.encode(batch)
    run, seen = network._run, []

    def short(module, x, mode):
        seen.append(len(x))
        if len(x) > 1:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return run(module, x, mode)

    monkeypatch.setattr(network, "_run", short)
    assert far(exact, backbone.encode(batch)) < 1e-5
    assert {4, 2, 1} == set(seen)
    report = backbone.engine_report()
    assert report["chunk"] == 1 and "out of memory with 4 images" in report["reason"]

    monkeypatch.setattr(network, "_run", lambda *a: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        backbone.encode(batch)


# -- mixed precision --------------------------------------------------------------------------------------------------


class Fragile(nn.Module):
    """One layer whose rounding is blown up by the next: differences of large, nearly equal numbers."""

    def __init__(self):
        super().__init__()
        self.big, self.small = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.more = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(4)))

    def forward(self, x):
        x = self.big(x) + 300.0
        return self.more(self.small(x - 300.0))


def test_mixed_mode_keeps_what_must_be_kept():
    torch.manual_seed(0)
    backbone, batch = own(Fragile()), pixels(12, 16)
    exact = backbone.encode(batch)
    centre = exact["mean"].mean(0)

    def worst(mode):
        return mixed.worst_cosine(exact["mean"], backbone.encode(batch, mode=mode)["mean"], centre)

    mode = backbone.mixed_mode(batch, tolerance=0.998)
    assert worst("bf16") < 0.998
    assert mode is not None and "body.big" in mode and worst(mode) >= 0.998
    assert backbone.mixed_mode(batch, tolerance=0.998) == mode
    kept = arguments.parse_mode(mode).kept
    assert len(kept) < 6
    assert made("squeezenet1_1").mixed_mode(pixels(4), tolerance=0.2) == "bf16"
    assert backbone.mixed_mode(batch, tolerance=1.0) is None
    with pytest.raises(BackboneError, match="mixed mode"):
        backbone.mixed_mode(batch, mode="fp32")


def test_casts_stand_only_where_the_dtype_changes():
    backbone = made("resnet18")
    module = backbone._network.engines.rewritten(torch.bfloat16, ["conv1", "layer1.0.conv1"], (4, 3, 64, 64))
    casts = [n for n in module.trunk.graph.nodes if getattr(n.target, "__name__", "") == "to_dtype"]
    # After the first pooling nothing is cast for the kept convolution; its result, and the shortcut, are.
    assert module.input_dtype == torch.float32 and 1 <= len(casts) <= 3
    module = backbone._network.engines.rewritten(torch.bfloat16, ["layer4.1.conv2"], (4, 3, 64, 64))
    assert module.input_dtype == torch.bfloat16


# -- packages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "compiler", lambda: "c++")
    return packages.Packages()


def write(content=b"native code"):
    calls = []

    def make(path):
        calls.append(path)
        path.write_bytes(content)
        return ""

    make.calls = calls
    return make


def test_a_package_is_built_once_and_found_again(cache):
    make = write()
    assert cache.state("k") == "absent"
    threads = [threading.Thread(target=cache.build, args=("k", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(make.calls) == 1 and cache.state("k") == "built"
    assert (cache.folder.stat().st_mode & 0o777) == 0o700
    assert not list(cache.folder.glob("tmp-*"))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no digest", "empty digest"])
def test_a_damaged_package_is_built_anew(cache, damage):
    cache.build("k", write())
    path = cache.folder / "k" / "package.pt2"
    if damage == "flipped":
        path.write_bytes(b"Native code")
    elif damage == "truncated":
        path.write_bytes(b"native")
    elif damage == "no digest":
        (cache.folder / "k" / "package.sha256").unlink()
    else:
        (cache.folder / "k" / "package.sha256").write_text("")
    assert cache.state("k") == "absent" and cache.load("k", (), 1) is None
    cache.build("k", write())
    assert cache.state("k") == "built"


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX")
@pytest.mark.parametrize("attack", ["owner", "folder", "cache", "package", "file", "link", "folder link"])
def test_code_that_others_could_have_written_is_refused(cache, attack, monkeypatch, tmp_path):
    cache.build("k", write())
    place = cache.folder / "k"
    if attack == "owner":
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    elif attack == "link":
        (tmp_path / "theirs").write_bytes(b"native code")
        (place / "package.pt2").unlink()
        (place / "package.pt2").symlink_to(tmp_path / "theirs")
    elif attack == "folder link":
        cache.folder.rename(tmp_path / "moved")
        cache.folder.symlink_to(tmp_path / "moved")
    else:
        target = {"folder": cache.folder, "cache": cache.folder.parent, "package": place}
        target.get(attack, place / "package.pt2").chmod(0o777)
    assert cache.state("k").startswith("impossible: ")
    with pytest.raises(packages.PackageError):
        cache.load("k", (), 1)
    with pytest.raises(packages.PackageError):
        cache.build("k", write())


def test_old_packages_make_room(cache, monkeypatch):
    monkeypatch.setattr(packages, "_ROOM", 2500)
    for i, key in enumerate("abc"):
        cache.build(key, write(bytes(1000)))
        os.utime(cache.folder / key, (i, i))
    cache.build("d", write(bytes(1000)))
    assert [cache.state(k) for k in "abcd"] == ["absent", "absent", "built", "built"]


def test_the_key_covers_what_the_code_depends_on(monkeypatch):
    identity = {"weights": "sha256:1", "mode": "fp32", "shape": (4, 3, 64, 64)}
    keys = {packages.key_of(identity), packages.key_of({**identity, "mode": "bf16"})}
    monkeypatch.setattr(packages, "_flags", lambda: "another processor")
    keys.add(packages.key_of(identity))
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert len(keys | {packages.key_of(identity)}) == 4


@pytest.mark.parametrize("fault", ["no compiler", "fails", "lies"])
def test_without_a_package_the_fused_engine_runs(monkeypatch, tmp_path, fault):
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))
    backbone, batch = made("squeezenet1_1"), pixels()
    if fault == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    else:
        monkeypatch.setattr(packages, "compiler", lambda: "c++")
        problem = "the compiler's process ended with 1" if fault == "fails" else ""

        def make(module, shape, path, **options):
            path.write_bytes(b"no package at all")
            return problem

        monkeypatch.setattr(engines, "compile_package", make)
    found = backbone.encode(batch, engine="compiled")
    report = backbone.engine_report(engine="compiled")
    assert report["engine"] == ("fused" if HAS_FUSION else "eager") and report["reason"].startswith("compiled: ")
    assert far(backbone.encode(batch, engine="eager"), found) < 1e-4
    if fault == "no compiler":
        assert backbone.package_state() == "impossible: there is no C++ compiler"
        with pytest.raises(BackboneError, match="no C\\+\\+ compiler"):
            backbone.build_package()


def test_a_compilers_process_that_dies_is_one_reason(tmp_path, monkeypatch):
    from featcache.backbone import compiling, fused

    module = fused.rewritten(made("squeezenet1_1")._network.module, (4, 3, 64, 64), pack=False)
    monkeypatch.setattr(compiling, "_CHILD", "import os; os.kill(os.getpid(), 9)")
    problem = compiling.compile_package(module, (4, 3, 64, 64), tmp_path / "p.pt2", channels_last=True)
    assert "ended with -9" in problem
    monkeypatch.setattr(compiling, "_CHILD", "import time; time.sleep(60)")
    problem = compiling.compile_package(module, (4, 3, 64, 64), tmp_path / "p.pt2", channels_last=True, timeout=0.5)
    assert "longer than" in problem and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(packages.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("mode", ["fp32", "bf16", "bf16-except:conv1,layer1.0.conv2"])
def test_compiled_codes_are_the_plain_networks(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))
    backbone, batch = made("resnet18", nodes="layer1,penultimate"), pixels(11)
    assert backbone.package_state(mode) == "absent"
    found = backbone.encode(batch, mode=mode, engine="compiled")
    report = backbone.engine_report(mode, engine="compiled")
    assert report["engine"] == "compiled" and backbone.package_state(mode) == "built", report
    assert far(backbone.encode(batch, engine="eager"), found) < (1e-4 if mode == "fp32" else 0.05)
    again = backbone.encode(batch[:3], mode=mode, engine="compiled")
    assert all(np.array_equal(found[n][:3], again[n]) for n in found)


# -- streams ----------------------------------------------------------------------------------------------------------


class Fake(cuda.Layer):
    """A device that is the CPU: nothing happens before it is waited for, and memory ends where a test wants it to."""

    def __init__(self, room=1000, graphs=True, name="fake"):
        self.device, self.room, self.graphs, self.log, self.most, self.freed = name, room, graphs, [], 0, 0
        self.pending = []

    def host(self, shape, dtype):
        return torch.full(tuple(shape), 99, dtype=dtype)

    def upload(self, host, target):
        if len(host) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.log.append("up")
        return (host.clone() if target is None else target.copy_(host)), "ready"

    def compute(self, run, x, ready):
        assert ready == "ready"
        return run(x)

    def download(self, codes, hosts):
        event = object()
        self.pending.append((event, {n: v.clone() for n, v in codes.items()}, hosts))
        self.most = max(self.most, len(self.pending))
        return event

    def wait(self, event):
        if event == "ready":
            return
        assert self.pending[0][0] is event, "in the order of the start"
        _, codes, hosts = self.pending.pop(0)
        self.log.append("down")
        for node, rows in codes.items():
            hosts[node].copy_(rows)

    def free(self):
        self.freed += 1

    def graphed(self, run, x):
        if not self.graphs:
            raise RuntimeError("operation not permitted when stream is capturing")
        return run


def codes_of(x):
    return {"n": x.float().mean((1, 2))}


def lane(layer, chunk=4):
    return cuda.Lane(layer, codes_of, {"n": (3,)}, chunk)


def expected(batch):
    return torch.from_numpy(batch.copy()).float().mean((1, 2)).numpy()


def test_a_stream_is_lazy_ordered_and_has_two_in_flight():
    layer, taken = Fake(), []

    def batches():
        for i, n in enumerate([3, 9, 0, 4, 1, 8]):
            taken.append(i)
            yield pixels(n, 4, seed=i)

    wanted = [expected(b) for b in batches()]
    taken.clear()
    stream = cuda.ordered(batches(), [lane(layer)])
    assert taken == []
    first = next(stream)
    assert len(taken) == 2
    found = [first["n"], *(codes["n"] for codes in stream)]
    assert [len(f) for f in found] == [3, 9, 0, 4, 1, 8]
    assert all(np.array_equal(f, w) for f, w in zip(found, wanted, strict=True))
    assert layer.most == 2
    assert layer.log[:4] == ["up", "up", "down", "up"], "the next chunk is on its way before the first is waited for"


def test_several_devices_take_turns():
    layers = [Fake(name=str(i)) for i in range(3)]
    batches = [pixels(5, 4, seed=i) for i in range(7)]
    found = list(cuda.ordered(iter(batches), [lane(one) for one in layers]))
    assert all(np.array_equal(f["n"], expected(b)) for f, b in zip(found, batches, strict=True))
    assert [one.log.count("up") for one in layers] == [6, 4, 4]


def test_a_device_without_memory_halves_and_goes_on():
    layer = Fake(room=3)
    way = lane(layer, 16)
    batches = [pixels(n, 4, seed=n) for n in (20, 5, 1)]
    found = list(cuda.ordered(batches, [way]))
    assert all(np.array_equal(f["n"], expected(b)) for f, b in zip(found, batches, strict=True))
    assert way.chunk == 2 and layer.freed == 3 and len(way.notes) == 3 and "16 images" in way.notes[0]
    with pytest.raises(BackboneError, match="one image"):
        lane(Fake(room=0)).submit(pixels(1, 4))


def test_memory_that_ends_in_the_middle_keeps_what_is_done():
    layer = Fake()
    way = lane(layer)
    batch = pixels(12, 4)
    first = way.submit(batch)
    layer.room = 1
    second = way.submit(batch[::-1])
    assert np.array_equal(first.result()["n"], expected(batch))
    assert np.array_equal(second.result()["n"], expected(batch[::-1]))


def test_other_errors_are_not_taken_for_memory():
    def fails(x):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        cuda.Lane(Fake(graphs=False), fails, {"n": (3,)}, 4).submit(pixels(1, 4))


def test_a_graph_that_cannot_be_recorded_is_done_without():
    way = lane(Fake(graphs=False))
    assert np.array_equal(way.submit(pixels(6, 4)).result()["n"], expected(pixels(6, 4)))
    assert len(way.notes) == 1 and way.notes[0].startswith("no CUDA graph")


def test_the_best_chunk_stops_where_memory_ends():
    layer = Fake(room=100)
    assert cuda.best_chunk(lambda chunk: lane(layer, chunk), (4, 4, 3)) in (32, 64)


def test_devices():
    assert cuda.devices_of("cuda:all", lambda: 2) == ["cuda:0", "cuda:1"]
    assert cuda.devices_of("cuda:1, cuda:0") == ["cuda:1", "cuda:0"] and cuda.devices_of("cuda") == ["cuda"]
    for bad in ("cuda:0,cpu", "cuda:0,cuda:0"):
        with pytest.raises(BackboneError):
            cuda.devices_of(bad)
    with pytest.raises(BackboneError):
        cuda.devices_of("cuda:all", lambda: 0)


def test_a_stream_gives_what_was_on_its_way_before_what_its_batches_raise():
    backbone = Backbone("squeezenet1_1", weights="random", preprocess={"resize": 64, "crop": 64})
    parts = [np.full((n, 64, 64, 3), n, np.uint8) for n in (2, 1, 3)]

    def batches():
        yield from parts
        raise OSError("the disk is gone")

    found, stream = [], backbone.stream(batches())
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(stream)
    assert [len(codes["features.12.cat"]) for codes in found] == [2, 1, 3]
    for codes, part in zip(found, parts, strict=True):
        assert np.array_equal(codes["features.12.cat"], backbone.encode(part)["features.12.cat"])


def test_a_stream_on_the_cpu_encodes():
    backbone, batches = made("squeezenet1_1"), [pixels(3), pixels(1, seed=1)]
    taken = []
    stream = backbone.stream((taken.append(1) or b for b in batches), mode="bf16")
    assert not taken
    for batch, found in zip(batches, stream, strict=True):
        assert far(backbone.encode(batch, mode="bf16"), found) == 0
    with pytest.raises(BackboneError):
        backbone.stream([], mode="fp8")


def test_a_stream_through_lanes_gives_the_networks_codes(monkeypatch):
    backbone, batches = made("squeezenet1_1"), [pixels(5), pixels(2, seed=1)]
    monkeypatch.setattr(network.Network, "layer", lambda self, device: Fake())
    made_lane = backbone._lane("fp32", "cpu", 4)
    for batch, found in zip(batches, cuda.ordered(batches, [made_lane]), strict=True):
        assert far(backbone.encode(batch), found) < 1e-5


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_gpu
@pytest.mark.parametrize("mode", ["fp32", "fp16", "fp16-except:conv1"])
def test_a_gpu_streams_what_the_cpu_encodes(mode):
    backbone = made("resnet18")
    batches = [pixels(n, seed=n) for n in (100, 3, 64, 1)]
    found = list(backbone.stream(iter(batches), mode=mode, device="cuda"))
    for batch, codes in zip(batches, found, strict=True):
        assert far(backbone.encode(batch), codes) < (1e-3 if mode == "fp32" else 2e-2)
    assert backbone.engine_report(mode, "cuda")["stream"] == []


@needs_gpu
def test_a_gpu_gives_the_same_bits_whatever_the_batches():
    backbone, batch = made("resnet18"), pixels(70)
    whole = next(backbone.stream([batch], device="cuda:all"))["flatten"]
    parts = np.concatenate([c["flatten"] for c in backbone.stream(np.array_split(batch, 9), device="cuda:all")])
    assert np.array_equal(whole, parts)
    assert backbone.best_chunk("fp16") in cuda.CANDIDATES


def test_no_home_and_a_full_disk_end_in_the_fused_engine(monkeypatch):
    from featcache.backbone import packages

    def homeless():
        raise FileNotFoundError("this user has no home folder; set FEATCACHE_CACHE")

    monkeypatch.setattr(packages, "cache_folder", homeless)
    backbone = Backbone("squeezenet1_1", weights="random", preprocess=Preprocess(resize=64, crop=64))
    codes = backbone.encode(np.zeros((1, 64, 64, 3), "u1"), engine="compiled")
    report = backbone.engine_report(engine="compiled")
    assert codes and report["engine"] == "fused" and "no home folder" in report["reason"]


def test_a_writer_that_fails_is_a_package_that_cannot_be_had(tmp_path, monkeypatch):
    from featcache.backbone import packages

    def full(path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(packages, "compiler", lambda: "c++")
    with pytest.raises(packages.PackageError, match="cannot be written .*file write failed"):
        packages.Packages(tmp_path / "packages").build("a" * 64, full)
    assert not list((tmp_path / "packages").glob("tmp*"))
