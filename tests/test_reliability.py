"""The page of situations is the tests'."""

from __future__ import annotations

from support import situations


def test_the_page_lists_the_situations() -> None:
    assert situations.PAGE.read_text(encoding="utf-8") == situations.page(), "run `make reliability`"
