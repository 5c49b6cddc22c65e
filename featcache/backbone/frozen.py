"""`Backbone`: a frozen network as a value, light until it is used; and what can be listed without loading one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError, SpecError, WeightsError
from . import arguments
from .working import Working

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..preprocess import Preprocess
    from .network import Network
    from .weights import LoadReport

__all__ = ["Backbone", "list_backbones", "list_nodes"]


class Backbone(Working):
    """A frozen network with its weights, the nodes it is cut at, and the preprocessing that belongs to it.

    Nothing is loaded until the first property that needs it.

    Parameters
    ----------
    model : str, nn.Module or callable
        Name of a torchvision classification model; "embedded" for the package's own small one; or your own network (or
        a function that builds it), which is copied and never touched and needs `version` and `preprocess`.
    weights : str, Path, or mapping of str to Tensor, default "DEFAULT"
        Name in torchvision's weights enum ("DEFAULT" is recorded as the name it stands for); a ``.pth``, ``.pt``
        (tensors only, never unpickled) or ``.safetensors`` file; an http(s) URL, with ``#sha256=<hex>`` to have it
        checked; "random"; or a state_dict. Your own network and "embedded" bring theirs: leave it out.
    nodes : str or sequence of str, default "penultimate"
        Where to cut: "penultimate" (what feeds the classifier), "output", module names ("layer3") or node names
        ("layer3.1.relu_1") as `list_nodes` gives them; several as a list or "layer2,layer3".
    pooling : {"avg", "max", "gem", "cls", "none"} or mapping of node to one of them, default "avg"
        How maps (over height and width) and tokens (over all, the class token included) become vectors. "gem" is the
        generalised mean with p = 3, "cls" the first token, "none" keeps the map. Does nothing to a vector.
    version : str, optional
        Names your own network and its code; change it whenever they change. Weights are covered by a digest anyway.
    preprocess : Preprocess or mapping, optional
        How images become inputs; a mapping, e.g. ``{"crop": 192}``, changes fields of the default recipe. That is the
        one of the enum weights; for a file the recipe in its own metadata, or that of the published weights it is a
        copy of, or the architecture's default, which is that of IMAGENET1K_V1 (its first published weights where there
        are none of that name). Another number of channels than 3 replaces
        the first convolution by one of that width.
    init_seed : int, optional
        Seed of "random" weights (then 0 by default), and of the random numbers that stand in for tensors which the
        weights lack; without it, lacking tensors upstream of the nodes are refused.
    model_kwargs : mapping, optional
        Keyword arguments of torchvision's builder, JSON types only.

    Raises
    ------
    BackboneError
        For arguments that make no sense together.
    SpecError
        For `model_kwargs` that cannot be fingerprinted, or an own network without `version`.

    Notes
    -----
    Files: common wrappings (``{"state_dict": …}``) are opened and a common prefix (``module.``) is stripped. Floating
    dtypes are converted to float32. Tensors that are missing, unexpected or of another shape downstream of the nodes
    are listed in `report`; upstream they are an error that names the deepest node that can be used.

    A file recognised by its SHA-256 as one that torchvision publishes gets the recipe and the keyword arguments
    (``transform_input``) of those weights; other GoogLeNet and Inception v3 files get
    ``model_kwargs={"transform_input": True}`` only from you.

    Examples
    --------
    >>> Backbone("mobilenet_v2", weights="random", nodes="features.3,penultimate")
    Backbone('mobilenet_v2', weights='random', nodes='features.3,penultimate', pooling='avg')
    """

    def __init__(
        self,
        model: str | nn.Module | Callable[[], nn.Module],
        weights: str | Path | Mapping[str, Tensor] = "DEFAULT",
        *,
        nodes: str | Sequence[str] = "penultimate",
        pooling: str | Mapping[str, str] = "avg",
        version: str | None = None,
        preprocess: Preprocess | Mapping[str, Any] | None = None,
        init_seed: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._kind, self._weights = arguments.classify(model, weights)
        self._asked_nodes = arguments.checked_nodes(nodes)
        self._pooling = arguments.checked_pooling(pooling)
        self._version = version
        self._changes = dict(preprocess) if isinstance(preprocess, Mapping) else {}
        self._given_preprocess = None if isinstance(preprocess, Mapping) else preprocess
        self._seed = arguments.checked_seed(init_seed)
        self._given_kwargs = arguments.checked_kwargs(model_kwargs)
        self._check_own_model()
        self._lock = threading.RLock()
        self._loaded: Network | None = None
        self._recipe: Preprocess | None = self._given_preprocess
        self._sha256: str | None = None

    def _check_own_model(self) -> None:
        if self._kind != "module":
            if self._version is not None:
                raise BackboneError(
                    f"model {self._model!r}: version= names your own network; a torchvision one is identified by its "
                    "weights, leave it out"
                )
            return
        label = arguments.module_label(self._model)
        if not self._version or not isinstance(self._version, str):
            raise SpecError(f"model {label}: an own network needs version='…', a text that you change with its code")
        if self._given_preprocess is None:
            raise BackboneError(f"model {label}: an own network needs preprocess=Preprocess(...) with its input size")
        if self._given_kwargs:
            raise BackboneError(
                f"model {label}: model_kwargs= are for torchvision's builders; build your network with them"
            )

    def __repr__(self) -> str:
        model = self._model if isinstance(self._model, str) else arguments.module_label(self._model)
        weights = str(self._weights) if isinstance(self._weights, (str, Path)) else self._kind
        nodes = ",".join(self._asked_nodes)
        return f"Backbone({model!r}, weights={weights!r}, nodes={nodes!r}, pooling={self._pooling!r})"

    def __getstate__(self) -> dict[str, Any]:
        """What was asked for; a copy loads the network anew when it is first used."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_loaded", "_lanes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock(), _loaded=None)

    # -- what was asked for -------------------------------------------------------------------------------------------

    def request(self) -> dict[str, Any] | None:
        """Describe what was asked for, without importing torch.

        Returns
        -------
        dict or None
            JSON types. Two equal requests give the same `spec`: it holds everything that could change it, the SHA-256
            of a weights file and the versions of torch, torchvision and featcache among them. None for an own network
            or a state_dict, which cannot be identified without being loaded.

        Raises
        ------
        WeightsError, WeightsUnavailable
            When the weights file cannot be read.
        """
        if self._kind in ("module", "state_dict"):
            return None
        return {
            "model": self._model,
            "weights": self._weights_identity(),
            "nodes": list(self._asked_nodes),
            "pooling": self._pooling,
            "preprocess": self._changes if self._given_preprocess is None else self._given_preprocess.spec(),
            "init_seed": self._seed,
            "kwargs": self._given_kwargs,
            "versions": {name: arguments.version_of(name) for name in ("torch", "torchvision", "featcache")},
        }

    def _weights_identity(self) -> dict[str, str]:
        if self._kind in ("file", "embedded"):
            return {"kind": self._kind, "sha256": arguments.sha256_of(self._path)}
        return {"kind": self._kind, "value": str(self._weights)}

    @property
    def _path(self) -> Path:
        return (
            arguments.embedded_file() if self._kind == "embedded" else Path(str(self._weights)).expanduser().absolute()
        )

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the codes: ``{"backbone": {...}, "preprocess": {...}}``, JSON types."""
        network = self._network
        return {
            "backbone": {
                "arch": network.arch,
                "kwargs": dict(network.kwargs),
                "weights": network.digest,
                "nodes": list(network.nodes),
                "pooling": dict(network.poolings),
                "version": self._version,
            },
            "preprocess": self.preprocess.spec(),
        }

    @property
    def locator(self) -> dict[str, Any]:
        """Where the weights came from, to find them again; recorded beside the spec, never part of it.

        ``{"kind", "value"}`` and, as they apply, "sha256" of the file, "kwargs" and "init_seed".
        """
        self._network  # noqa: B018 - resolves DEFAULT
        value = self._locator_value()
        locator: dict[str, Any] = {"kind": self._kind, "value": value}
        if self._sha256:
            locator["sha256"] = self._sha256
        if self._given_kwargs:
            locator["kwargs"] = dict(self._given_kwargs)
        if self._seed is not None and self._kind != "random":
            locator["init_seed"] = self._seed
        return locator

    def _locator_value(self) -> str:
        if self._kind == "enum":
            return str(self._member.name)
        if self._kind == "random":
            return str(self._seed or 0)
        if self._kind == "module":
            return arguments.module_label(self._model)
        if self._kind == "file":
            return str(self._path)
        return {"embedded": "embedded", "state_dict": "state_dict"}.get(self._kind, str(self._weights))

    @property
    def preprocess(self) -> Preprocess:
        """The recipe from an image to this network's input; known without loading the weights (except for a URL)."""
        if self._recipe is None:
            with self._lock:
                self._recipe = self._changed(self._default_recipe())
        return self._recipe

    @property
    def nodes(self) -> tuple[str, ...]:
        """Canonical names of the nodes, as the spec has them."""
        return self._network.nodes

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Node → shape of one row of codes, e.g. ``{"flatten": (2048,)}``."""
        return dict(self._network.shapes)

    @property
    def report(self) -> LoadReport:
        """What of the weights was missing, unexpected or of another shape: downstream of the nodes, or filled in."""
        return self._network.report

    def module(self) -> nn.Module:
        """Return a copy of the frozen cut network as an ordinary module.

        Returns
        -------
        nn.Module
            Normalised float32 images (N, C, H, W) → dict of node → codes, rows of `output_shapes`. On the CPU, in eval
            mode, no parameter requires a gradient; yours to change.
        """
        import copy

        return copy.deepcopy(self._network.module)

    # -- loading ------------------------------------------------------------------------------------------------------

    @property
    def _network(self) -> Network:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> Network:
        from . import network, own

        if self._kind == "module":
            return own.from_module(
                self._model,  # type: ignore[arg-type]
                nodes=self._asked_nodes,
                pooling=self._pooling,
                preprocess=self.preprocess,
            )
        source, label = self._read()
        return network.from_architecture(
            self._arch,
            source=source,
            label=label,
            nodes=self._asked_nodes,
            pooling=self._pooling,
            preprocess=self.preprocess,
            kwargs=self._kwargs,
            seed=(self._seed or 0) if source is None else self._seed,
        )

    def _read(self) -> tuple[Mapping[str, Tensor] | None, str]:
        """Return the tensors (None: start from random numbers) and what messages call them."""
        from . import weights

        if self._kind == "random":
            return None, "random"
        if self._kind == "state_dict":
            tensors = weights.unwrap(self._weights, "mapping")
            return {k: v.detach().cpu().clone() for k, v in tensors.items()}, "mapping"
        path = self._local_file()
        self._sha256 = weights.sha256_of(path)
        return weights.read(path)[0], str(path)

    def _local_file(self) -> Path:
        """Return the weights file, fetched if need be."""
        from . import weights

        if self._kind == "url":
            url = str(self._weights)
            return weights.fetch(url, weights.cached_path(url))
        if self._kind == "enum":
            url = self._member.url
            path = weights.hub_folder() / url.rsplit("/", 1)[-1]
            return weights.fetch(url, path, hint=", or pass weights=FILE")
        return self._path

    @cached_property
    def _metadata(self) -> dict[str, str]:
        """Metadata of a safetensors file: arch, kwargs, preprocess."""
        from . import weights

        return weights.read_metadata(self._local_file()) if self._kind in ("file", "url", "embedded") else {}

    @cached_property
    def _arch(self) -> str:
        from . import zoo

        stated = self._metadata.get("arch")
        arch = str(stated) if self._kind == "embedded" else str(self._model)
        zoo.check_architecture(arch)
        if stated not in (None, arch):
            raise WeightsError(
                f"weights {self._weights}: expected weights of {arch}, got {stated!r} by their own metadata; pass "
                f"{stated!r} as the model"
            )
        return arch

    @cached_property
    def _member(self) -> Any:
        """The weights enum member these weights are, by name or by the file's SHA-256; None for others."""
        from . import weights, zoo

        if self._kind == "enum":
            return zoo.weights_enum(self._arch, str(self._weights))
        if self._kind in ("file", "url"):
            return zoo.published_as(self._arch, weights.sha256_of(self._local_file()))
        return None

    @property
    def _kwargs(self) -> dict[str, Any]:
        from . import weights, zoo

        stated = weights.json_in(self._metadata, "kwargs", self._weights) or {}
        return {**zoo.implied_kwargs(self._arch, self._member), **stated, **self._given_kwargs}

    def _changed(self, recipe: Preprocess) -> Preprocess:
        return type(recipe).from_spec({**recipe.spec(), **self._changes}) if self._changes else recipe

    def _default_recipe(self) -> Preprocess:
        from ..preprocess import Preprocess
        from . import weights, zoo

        stated = weights.json_in(self._metadata, "preprocess", self._weights)
        if stated is not None:
            return Preprocess.from_spec(stated)
        member = self._member
        return zoo.recipe_of(member) if member is not None else zoo.default_recipe(self._arch)

    # -- finding it again ---------------------------------------------------------------------------------------------

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], locator: Mapping[str, Any], weights: Any = None) -> Backbone:
        """Make the backbone that a store or a head was made with, and verify that it is the same.

        Parameters
        ----------
        spec : mapping
            As `spec` gives it.
        locator : mapping
            As `locator` gives it.
        weights : optional
            Weights (or your own nn.Module) to use instead of those that the locator names.

        Returns
        -------
        Backbone
            Loaded; its spec equals `spec`.

        Raises
        ------
        WeightsUnavailable
            When the file is gone or there is no network.
        WeightsError
            When the weights are not the recorded ones.
        """
        from ..preprocess import Preprocess

        try:
            wanted, recipe, _ = spec["backbone"], Preprocess.from_spec(spec["preprocess"]), locator["kind"]
        except (KeyError, TypeError) as error:
            raise BackboneError(
                f"from_spec: expected a spec with 'backbone' and 'preprocess', and a locator with 'kind', got {error}; "
                "give both as a store or a head has them"
            ) from error
        model, found = arguments.located(wanted, locator, weights)
        options: dict[str, Any] = {"nodes": wanted["nodes"], "pooling": dict(wanted["pooling"]), "preprocess": recipe}
        if isinstance(model, str):
            options["model_kwargs"] = {**wanted.get("kwargs", {}), **locator.get("kwargs", {})}
            seeded = found == "random" and locator["kind"] == "random"
            options["init_seed"] = int(locator["value"]) if seeded else locator.get("init_seed")
        else:
            options["version"] = wanted["version"]
        backbone = cls(model, found, **options)
        # A store's spec holds more (precision, dtype), which is no matter of the network's.
        recorded = {"backbone": wanted, "preprocess": spec["preprocess"]}
        arguments.check_same(backbone.spec, recorded, str(locator.get("value")))
        return backbone


