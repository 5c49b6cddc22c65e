"""Render benchmarks/results/*.json as benchmarks/README.md.

Command
    python benchmarks/render.py [--check]

A results file holds "question", "command", "machine", "date" and "figures"; what else it holds counts as figures. A
list of objects becomes a table, an object of plain values a table of two columns, an object of objects a section each.
What is claimed over several parts of a file is computed here, see together.py.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from together import auto_over_all

FOLDER = Path(__file__).resolve().parent
HEAD = ("question", "command", "machine", "date")
INTRODUCTION = """# Benchmarks

Made by `python benchmarks/render.py` from `results/*.json`; do not edit. Each `bench_<question>.py` says in its
docstring what is asked, how to run it, and against whom. With `--tiny` each runs in seconds on generated images, as the
tests do.
"""


def cell(value: Any) -> str:
    """Return one value as the text of a table cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(cell(v) for v in value)
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(cell(c.replace("_", " ")) for c in columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows] + [""]


def body(value: Any, depth: int) -> list[str]:
    """Return the lines of a value: tables for what is flat, headings for what is not."""
    if isinstance(value, list):
        if value and all(isinstance(v, dict) for v in value):
            return table(value)
        return [cell(value), ""]
    if not isinstance(value, dict):
        return [cell(value), ""]
    nested = {k: v for k, v in value.items() if isinstance(v, dict) or _is_table(v)}
    flat = [{"figure": k.replace("_", " "), "value": v} for k, v in value.items() if k not in nested]
    lines = table(flat) if flat else []
    for name, inner in nested.items():
        lines += [f"{'#' * min(depth, 6)} {cell(name.replace('_', ' '))}", "", *body(inner, depth + 1)]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def section(name: str, result: dict[str, Any]) -> list[str]:
    """Return the lines of one results file."""
    lines = [f"## {cell(result.get('question', name))}", ""]
    if result.get("command"):
        lines += ["```", str(result["command"]), "```", ""]
    about = result.get("machine")
    facts = [str(result["date"])] if result.get("date") else []
    facts += [cell(about)] if about else []
    lines += [f"`results/{name}`" + (": " + "; ".join(facts) if facts else ""), ""]
    figures = {k: v for k, v in result.items() if k not in (*HEAD, "figures")}
    given = result.get("figures", {})
    figures = {**(given if isinstance(given, dict) else {"figures": given}), **figures}
    if over_all := auto_over_all(figures):
        figures["auto, the cells of all parts"] = over_all
    return lines + body(figures, 3)


def render(folder: Path) -> str:
    """Return the README of a folder of results files."""
    lines = [INTRODUCTION]
    for path in sorted(folder.glob("*.json")):
        lines += section(path.name, json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(lines).rstrip("\n") + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only tell whether README.md is up to date")
    args = parser.parse_args(argv)
    text, path = render(FOLDER / "results"), FOLDER / "README.md"
    if args.check:
        return 0 if path.is_file() and path.read_text(encoding="utf-8") == text else 1
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
