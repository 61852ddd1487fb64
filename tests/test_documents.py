"""The documents keep their word: code blocks run, commands and links lead somewhere, the architecture is the code's.

A reader (:class:`Reader`) follows a document from its first code block to its last, in a folder of its own, with a tiny
checkpoint and a few short texts. A block that it does not know how to follow fails the test.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from mp_model import engine, schedule
from mp_model.command_line import main
from mp_model.serving import classifier
from support import tiny, wordpiece

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ARCHITECTURE = ROOT / "docs" / "architecture.md"
MODULES = ROOT / "docs" / "modules.md"

# What stands in a document, and what the reader takes instead: checkpoints of its own, and tables for a data set's splits.
INSTEAD = {
    "bert-base-uncased": "tiny-bert",
    "distilbert-base-uncased": "tiny-distilbert",
    "bhadresh-savani/distilbert-base-uncased-emotion": "tiny-distilbert",
    "SamLowe/roberta-base-go_emotions": "tiny-roberta",
    "/share/model": "demo-output/model",
    "/share/articles": "articles",
    "/share/answers": "shared-answers",
}
SPLITS = {
    "dair-ai/emotion": {"fit": "train.tsv", "tune": "dev.tsv", "evaluate": "test.tsv", "report": "test.tsv"},
    "google-research-datasets/go_emotions:simplified": {
        "fit": "train-several.tsv",
        "tune": "dev-several.tsv",
        "evaluate": "test-several.tsv",
    },
}
PORT = "8080"  # in documents; the reader's servers take one that is free
# Options that the reader adds to a command, so that it ends soon and a tiny model learns a little.
ADDED = {
    "fit": "--epochs 1 --soft-epochs 1 --joint-epochs 1 --exit-epochs 2 --learning-rate 1e-3 --final-threshold 0.05 "
    "--importance-normalizer alive",
    "evaluate": "--exit-thresholds 0.2,0.8 --rounds 1",
    "report": "--exit-thresholds 0.2,0.8 --max-texts 20 --no-time",
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
        self.port = str(free_port())
        self.jobs: list[subprocess.Popen[bytes]] = []
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
        text = block.text.replace(f"localhost:{PORT}", f"localhost:{self.port}")
        for name, own in INSTEAD.items():
            text = text.replace(f'"{name}"', f'"{own}"')
        code = compile("\n" * (block.line - 1) + text, block.document, "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, {"__name__": "__main__", "any_bert_checkpoint": str(self.folder / "tiny-bert")})

    def shell(self, line: str, where: str) -> None:
        """Follows one line.

        Ray's own commands are only read, for they would start a cluster, or end all that this machine has. Understood are a
        comment, ``NAME=value`` first, ``echo ... |`` or ``cat FILE |`` before a command, ``> FILE`` after
        it, and ``&`` after a server, which ``kill %1`` stops.
        """
        words = shlex.shlex(line, posix=True, punctuation_chars="|>&")
        words.whitespace_split = True
        command, stdin, target = list(words), "", None
        while re.match(r"\w+=", command[0]):
            command.pop(0)
        if command[0] in ("echo", "cat") and "|" in command:
            end = command.index("|")
            given, command = command[1:end], command[end + 1 :]
            stdin = " ".join(given) + "\n" if line.startswith("echo") else Path(*given).read_text(encoding="utf-8")
        if ">" in command:
            end = command.index(">")
            (target,), command = command[end + 1 :], command[:end]
        if command[0] == "magic-pyramid" and command[-1] == "&":
            self.start(command[1:-1])
        elif command[0] == "magic-pyramid":
            written = self.magic_pyramid(command[1:], stdin, where)
            if target is not None:
                (self.folder / target).write_text(written, encoding="utf-8")
        elif command[0] == "curl":
            self.ask(command[1:], where)
        elif command == ["kill", "%1"]:
            self.stop(where)
        elif command[:2] == ["hf", "download"] and command[3] == "--local-dir" and len(command) == 5:
            shutil.copytree(INSTEAD[command[2]], command[4])
        elif command[:2] == ["python", "-m"] and len(command) == 3:
            imported = sys.modules.pop(command[2], None)  # by another test; a new process would not have it
            with contextlib.redirect_stdout(io.StringIO()):
                runpy.run_module(command[2], run_name="__main__")
            if imported is not None:
                sys.modules[command[2]] = imported
        elif command[0] == "make" and len(command) in (2, 3):
            assert command[1] in make_targets(), f"{where}: the Makefile has no target {command[1]!r}"
            self.pass_on(command[1], command[2:], where)
        elif command[:2] == ["pip", "install"]:
            self.install(command[2:], where)
        elif command[0] == "export" and len(command) == 2:
            name, _, value = command[1].partition("=")
            assert name in os.environ or callable(named(value)), where
        elif command[:2] in (["ray", "start"], ["serve", "run"]):
            self.of_ray(command)
        elif command == ["source", ".venv/bin/activate"]:
            assert "-m venv .venv" in (ROOT / "Makefile").read_text()
        else:
            pytest.fail(f"{where}: nobody knows how to run {line!r}")

    def pass_on(self, target: str, options: list[str], where: str) -> None:
        """Looks whether the program that a target of the Makefile runs has the options that are passed on to it."""
        for given in options:
            recipe = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
            program = re.findall(r"/python (.+) \$\(OPTIONS\)", recipe)
            assert program, f"{where}: make {target} passes nothing on"
            assert given.startswith("OPTIONS="), f"{where}: nobody reads {given}"
            environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "COLUMNS": "200", "NO_COLOR": "1"}
            command = [sys.executable, *program[0].split(), "--help"]
            known = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
            for name in re.findall(r"--[a-z-]+", given):
                assert name in known.stdout.split(), f"{where}: make {target} has no option {name}"

    def install(self, arguments: list[str], where: str) -> None:
        """Looks at what would be installed, this folder, with extras that there are."""
        editable = arguments[:1] == ["-e"] and len(arguments) == 2
        extras = re.fullmatch(r"\.(?:\[(.+)])?", arguments[1]) if editable else None
        assert extras is not None, f"{where}: what is installed is not this folder"
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set((extras[1] or "").split(",")) <= {"", *known}, f"{where}: no such extras"

    def of_ray(self, command: list[str]) -> None:
        """Reads a command of Ray's own, whose options must be known to it, and makes the application that it names."""
        from ray.scripts.scripts import start
        from ray.serve.scripts import run

        given = (start if command[0] == "ray" else run).make_context(command[1], command[2:]).params
        if command[0] == "serve":
            arguments = dict(word.split("=") for word in given["arguments"])
            named(given["config_or_import_path"])({key: INSTEAD.get(word, word) for key, word in arguments.items()})

    def own(self, command: list[str]) -> list[str]:
        """A command with the reader's files in the place of those that have to be fetched."""
        splits = {name: files.get(command[0], name) for name, files in SPLITS.items()}
        return [splits.get(word, INSTEAD.get(word, word)) for word in command]

    def magic_pyramid(self, command: list[str], stdin: str, where: str) -> str:
        """What a command of the program writes to standard output; its input files and outputs must be there."""
        arguments = [*self.own(command), *ADDED.get(command[0], "").split()]
        self.monkeypatch.setattr(sys, "argv", ["magic-pyramid", *arguments])
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, f"{where}: {err.getvalue()}"
        if "--output" in arguments:
            assert Path(arguments[arguments.index("--output") + 1]).exists(), where
        return out.getvalue()

    def start(self, command: list[str]) -> None:
        """Starts a server in a process of its own, at the reader's port, as the shell does for ``&``."""
        arguments = [self.port if word == PORT else word for word in self.own(command)]
        program = [sys.executable, "-c", "from mp_model.command_line import main; main()", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.folder / "server.log").open("ab") as log:
            self.jobs.append(subprocess.Popen(program, env=environment, stdout=log, stderr=log))

    def ask(self, arguments: list[str], where: str) -> None:
        """Asks a server as curl does, which sends data as a form's unless it is told otherwise; it must answer with 2xx."""
        arguments, data, headers, retries = list(arguments), None, {}, 0
        urls: list[str] = []
        while arguments:
            word = arguments.pop(0)
            if word in ("-d", "-H", "--retry", "--retry-delay"):
                value = arguments.pop(0)
                if word == "-d":
                    data = value.encode()
                elif word == "-H":
                    name, _, content = value.partition(": ")
                    headers[name] = content
                elif word == "--retry":
                    retries = int(value)
            elif word != "--retry-connrefused":
                urls.append(word.replace(f"localhost:{PORT}", f"localhost:{self.port}"))
        (url,) = urls
        assert url.startswith("localhost:"), f"{where}: nobody but the reader's own server is asked"
        end = time.monotonic() + 2 * retries
        while True:
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(f"http://{url}", data, headers), timeout=60
                ) as answer:
                    assert answer.read() is not None
                    return
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > end:  # which curl tries again, too
                    pytest.fail(f"{where}: {error.code} {error.read().decode()}")
            except urllib.error.URLError as error:
                if time.monotonic() > end or self.jobs[-1].poll() is not None:
                    pytest.fail(f"{where}: {error.reason}; {(self.folder / 'server.log').read_text()}")
            time.sleep(0.2)

    def stop(self, where: str) -> None:
        """Ends the server, which must say that all is well."""
        job = self.jobs.pop()
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 0, f"{where}: {(self.folder / 'server.log').read_text()}"


