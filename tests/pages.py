"""The pages that people read, and the blocks of code in them.

Each block is run by `acceptance/test_pages.py`, unless the line above it says why not, or which other test runs it:
`<!-- not run: … -->`, `<!-- tests/… runs this -->`; the latter may stand for a whole page, below its title.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [page for pattern in ("*.md", "docs/*.md", "jobs/*/README.md") for page in sorted(ROOT.glob(pattern))]
PAGES += sorted(ROOT.glob("examples/*/README.md"))
RUN = ("sh", "python")
"""Languages of blocks that can be run; of the others, what can be checked is checked."""


@dataclass(frozen=True)
class Block:
    """What lies between two fences."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    """What the comment above it says."""

    @property
    def is_marked(self) -> bool:
        return self.mark.startswith("not run: ") or bool(self.run_by)

    @property
    def run_by(self) -> str:
        found = re.match(r"(tests/\S+\.py) runs th", self.mark)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    """The fenced blocks of a page, in their order."""
    text = page.read_text()
    of_page = re.search(r"\A# .*\n\n<!-- (tests/\S+ runs this page) -->\n", text)
    for found in re.finditer(r"(?:^<!-- (.*) -->\n)?^```(.*)\n((?s:.*?))^```$", text, re.MULTILINE):
        mark, language, inside = found.groups(default="")
        yield Block(
            page, text.count("\n", 0, found.start(2)) + 1, language, inside, mark or (of_page[1] if of_page else "")
        )


def prose_of(page):
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands_of(text):
    """The command lines of a block: without comments, continued ones as one."""
    for line in text.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s+)#\s.*$", "", line).strip()
        if command:
            yield command
