"""Tables that commands print into the README, each between two comments of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mp_model.data.files import whole_file


@dataclass(frozen=True)
class Place:
    """A table's place.

    Attributes:
        begin, end: the comments around it, a line each.
    """

    begin: str
    end: str

    def filled(self, text: str, lines: Iterable[str]) -> str:
        """A README's text with these lines in the place; a text that has none stays as it is."""
        if self.begin not in text:
            return text
        before, _, rest = text.partition(self.begin)
        block = "\n".join(lines)
        return f"{before}{self.begin}{block}\n{self.end}{rest.partition(self.end)[2]}"

    def fill(self, readme: Path, lines: Iterable[str]) -> None:
        """Writes a README anew, where there is one that has the place."""
        text = readme.read_text(encoding="utf-8") if readme.exists() else ""
        filled = self.filled(text, lines)
        if filled != text:
            with whole_file(readme) as stream:
                stream.write(filled)