def named(path: str) -> Any:
    """The thing that ``module:name`` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def make_targets() -> set[str]:
    """Targets of the Makefile that ``make help`` lists."""
    return set(re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def write_table(path: Path, count: int, seed: int, column: str = "label") -> None:
    """Texts of single letters; the label says which of two words is somewhere among them.

    column: ``label``, or ``labels``, where a fifth of the texts has no label.
    """
    draw = random.Random(seed)
    lines = [f"{column}\ttext"]
    for number in range(count):
        label, words = draw.randint(0, 1), draw.choices("abcdefgh", k=draw.randint(3, 12))
        none = column == "labels" and number % 5 == 0
        words.insert(draw.randint(0, len(words)), "." if none else ("the", "rate")[label])
        lines.append(f"{'' if none else ('sport', 'money')[label]}\t{' '.join(words)}")
    path.write_text("\n".join(lines) + "\n")


def save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    wordpiece.tokenizer().save_pretrained(folder)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader with what documents name: tables and texts, checkpoints, what the demo leaves, and the articles."""
    for folder in (tmp_path, tmp_path / "demo-output" / "articles"):
        folder.mkdir(parents=True, exist_ok=True)
        for number, split in enumerate(("train", "dev", "test")):
            write_table(folder / f"{split}.tsv", 80 if number else 160, number)
            write_table(folder / f"{split}-several.tsv", 80 if number else 160, number, "labels")
    (tmp_path / "texts.txt").write_text("the rate goes up again\n" * 3000)
    (tmp_path / "documents.txt").write_text(f"{'the rate goes up again ' * 40}\na short one\n")
    names = {"id2label": {0: "money", 1: "sport"}, "label2id": {"money": 0, "sport": 1}}
    words = {"vocab_size": len(wordpiece.VOCABULARY), **names}
    settings = {name: getattr(tiny.config(), name) for name in BertConfig().to_dict() if name != "model_type"}
    save(BertModel(BertConfig(**{**settings, **words, "num_hidden_layers": 6})), tmp_path / "tiny-bert")
    small = DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64, **words)
    save(DistilBertForSequenceClassification(small), tmp_path / "tiny-distilbert")
    several = RobertaConfig(**{**settings, **words, "type_vocab_size": 2, "problem_type": "multi_label_classification"})
    save(RobertaForSequenceClassification(several), tmp_path / "tiny-roberta")
    save(tiny.classifier(**words, num_labels=2, exit_threshold=0.5), tmp_path / "demo-output" / "model")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    found = Reader(tmp_path, monkeypatch)
    yield found
    for job in found.jobs:
        job.kill()


