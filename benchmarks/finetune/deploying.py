"""Does an exported network say what the original says, and is a tampered bundle refused?

A head and its backbone as torch.export's .pt2 and as ONNX, asked about 200 real images through the readers of their
formats, and compared with the network itself; then bundles with one byte changed at 40 random places.
"""

import zipfile
from typing import Any

import numpy as np
import torch
from measuring import claim

import featcache as fc
from featcache.errors import FeatcacheError
from featcache.finetuning.feeding import ImageFeed


def run(case: Any) -> dict[str, Any]:
    """Return differences of scores, sizes, and what became of tampered bundles."""
    source = case.images("clothing10", 5 if case.tiny else 20, 0, n_test=24 if case.tiny else 240)
    head = case.head(source, case.backbone(224))
    module = fc.to_module(head)
    feed = ImageFeed(source, case.backbone(224).preprocess, classes=head.classes_, progress=False)
    rows = np.asarray(feed.rows["test"])[:200]
    images = feed.batch(rows, 0, 0, 0, False)[0]
    with torch.inference_mode():
        expected = torch.cat([module(part) for part in images.split(20)]).numpy()
    found = [
        _asked(case, head, module, images, expected, ending) for ending in ("pt2", "onnx")[: 1 if case.tiny else 2]
    ]
    refused = _tampered(case, head)
    claims = [
        claim(
            "exported networks equal the original to 1e-4",
            "; ".join(f"{row['format']} {row['largest difference']:.1e}" for row in found) + f" on {len(rows)} images",
            max(row["largest difference"] for row in found) <= 1e-4,
        ),
        claim("tampered bundles are refused", f"{refused} of 40", refused == 40),
    ]
    return {
        "images": len(rows),
        "formats": found,
        "tampered bundles refused": refused,
        "claims": [] if case.tiny else claims,
    }


def _asked(
    case: Any, head: Any, module: Any, images: torch.Tensor, expected: np.ndarray, ending: str
) -> dict[str, Any]:
    path = case.work / f"model.{ending}"
    fc.export(module, path, head=head)
    if ending == "pt2":
        again = torch.export.load(path).module()
        with torch.inference_mode():
            said = torch.cat([again(part) for part in images.split(20)]).numpy()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        said = np.concatenate([session.run(None, {name: part.numpy()})[0] for part in images.split(20)])
    return {
        "format": ending,
        "largest difference": float(np.abs(said - expected).max()),
        "spread of scores": float(np.ptp(expected)),
        "same label": round(float((said.argmax(1) == expected.argmax(1)).mean()), 4),
        "bytes": path.stat().st_size,
    }


def _tampered(case: Any, head: Any) -> int:
    path = case.work / "model.bundle"
    fc.save_bundle(head, path)
    assert zipfile.is_zipfile(path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for place in rng.integers(len(whole), size=40).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        bad = case.work / "bad.bundle"
        bad.write_bytes(bytes(changed))
        try:
            fc.load_bundle(bad)
        except FeatcacheError:
            refused += 1
    return refused
