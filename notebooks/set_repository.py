"""Write the address of your copy into every notebook's set-up cell, and show its Colab badge.

usage: python notebooks/set_repository.py https://github.com/OWNER/NAME      (an empty address removes the badge)
"""

import re
import sys
from pathlib import Path

import nbformat

BADGE = "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})\n\n"


def set_repository(path: Path, name: str, address: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    title, setup = notebook.cells[:2]
    setup.source = re.sub(r'(?m)^REPOSITORY, REVISION = "[^"]*"', f'REPOSITORY, REVISION = "{address}"', setup.source)
    title.source = re.sub(r"^\[!\[Open In Colab\].*\n\n", "", title.source)
    if address:
        owner = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(\.git)?/?", address)
        if not owner:
            sys.exit(f"{address}: Colab opens notebooks from https://github.com/OWNER/NAME")
        link = f"https://colab.research.google.com/github/{owner[1]}/blob/main/{name}"
        title.source = BADGE.format(link=link) + title.source
    nbformat.write(notebook, path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = Path(__file__).resolve().parents[1]
    for path in [root / "main.ipynb", *sorted((root / "notebooks").glob("*.ipynb"))]:
        set_repository(path, path.relative_to(root).as_posix(), sys.argv[1])
