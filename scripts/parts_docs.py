"""Writes the table of parts of docs/architecture.md from the docstrings of the modules; `make parts` runs it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "architecture.md"
HEAD: Final = "| part | in one sentence |\n|---|---|\n"


def rows() -> Iterator[str]:
    """One row for each package and module: the first paragraph of its docstring."""
    package = ROOT / "vdpa_agent"
    yield from _rows_of(package)
    for path in sorted(package.rglob("*/")):
        if path != package and path.name != "__pycache__":
            yield from _rows_of(path)


def _rows_of(directory: Path) -> Iterator[str]:
    modules = [] if directory.name == "pb" else sorted(directory.glob("*.py"))  # pb/ is generated
    package = directory / "__init__.py"
    for path in [package, *(module for module in modules if module != package)]:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        sentence = docstring.split("\n\n")[0].replace("\n", " ")
        place = path.relative_to(ROOT)
        yield f"| `{place.parent}/` | {sentence} |\n" if path == package else f"| `{place}` | {sentence} |\n"


def main() -> None:
    """Replaces the rows of `vdpa_agent/`; those of the other directories stay as they are written."""
    before, head, table = PAGE.read_text().partition(HEAD)
    others = [line for line in table.splitlines(keepends=True) if not line.startswith("| `vdpa_agent/")]
    PAGE.write_text(before + head + "".join(rows()) + "".join(others))


if __name__ == "__main__":
    main()
