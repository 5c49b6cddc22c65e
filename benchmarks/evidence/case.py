"""What the parts work with: the codes of bench_heads.py's case, at several nodes of several networks, too."""

from dataclasses import dataclass

from heads.case import REAL, WEIGHTS
from heads.case import Case as HeadsCase
from heads.case import _generated as generated
from parts import Skip

from featcache import FeatureSet, FeatureStore

__all__ = ["NODES", "REAL", "Case"]

#: network → its weights' file under weights/ (None: the embedded ones) and the nodes that are stored.
NODES = {
    "mobilenet_v2": "features.3,features.6,features.10,features.13,features.16,penultimate,classifier.1",
    "squeezenet1_1": "features.4,features.7,features.10,penultimate,classifier.3",
    "resnet18": "layer1,layer2,layer3",
    "embedded": "features.6,features.13,penultimate",
}
_FILES = {**WEIGHTS, "resnet18": "resnet18_upto_layer3-onnx_bnfolded.pth", "embedded": None}


@dataclass(frozen=True)
class Case(HeadsCase):
    """One run; see heads/case.py."""

    def load_node(self, name: str, arch: str, node: str) -> FeatureSet:
        """Return the codes of a real set at one node (in a trial run: small generated ones)."""
        if self.tiny:
            return generated(name)
        if self.data is None or not (self.data / "datasets" / name).is_dir():
            raise Skip(f"no data set {name}")
        path = self.stores / f"{name}-{arch}-nodes.features"
        if not path.exists():
            from featcache import Backbone, extract

            file = _FILES[arch]
            weights = "DEFAULT" if file is None else str(self.data / "weights" / file)
            backbone = Backbone(arch, weights=weights, nodes=NODES[arch])
            extract(str(self.data / "datasets" / name), backbone, path, precision="fp32", progress=False)
        store = FeatureStore.open(path)
        order = store.spec["backbone"]["nodes"]  # as they resolved: penultimate → flatten
        return store.load(node=order[NODES[arch].split(",").index(node)])
