"""The documents keep their word: code blocks run, commands and links lead somewhere, the architecture is the code's.

A reader (:class:`Reader`) follows a document from its first code block to its last, in a folder of its own, with a tiny
checkpoint and a few short texts. A block that it does not know how to follow fails the test.
"""

from __future__ import annotations

import ast
import contextlib
import io
import random
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import BertConfig, BertModel

from mp_model import engine, schedule
from mp_model.command_line import main
from mp_model.serving import classifier
from support import tiny, wordpiece

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ARCHITECTURE = ROOT / "docs" / "architecture.md"
MODULES = ROOT / "docs" / "modules.md"

# What stands in a document, and what the reader takes instead: a checkpoint of its own.
INSTEAD = {"bert-base-uncased": "tiny-bert"}
# Options that the reader adds to a command, so that it ends soon and a tiny model learns a little.
ADDED = {
    "fit": "--epochs 1 --soft-epochs 1 --joint-epochs 1 --exit-epochs 2 --learning-rate 1e-3 --final-threshold 0.05 "
    "--importance-normalizer alive",
    "evaluate": "--exit-thresholds 0.2,0.8 --rounds 1",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Block(NamedTuple):
    """A code block; line: the number of its first line in the document."""

    document: str
    line: int
    language: str
    text: str


def blocks_of(document: Path) -> Iterator[Block]:
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip().startswith("```"):
            if opened is not None:
                yield Block(name_of(document), *opened, "\n".join(lines))
            opened, lines = (None if opened is not None else (number + 1, line.strip("` "))), []
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{name_of(document)}: the code block at line {opened} does not end"


class Reader:
    """Somebody who does what a document says.

    Args:
        folder: where the reader is; it holds the files that are named in documents.
        monkeypatch: of the test.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        monkeypatch.chdir(folder)

    def follow(self, block: Block) -> None:
        where = f"{block.document}, line {block.line}"
        if block.language == "python":
            self.python(block)
        elif block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.strip():
                    self.shell(line, where)
        else:
            pytest.fail(f"{where}: nobody knows how to run a block of {block.language or 'no language'}")

    def python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.text, block.document, "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, {"__name__": "__main__", "any_bert_checkpoint": str(self.folder / "tiny-bert")})

    def shell(self, line: str, where: str) -> None:
        """Follows one line: ``NAME=value`` first, ``echo ... |`` before and ``> file`` after a command are understood."""
        words = shlex.shlex(line, posix=True, punctuation_chars="|>")
        words.whitespace_split = True
        command, stdin, target = list(words), "", None
        while re.match(r"\w+=", command[0]):
            command.pop(0)
        if command[0] == "echo" and "|" in command:
            end = command.index("|")
            stdin, command = " ".join(command[1:end]) + "\n", command[end + 1 :]
        if ">" in command:
            end = command.index(">")
            (target,), command = command[end + 1 :], command[:end]
        if command[0] == "magic-pyramid":
            written = self.magic_pyramid([INSTEAD.get(word, word) for word in command[1:]], stdin, where)
            if target is not None:
                (self.folder / target).write_text(written, encoding="utf-8")
        elif command[0] == "make" and len(command) == 2:
            assert command[1] in make_targets(), f"{where}: the Makefile has no target {command[1]!r}"
        elif command[:3] == ["pip", "install", "-e"] and len(command) == 4:
            extras = re.fullmatch(r"\.(?:\[(.+)])?", command[3])
            assert extras is not None, f"{where}: what is installed is not this folder"
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set((extras[1] or "").split(",")) <= {"", *known}, f"{where}: no such extras"
        elif command == ["source", ".venv/bin/activate"]:
            assert "-m venv .venv" in (ROOT / "Makefile").read_text()
        else:
            pytest.fail(f"{where}: nobody knows how to run {line!r}")

    def magic_pyramid(self, arguments: list[str], stdin: str, where: str) -> str:
        """What a command of the program writes to standard output; its input files and outputs must be there."""
        added = ADDED.get(arguments[0], "").split()
        self.monkeypatch.setattr(sys, "argv", ["magic-pyramid", *arguments, *added])
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, f"{where}: {err.getvalue()}"
        if "--output" in arguments:
            assert Path(arguments[arguments.index("--output") + 1]).exists(), where
        return out.getvalue()


def make_targets() -> set[str]:
    """Targets of the Makefile that ``make help`` lists."""
    return set(re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def write_table(path: Path, count: int, seed: int) -> None:
    """Texts of single letters; the label says which of two words is somewhere among them."""
    draw = random.Random(seed)
    lines = ["label\ttext"]
    for _ in range(count):
        label, words = draw.randint(0, 1), draw.choices("abcdefgh", k=draw.randint(3, 12))
        words.insert(draw.randint(0, len(words)), ("the", "rate")[label])
        lines.append(f"{('sport', 'money')[label]}\t{' '.join(words)}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """A reader with the files that documents name: tables, a stock checkpoint, what the demo leaves, and the articles."""
    for number, split in enumerate(("train", "dev", "test")):
        write_table(tmp_path / f"{split}.tsv", 80 if number else 160, number)
    settings = {name: getattr(tiny.config(), name) for name in BertConfig().to_dict() if name != "model_type"}
    stock = BertConfig(**{**settings, "vocab_size": len(wordpiece.VOCABULARY), "num_hidden_layers": 6})
    BertModel(stock).save_pretrained(tmp_path / "tiny-bert")
    left = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), exit_threshold=0.5)
    left.save_pretrained(tmp_path / "demo-output" / "model")
    for folder in ("tiny-bert", "demo-output/model"):
        wordpiece.tokenizer().save_pretrained(tmp_path / folder)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    return Reader(tmp_path, monkeypatch)


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if list(blocks_of(path))], ids=name_of)
def test_code_blocks_run(document: Path, reader: Reader) -> None:
    for block in blocks_of(document):
        reader.follow(block)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("", "some text"),
        ("rust", "fn main() {}"),
        ("bash", "make coffee"),
        ("bash", "rm -r ."),
        ("bash", "pip install -e '.[coffee]'"),
        ("bash", "pip install coffee"),
        ("bash", "magic-pyramid brew"),
        ("bash", "magic-pyramid classify --model nowhere"),
    ],
)
def test_blocks_that_cannot_be_run_fail(reader: Reader, language: str, text: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        reader.follow(Block("README.md", 1, language, text))


def test_errors_name_the_line_of_the_document(reader: Reader) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        reader.follow(Block("README.md", 70, "python", "x = 1\nx / 0"))
    last = raised.traceback[-1]
    assert (Path(last.path).name, last.lineno + 1) == ("README.md", 71)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            assert (document.parent / link.partition("#")[0]).exists(), f"{name_of(document)} links to {link}"


# The architecture


def modules_of(package: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py")


def paths_named(text: str) -> set[str]:
    """Paths in backticks; in a row of a table a bare name stands in the folder of the path before it."""
    found, folder = set(), Path()
    for name in re.findall(r"`([\w.-]+(?:/[\w.-]*)*)`", text):
        if "/" in name:
            folder = Path(name).parent
            found.add(name)
        elif name.endswith(".py"):
            found.add(str(folder / name))
    return found


def test_every_module_has_a_line_and_nothing_else() -> None:
    named = paths_named(MODULES.read_text(encoding="utf-8"))
    modules = {str(path) for package in ("mp_model", "mp_kernels") for path in modules_of(package)}
    assert sorted(modules - named) == [], "modules without a line in docs/modules.md"
    for document in (MODULES, ARCHITECTURE):
        paths = paths_named(document.read_text(encoding="utf-8"))
        assert sorted(name for name in paths if not (ROOT / name).exists()) == [], f"not there: {document.name}"


def test_numbers_of_the_architecture() -> None:
    text = " ".join(ARCHITECTURE.read_text(encoding="utf-8").split())
    for statement in (
        f"at least {engine.DECIDE_FIRST_ROWS} rows and {engine.DECIDE_FIRST_SAMPLES} samples",
        f"{schedule.BUDGET:,} tokens (`BUDGET`)",
        f"{schedule.EMBEDDED_BUDGETS} times as many for the embeddings",
        f"(L + {schedule.EMBEDDED_BUDGETS}) x `BUDGET` tokens",
        f"{schedule.PATIENCE} arrivals (`PATIENCE`)",
        f"{1000 * classifier.LULL:.0f} ms",
    ):
        assert statement in text


# For each room of mp_model, those that its modules may import from besides their own; "" is the heart.
ROOMS: dict[str, list[str]] = {
    "backbones": [],
    "": ["backbones"],
    "checkpoints": ["backbones", ""],
    "data": ["backbones", "", "checkpoints"],
    "measuring": ["backbones", "", "checkpoints", "data"],
    "serving": ["backbones", "", "checkpoints", "data", "measuring"],
    "training": ["backbones", "", "checkpoints", "data", "measuring"],
    "reporting": ["backbones", "", "checkpoints", "data", "measuring"],
    "command_line": ["backbones", "", "checkpoints", "data", "measuring", "serving", "training", "reporting"],
}


def imports_of(path: Path) -> Iterator[str]:
    """Full names of what a module imports, whenever it does."""
    package = path.with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


@pytest.mark.parametrize("path", [*modules_of("mp_model"), *modules_of("mp_kernels")], ids=str)
def test_imports_follow_the_arrows(path: Path) -> None:
    if path.parts[0] == "mp_kernels":
        assert not [name for name in imports_of(path) if name.split(".")[0] == "mp_model"]
        return
    room = path.parts[1] if len(path.parts) > 2 else ""
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "mp_model" and len(parts) > 1:
            other = parts[1] if parts[1] in ROOMS else ""
            assert other == room or other in ROOMS[room], f"{path} imports {name}"
