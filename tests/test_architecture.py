"""The house: imports only downwards as ARCHITECTURE.md says, light imports, public names, documented parameters."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

import featcache

PACKAGE = REPOSITORY / "featcache"
HEAVY = {"torch", "torchvision", "sklearn", "h5py", "PIL", "matplotlib", "rich", "scipy", "pyarrow", "joblib"}


def import_table():
    """Return module → (own modules it may import, third parties it may import) from ARCHITECTURE.md."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|([^|\n]*)\|([^|\n]*)\|", text, re.M)
    assert len(rows) > 10
    return {name: (set(re.findall(r"`(\w+)`", own)), set(re.findall(r"`(\w+)`", third))) for name, own, third in rows}


def modules():
    """Return top-level module name → its files."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__"):
            found.setdefault(parts[0], []).append(path)
    return found


def imports_of(path):
    """Yield (own module or None, third-party top name) for each runtime import of a file."""
    tree = ast.parse(path.read_text())
    typing_only = {
        node for branch in ast.walk(tree) if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }  # fmt: skip
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield None, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield None, (node.module or "").split(".")[0]
            elif node.level == depth:
                names = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
                for name in names:
                    yield name, None


def test_imports_go_only_downwards():
    table, found = import_table(), modules()
    assert set(found) == set(table), "the import table names every room, and no other"
    wrong = []
    for name, paths in found.items():
        own, third = table[name]
        for path in paths:
            for mine, theirs in imports_of(path):
                if (
                    mine is not None
                    and mine not in own | {name}
                    and (PACKAGE / mine).exists() | (PACKAGE / f"{mine}.py").exists()
                ):
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {mine}")
                if theirs in HEAVY and theirs not in third:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {theirs}")
    assert not wrong, wrong


def test_the_table_has_no_cycles():
    table = {name: own for name, (own, _) in import_table().items()}
    done = set()
    while len(done) < len(table):
        ready = {name for name, own in table.items() if name not in done and own - {name} <= done}
        assert ready, f"a cycle among {set(table) - done}"
        done |= ready


@pytest.mark.parametrize(
    "statement", ["import featcache", "import featcache.cli.commands", "import featcache.backbone"]
)
def test_light_imports(statement):
    heavy = "{'torch', 'torchvision', 'sklearn', 'matplotlib'}"
    code = f"{statement}\nimport sys\nprint(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_public_names_exist_and_no_module_bears_one():
    for name in featcache.__all__:
        assert getattr(featcache, name) is not None
    rooms = {p.stem for p in PACKAGE.iterdir() if not p.stem.startswith("_")}
    assert not rooms & set(featcache.__all__)
    with pytest.raises(AttributeError):
        featcache.no_such_name  # noqa: B018


def public_callables():
    for name in featcache.__all__:
        thing = getattr(featcache, name)
        if callable(thing) and not (inspect.isclass(thing) and issubclass(thing, Exception)):
            yield pytest.param(thing, id=name)
            if inspect.isclass(thing):
                for method, value in inspect.getmembers(thing, inspect.isroutine):
                    if not method.startswith("_") and (value.__module__ or "").startswith("featcache"):
                        yield pytest.param(value, id=f"{name}.{method}")


@pytest.mark.parametrize("thing", list(public_callables()))
def test_documented_parameters_are_the_signatures(thing):
    from numpydoc.docscrape import FunctionDoc

    doc = inspect.getdoc(thing) or ""
    assert doc, "every public callable has a docstring"
    documented = [
        part.strip() for row in FunctionDoc(thing, doc=doc)["Parameters"] for part in row.name.lstrip("*").split(",")
    ]
    parameters = [n for n in inspect.signature(thing).parameters if n not in ("self", "cls")]
    if documented:
        assert set(documented) == set(parameters)


def test_every_exception_is_in_the_tree_and_has_a_familiar_base():
    from featcache import errors

    for name in errors.__all__:
        thing = getattr(errors, name)
        assert name in errors.__doc__ and issubclass(thing, errors.FeatcacheError)
        assert str(thing("one sentence")) == "one sentence"
        if name not in ("FeatcacheError",):
            assert issubclass(thing, (ValueError, OSError, RuntimeError))


def test_every_module_imports():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__main__.py":
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            importlib.import_module(".".join(p for p in parts if p != "__init__"))


def test_no_path_of_a_machine_is_in_the_tree():
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.split()
    for name in listed:
        path = REPOSITORY / name
        if path.suffix in (".py", ".md", ".toml", ".json", "") and path.is_file() and path != Path(__file__):
            text = path.read_text(errors="ignore")
            assert not re.search(r"/(work|root|farm)/\w", text), name