def list_backbones() -> list[dict[str, Any]]:
    """List the models that `Backbone` knows by name; needs no network.

    Returns
    -------
    list of dict
        "name", "parameters" (count), "weights" (enum names), "default" (the enum name that "DEFAULT" stands for),
        "input" ([H, W, C] of the default recipe); "embedded" first where the package carries it.
    """
    from . import weights, zoo

    return weights.embedded_row() + zoo.listing()


def list_nodes(name: str, model_kwargs: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """List the nodes of a model, in the order of execution, without any weights.

    Parameters
    ----------
    name : str
        Model, e.g. "resnet50" or "embedded".
    model_kwargs : mapping, optional
        As for `Backbone`.

    Returns
    -------
    list of dict
        "node" (canonical name), "module" (shortest name that stands for it), "shape" of a row, "pooled" (shape after
        average pooling, None where it cannot be pooled), "penultimate" (bool).

    Raises
    ------
    BackboneError
        When there is no such model.

    Examples
    --------
    >>> [row["pooled"] for row in list_nodes("resnet18") if row["penultimate"]]
    [[512]]
    """
    from . import network

    backbone = Backbone(name, weights="random" if name != "embedded" else "DEFAULT", model_kwargs=model_kwargs)
    return network.node_table(backbone._arch, backbone._kwargs, backbone.preprocess)