WITH_RAY = ROOT / "docs" / "many-machines.md"
WITH_BLOCKS = [path for path in DOCUMENTS if path != WITH_RAY and list(blocks_of(path))]


@pytest.mark.parametrize("document", WITH_BLOCKS, ids=name_of)
def test_code_blocks_run(document: Path, reader: Reader, able_processor: None) -> None:
    for block in blocks_of(document):
        reader.follow(block)
    assert not reader.jobs, f"{name_of(document)} leaves a server running"


with_ray = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of what Ray does itself


@with_ray
@pytest.mark.timeout(1200)
def test_code_blocks_about_many_machines_run(reader: Reader) -> None:
    """With one cluster for all commands of the page but the server, which has its own."""
    pytest.importorskip("ray", reason="pip install -e .[ray]")
    import pandas

    from mp_model.serving.ray_cluster import cluster

    (reader.folder / "articles").symlink_to(reader.folder / "demo-output" / "articles")
    pandas.read_csv(reader.folder / "test.tsv", sep="\t").to_parquet(reader.folder / "articles.parquet")
    with cluster(1):
        for block in blocks_of(WITH_RAY):
            reader.follow(block)
    assert not reader.jobs, "a server is left running"
    answered = {path.name for path in (reader.folder / "shared-answers").glob("*.jsonl")}
    assert {"dev.tsv.jsonl", "test.tsv.jsonl", "train.tsv.jsonl"} <= answered
    assert answered == {f"{path.name}.jsonl" for path in reader.folder.glob("*.tsv")}
    assert len((reader.folder / "answers.jsonl").read_text().splitlines()) == 80


