"""Where there is no Ray, two options say how to get it, and nothing else misses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mp_model.command_line import main

SAID = "error: this needs ray, which is not installed: pip install 'magic-pyramid[ray]'"


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", "--model", "MODEL", "MODEL/config.json", "--output", "answers", "--ray"],
        ["serve", "MODEL", "--replicas", "2"],
    ],
)
def test_what_is_not_installed_is_said(
    served_folder: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name.startswith("mp_model.serving.ray_")]:
        monkeypatch.delitem(sys.modules, name)
    given = [word.replace("MODEL", str(served_folder)) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["magic-pyramid", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip() == SAID
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_imports_it() -> None:
    program = (
        "import sys, mp_model.serving.classifier, mp_model.serving.running, mp_model.command_line, mp_model.training\n"
        "from mp_model import Classifier\n"
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
