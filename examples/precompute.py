"""Precompute the CNN codes of a folder of images: python examples/precompute.py flowers/ flowers.features resnet50"""

import sys

import featcache as fc


def main(folder: str, path: str, backbone: str = "embedded", weights: str = "DEFAULT") -> None:
    """Compute what the store does not have yet; run it again whenever images were added or changed."""
    source = fc.ImageSource.from_folder(folder)  # one folder per class
    store = fc.extract(source, fc.Backbone(backbone, weights), path)
    report = store.report
    print(f"{report.images} images: {report.computed} computed, {report.reused} reused, {len(report.failed)} failed")
    for failure in report.failed:
        print(f"  {failure['id']}: {failure['reason']}")
    data = store.load()
    print(f"X {data.X.shape} {data.X.dtype}, classes: {', '.join(data.classes)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