@with_ray
@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "ray start --hed"),
        ("bash", "serve run mp_model.serving.ray_serve:application folder=/share/model"),
        ("bash", "serve run mp_model.serving.ray_serve:app folder=/share/model machines=8"),
        ("bash", "export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=mp_model.serving.ray_serve:nothing"),
    ],
)
def test_commands_of_ray_that_cannot_be_followed_fail(reader: Reader, language: str, text: str) -> None:
    click = pytest.importorskip("click")
    pytest.importorskip("ray", reason="pip install -e .[ray]")
    with pytest.raises((AttributeError, ValueError, click.ClickException)):
        reader.follow(Block("docs/many-machines.md", 1, language, text))


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("", "some text"),
        ("rust", "fn main() {}"),
        ("bash", "make coffee"),
        ("bash", "make lint OPTIONS=--strong"),
        ("bash", "make peers OPTIONS=--coffee"),
        ("bash", "rm -r ."),
        ("bash", "pip install -e '.[coffee]'"),
        ("bash", "pip install coffee"),
        ("bash", "magic-pyramid brew"),
        ("bash", "magic-pyramid classify --model nowhere"),
        ("bash", "curl example.com"),
        ("bash", "hf download nobody/knows --local-dir here"),
    ],
)
def test_blocks_that_cannot_be_run_fail(reader: Reader, language: str, text: str) -> None:
    with pytest.raises((AssertionError, KeyError, pytest.fail.Exception)):
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


# The first page, and what is read first


def words_of(document: Path) -> int:
    """Words that somebody reads: not those of code."""
    return len(re.sub(r"(?s)```.*?```", "", document.read_text(encoding="utf-8")).split())


def test_the_first_page_is_short_and_begins_with_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    assert (
        text.index("pyramid.png") < text.index("make demo") < text.index("make test") < text.index("magic-pyramid fit")
    )


def test_the_changelog_begins_with_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    releases = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(release for release in releases if release != "Unreleased") == version


def test_figures_of_the_first_page_are_printed_elsewhere() -> None:
    printed = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("results.md", "performance.md"))
    figures = re.findall(r"\d+\.\d\d(?=%|x| times)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(figures) >= 10
    assert [figure for figure in figures if figure not in printed] == []


def test_how_tos_are_read_in_four_minutes() -> None:
    found = sorted((ROOT / "docs" / "how-to").glob("*.md"))
    assert len(found) == 8
    assert sum(map(words_of, found)) < 4 * 240
    for how_to in found:
        text = how_to.read_text(encoding="utf-8")
        assert text.index("**You have**") < text.index("**You get**"), name_of(how_to)


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
        f"it takes {engine.DECIDE_FIRST_ROWS_ON_GPUS:,} rows",
        f"{schedule.BUDGET:,} tokens (`BUDGET`)",
        f"{schedule.EMBEDDED_BUDGETS} times as many for the embeddings",
        f"(L + {schedule.EMBEDDED_BUDGETS}) x `BUDGET` tokens",
        f"{schedule.PATIENCE} arrivals (`PATIENCE`)",
        f"{1000 * classifier.LULL:.0f} ms",
    ):
        assert statement in text


LONGEST = 80  # lines of a function, its options and docstring included; kernels and what launches them may be longer


def test_functions_are_no_longer_than_a_screen() -> None:
    modules = [path for package in ("mp_model", "mp_kernels") for path in modules_of(package)]
    long = [
        f"{path}: {node.name}, {node.end_lineno - node.lineno + 1} lines"
        for path in modules
        if path.parts[:2] != ("mp_kernels", "triton")
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno >= LONGEST
    ]
    assert long == []


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
