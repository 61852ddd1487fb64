"""The report says what the model does, in one file that needs nothing else, whatever the texts and labels hold."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mp_model import Classifier
from mp_model.command_line import app
from mp_model.problems import SEVERAL
from mp_model.reporting import charts
from mp_model.reporting.findings import Findings, by_label
from support import tiny, wordpiece
from support.situations import situation

NAMES = ("sport & <b>fun</b>", "money", 'the "weather"')
EVIL = "the <script>alert('x')</script> & rate </style>"

for package in ("jinja2", "matplotlib"):
    pytest.importorskip(package, reason="reports: pip install 'magic-pyramid[report]'")


class Page(HTMLParser):
    """The elements, the attributes and the words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits") / "news" / "model"
    settings = {"exit_threshold": 0.8, "prune_thresholds": [0.01, 0.02, 0.03, 0.03], "id2label": dict(enumerate(NAMES))}
    tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings).save_pretrained(folder)
    wordpiece.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    texts = [text or "a" for text in wordpiece.texts(40)]
    texts[7] = EVIL
    path = tmp_path_factory.mktemp("tables") / "test.tsv"
    rows = [f"{draw.choice(NAMES)}\t{text}\n" for text in texts]
    path.write_text("label\ttext\n" + "".join(rows))
    return path


