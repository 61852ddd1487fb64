"""Extension of griffe: the roles of Sphinx in docstrings, such as ``:class:`Classifier```, as plain code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:\w+):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Rewrites each docstring once it is collected."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """obj: a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
