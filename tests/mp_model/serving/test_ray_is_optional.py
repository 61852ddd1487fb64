"""Where there is no Ray, two options say how to get it, and nothing else misses it; their page is held to what there is."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer

from mp_model import serving
from mp_model.command_line import app, main
from mp_model.serving.settings import ServerSettings

PAGE = (Path(__file__).parents[3] / "docs" / "many-machines.md").read_text(encoding="utf-8")

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
    for name in ("ray_cluster", "ray_data", "ray_serve"):  # of tests that have imported them
        monkeypatch.delitem(sys.modules, f"{serving.__name__}.{name}", raising=False)
        monkeypatch.delattr(serving, name, raising=False)
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


def commands() -> list[list[str]]:
    """The words of the page's examples, without the variables before them and the ``&`` after them."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line.split() for block in blocks for line in block.splitlines()]
    return [[word for word in line if not re.match(r"[A-Z_]+=|&$", word)] for line in lines]


def test_the_commands_of_the_page_are_those_that_there_are() -> None:
    ours = [words for words in commands() if words[0] == "magic-pyramid"]
    assert [words[1] for words in ours] == ["classify"] * 4 + ["serve"]
    group = typer.main.get_command(app)
    for _, name, *arguments in ours:
        context = group.commands[name].make_context(name, list(arguments))  # type: ignore[attr-defined]
        assert context.params["ray" if name == "classify" else "replicas"]


def test_the_arguments_of_the_page_are_those_that_there_are(served_folder: Path) -> None:
    pytest.importorskip("ray", reason="pip install -e .[ray]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray warns of what it does itself
        from mp_model.serving import ray_data, ray_serve

    (words,) = (words for words in commands() if words[:2] == ["serve", "run"])
    assert words[2] == f"{ray_serve.__name__}:{ray_serve.app.__name__}"
    given = dict(word.split("=") for word in words[3:])
    rows = re.findall(r"^\| `(\w+)` \| (\d*) ", PAGE.partition("| argument |")[2], re.MULTILINE)
    assert set(given) < {name for name, _ in rows}
    for numbers in ({"replicas": "8"}, {name: usual for name, usual in rows if usual} | {"max_replicas": "2"}):
        assert ray_serve.app({"folder": str(served_folder), **numbers})
    assert f"{ray_serve.PROXY}={ray_serve.__name__}:{ray_serve.proxy_middlewares.__name__}" in PAGE
    assert f"parts of {ray_data.PART:,} rows" in PAGE
    for name in ray_serve.NOT_HERE:
        assert f"`--{name.replace('_', '-')}`" in PAGE
    assert f"`--max-concurrent-requests {ServerSettings().max_concurrent_requests}`" in PAGE