def report(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def written(folder: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reports") / "new" / "report.html"
    said = report(folder, table, "--output", path, "--shown", 40, "--exit-thresholds", "0.2,0.9")
    assert f"{path}: open it in a browser" in said
    return path.read_text(encoding="utf-8")


def test_it_is_one_file_without_scripts_and_links(written: str) -> None:
    page = Page(written)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed"}
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#")
    addresses = set(re.findall(r"https?://[^\s\"']+", written))
    assert addresses <= {"http://www.w3.org/1999/xlink"}
    assert "@import" not in written
    assert "prefers-color-scheme: dark" in written
    assert 'name="viewport"' in written


@situation(
    "file",
    "a text or a label that holds HTML, in a report",
    "it is shown as it is, and no browser follows it",
)
def test_texts_and_labels_are_escaped(written: str) -> None:
    assert "&lt;script&gt;alert(" in written.replace("</span>", "").replace("&#39;", "'")
    page = Page(written)
    for name in NAMES:
        assert name in page.text
    assert "<script>alert('x')</script>" in page.text
    assert written.count("</style>") == 1


def test_figures_are_those_of_the_model(written: str, folder: Path, table: Path) -> None:
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    answers = Classifier.load(folder)([text for _, text in rows])
    right = sum(answer.label == label for answer, (label, _) in zip(answers, rows, strict=True))
    page = Page(written).text
    assert f"Of 40 texts {right / 40:.1%} are answered rightly" in page
    mean_exit = sum(answer.exit_layer for answer in answers) / 40
    assert f"mean exit {mean_exit:.1f} of 4" in page
    executed = sum(answer.flops for answer in answers) / 40e6
    assert f"A text takes {executed:.3g} MFLOPs" in page
    shown = page[page.index("The most uncertain") :]
    most = max(answers, key=lambda answer: answer.uncertainty or 0)
    assert f"{most.label} {most.score:.0%}" in shown[:200]
    layer = f"layer {most.exit_layer} of 4, uncertainty {most.uncertainty:.2f}"
    assert layer in shown[:200]
    assert "3 of 40 texts were longer than 64 tokens, and cut" in page
    assert "transformers' padded model" in page
    assert page.startswith("news/model on test.tsv")


def test_each_chart_is_drawn_in_the_pages_colours(written: str) -> None:
    drawings = re.findall(r"<svg .*?</svg>", written, flags=re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        assert "currentColor" in drawing
        assert "var(--series-" in drawing
        assert "aria-label" in drawing
        assert not re.search(r"(fill|stroke): #", drawing)
    ids = re.findall(r'\bid="([^"]*)"', written)
    assert len(ids) == len(set(ids))


def test_only_factors_are_drawn_on_a_scale_of_factors() -> None:
    shares, factors = (
        charts.bars([1.0, 50.0], ["0", "1"], x="layer", y="texts", form="%.0f", factors=factors)
        for factors in (False, True)
    )
    assert re.search(r">\s*40\s*<", shares)
    assert not re.search(r">\s*40\s*<", factors)


def test_texts_may_be_pairs_and_fewer(folder: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "pairs.tsv", tmp_path / "report.html"
    lines = [f"money\t{a or 'a'}\t{EVIL}\n" for a in wordpiece.texts(12)]
    path.write_text("label\ttext_a\ttext_b\n" + "".join(lines))
    report(folder, path, "--output", output, "--no-time", "--max-texts", 5, "--shown", 2)
    page = Page(output.read_text())
    assert "Of 5 texts" in page.text
    assert page.text.count("uncertainty 0.") <= 4
    assert "Time was not measured." in page.text
    assert "padded model" not in page.text


def test_many_labels_have_a_table_and_their_most_frequent_errors(tmp_path: Path) -> None:
    names = [f"label {number}" for number in range(12)]
    settings = {"num_labels": 12, "id2label": dict(enumerate(names)), "exit_layers": []}
    tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings).save_pretrained(tmp_path / "model")
    wordpiece.tokenizer().save_pretrained(tmp_path / "model")
    path = tmp_path / "test.tsv"
    path.write_text(
        "label\ttext\n" + "".join(f"label {n % 12}\t{t or 'a'}\n" for n, t in enumerate(wordpiece.texts(30)))
    )
    report(tmp_path / "model", path, "--output", tmp_path / "report.html", "--no-time")
    page = Page((tmp_path / "report.html").read_text()).text
    assert "From the lowest F1 to the highest." in page
    assert "Most frequent errors right answered texts" in page
    assert "right ↓ answered → label 0 label 1" in page
    assert "No token of these texts was pruned." in page


def test_several_labels_have_figures_of_their_own(tmp_path: Path) -> None:
    names = [f"emotion {number}" for number in range(12)]
    settings = {"num_labels": 12, "id2label": dict(enumerate(names)), "problem_type": "multi_label_classification"}
    tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings).save_pretrained(tmp_path / "model")
    wordpiece.tokenizer().save_pretrained(tmp_path / "model")
    path, texts = tmp_path / "test.tsv", [text or "a" for text in wordpiece.texts(30)]
    right = [{names[n % 12]} if n % 2 else {names[0], names[n % 11 + 1]} for n in range(30)]
    path.write_text("labels\ttext\n" + "".join(f"{','.join(x)}\t{t}\n" for x, t in zip(right, texts, strict=True)))
    report(tmp_path / "model", path, "--output", tmp_path / "report.html", "--no-time", "--shown", 1)
    page = Page((tmp_path / "report.html").read_text()).text
    given = [
        {name for name, score in answer.scores.items() if score > 0.5}
        for answer in Classifier.load(tmp_path / "model")(texts)
    ]
    pairs = list(zip(given, right, strict=True))
    both, either = sum(len(x & y) for x, y in pairs), sum(len(x) + len(y) for x, y in pairs)
    share = sum(x == y for x, y in pairs) / 30
    assert f"Of 30 texts {share:.1%} are answered rightly in all of their labels" in page
    assert f"all labels right {share:.1%} micro F1 {2 * both / either:.1%} macro F1 " in page
    assert "Most frequent errors right answered texts" in page
    assert "right ↓ answered →" not in page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="a browser: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_a_desk(written: str, tmp_path: Path, width: int) -> None:
    """In a browser nothing is wider than the window but tables, which scroll in themselves."""
    probe = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script></body>"
    (tmp_path / "report.html").write_text(written.replace("</body>", probe), encoding="utf-8")
    page = tmp_path / "frame.html"  # since no window of this browser is as narrow as a phone
    page.write_text(
        "<script>onmessage = event => { document.title = event.data }</script>"
        f"<iframe src='report.html' width='{width}' height='900' style='border: 0'></iframe>"
    )
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    options = ["--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    found = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert re.findall("<title>(.*?)</title>", found.stdout) == [str(width)]


# What is refused, before anything is lost


@pytest.mark.parametrize("place", ["folder", "readonly"])
def test_a_place_that_cannot_be_written(folder: Path, table: Path, tmp_path: Path, place: str) -> None:
    path = tmp_path
    if place == "readonly":
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "report.html"
    result = CliRunner().invoke(app, ["report", str(folder), str(table), "--output", str(path)])
    assert isinstance(result.exception, OSError)
    assert "folder" in str(result.exception)


def test_the_report_is_whole_or_not_there(
    folder: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    monkeypatch.setattr(charts, "reliability", lambda *_: 1 / 0)
    result = CliRunner().invoke(app, ["report", str(folder), str(table), "--output", str(path), "--no-time"])
    assert isinstance(result.exception, ZeroDivisionError)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "before"


def test_evaluate_writes_it_too(folder: Path, table: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    options = ["--no-time", "--exit-thresholds", "0.5", "--json", "--report", str(path)]
    result = CliRunner().invoke(app, ["evaluate", str(table), "--model", str(folder), *options])
    assert result.exit_code == 0, result.exception
    assert "Of 40 texts" in Page(path.read_text()).text


# Findings


def findings() -> Findings:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
    predictions = torch.tensor([0, 1, 1, 1, 0, 2, 1, 1])
    scores = torch.tensor([0.91, 0.61, 0.99, 0.95, 0.75, 0.92, 1.0, 0.62])
    layers = torch.tensor([1, 1, 2, 2, 3, 3, 3, 1])
    return Findings(labels, predictions, scores, 1 - scores, layers, 3)


def test_said_against_was() -> None:
    found = findings()
    assert [x.texts for x in found.bins()] == [2, 1, 5]
    assert [x.said for x in found.bins()] == pytest.approx([0.615, 0.75, 0.954])
    assert [x.was for x in found.bins()] == pytest.approx([0, 0, 0.8])
    assert found.calibration_error() == pytest.approx((2 * 0.615 + 0.75 + 5 * 0.154) / 8)
    assert {layer: x.was for layer, x in found.by_layer().items()} == pytest.approx({1: 1 / 3, 2: 1.0, 3: 1 / 3})


def test_confusions() -> None:
    found = findings()
    assert found.confusion().tolist() == [[1, 2, 0], [0, 2, 0], [1, 1, 1]]
    assert found.confusions(2) == [((0,), (1,), 2), ((2,), (0,), 1)]
    assert found.confusions(10) == [((0,), (1,), 2), ((2,), (0,), 1), ((2,), (1,), 1)]
    labels = by_label(found, ["a", "b", "c"])
    assert [(x.precision, x.recall, x.f1) for x in labels] == [
        (0.5, 1 / 3, pytest.approx(0.4)),
        (0.4, 1.0, pytest.approx(4 / 7)),
        (1.0, 1 / 3, pytest.approx(0.5)),
    ]


def test_errors_among_several_labels() -> None:
    right = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]).bool()
    answered = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]).bool()
    found = Findings(right, answered, torch.ones(5), torch.zeros(5), torch.ones(5).long(), 3, SEVERAL)
    assert found.confusions(10) == [((0, 1), (0,), 2), ((), (0,), 1), ((2,), (), 1)]
    assert [(x.precision, x.recall, x.f1) for x in by_label(found, ["a", "b", "c"])] == [
        (0.75, 1.0, pytest.approx(6 / 7)),
        (None, 0.0, 0.0),
        (None, 0.0, 0.0),
    ]


def test_a_label_that_nobody_has_nor_gets_has_no_f1() -> None:
    labels, scores = torch.tensor([0, 1]), torch.ones(2)
    found = Findings(labels, labels, scores, 1 - scores, labels, 3)
    assert [x.f1 for x in by_label(found, ["a", "b", "c"])] == [1.0, 1.0, None]


def test_texts_to_look_at() -> None:
    assert findings().most_uncertain(3) == [1, 7, 4]
    assert findings().surest_errors(2) == [6, 4]
    assert findings().surest_errors(10) == [6, 4, 7, 1]


def test_long_texts_in_windows(folder: Path, table: Path, tmp_path: Path) -> None:
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    answers = Classifier.load(folder, long_texts="windows")([text for _, text in rows])
    right = sum(answer.label == label for answer, (label, _) in zip(answers, rows, strict=True))
    path = tmp_path / "report.html"
    options = ["--long-texts", "windows", "--report", str(path), "--exit-thresholds", "0.5", "--json"]
    result = CliRunner().invoke(app, ["evaluate", str(table), "--model", str(folder), *options])
    assert result.exit_code == 0, result.exception
    assert "3 of 40 texts were longer than 64 tokens, and read in windows until certain" in result.stderr
    assert "time is not measured of texts in windows" in result.stderr
    measured = json.loads(result.stdout)["evaluations"][0]
    assert measured["accuracy"] == pytest.approx(right / 40)
    assert measured["executed_gflops"] == pytest.approx(sum(answer.flops for answer in answers) / 40e9)
    page = Page(path.read_text()).text
    assert f"Of 40 texts {right / 40:.1%} are answered rightly" in page
    assert "shaded as their first window is read alone" in page
    assert "Time was not measured." in page


def test_everybody_leaves_at_once(table: Path, tmp_path: Path) -> None:
    """No text goes through a layer, so there is nothing to say of its tokens."""
    settings = {"exit_threshold": 1.0, "exit_head": "pooled", "exit_layers": [0, 2], "id2label": dict(enumerate(NAMES))}
    tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings).save_pretrained(tmp_path / "model")
    wordpiece.tokenizer().save_pretrained(tmp_path / "model")
    report(tmp_path / "model", table, "--output", tmp_path / "report.html", "--no-time", "--shown", 1)
    written = (tmp_path / "report.html").read_text()
    page = Page(written).text
    assert "100% of the texts leave before any layer; none goes through all 4 layers." in page
    assert written.count("<svg ") == 4
    assert "mean exit 0.0 of 4" in page
