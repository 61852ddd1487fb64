"""``magic-pyramid tune`` and ``evaluate``: what they print is what the model then does."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.command_line import app
from mp_model.data.batches import encode, length_sorted_batches
from mp_model.training.confidences import learn_confidences
from mp_model.training.features import collect_features
from support import tiny, wordpiece
from support.checkpoints import change_json, change_weights
from support.heads import train_all_heads
from support.situations import situation

NAMES = ("no", "yes")


def rows(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts whose label is which of two words they hold more of."""
    draw = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label, length = draw.randint(0, 1), draw.randint(3, 25)
        words = draw.choices("abcdefgh", k=length) + draw.choices(
            ("the", "rate"), weights=(3 - 2 * label, 1 + 2 * label), k=5
        )
        draw.shuffle(words)
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "validation.tsv"
    lines = [f"{NAMES[label]}\t{text}" for text, label in zip(*rows(300, 1), strict=True)]
    path.write_text("label\ttext\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random backbone with heads that were trained on it, thresholds of pruning, and no exit threshold."""
    model = tiny.classifier(
        vocab_size=len(wordpiece.VOCABULARY),
        num_labels=2,
        id2label=dict(enumerate(NAMES)),
        exit_head="pooled",
        exit_layers=[0, 1, 2, 3],
        prune_thresholds=[0.01, 0.015, 0.02, 0.02],
    )
    texts, labels = rows(300, 0)
    batches = length_sorted_batches(encode(wordpiece.tokenizer(), texts, 64), 32, 0)
    train_all_heads(model, collect_features(model, batches, labels))
    model.save_pretrained(tmp_path / "model")
    wordpiece.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def accuracy_of(folder: Path, validation: str) -> tuple[float, float]:
    """Accuracy and mean executed GFLOPs of the saved model, as it is set."""
    model = PyramidBertForSequenceClassification.from_pretrained(folder).eval()
    texts, labels = rows(300, 1)
    data = encode(wordpiece.tokenizer(), texts, 64)
    inputs = tiny.Batch(*([torch.tensor(row[name]) for row in data] for name in ("input_ids", "token_type_ids")))
    with torch.no_grad():
        out = model(**inputs.padded())
    right = (out.logits.argmax(-1) == torch.tensor(labels)).double().mean().item()
    return right, out.executed_flops.double().mean().item() / 1e9


@pytest.mark.parametrize(
    "options",
    [
        ["--max-drop", 2],
        ["--max-drop", 2, "--counted"],
        ["--max-drop", 2, "--by-layer"],
        ["--max-drop", 3, "--factors", "0.5,2"],
        ["--max-drop", 4, "--depth"],
        ["--max-drop", 3, "--depth", "--by-layer"],
        ["--max-drop", 15, "--confidence", 0.9, "--depth", "--factors", "2"],
        ["--speedup", 3],
        ["--speedup", 4, "--depth"],
        ["--max-drop", 10, "--confidence", 0.9],
        ["--max-drop", 15, "--confidence", 0.9, "--by-layer", "--factors", "2"],
        ["--latency", 1000],
        ["--max-disagreement", "12%"],
        ["--max-disagreement", "0.05", "--counted"],
        ["--max-disagreement", "0.2", "--confidence", 0.8, "--by-layer", "--factors", "2"],
    ],
)
def test_what_tune_chooses_is_what_the_model_does(options: list, folder: Path, validation: str) -> None:
    before = json.loads((folder / "config.json").read_text())
    result = invoke("tune", validation, "--model", folder, *options, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    chosen = document["chosen"]
    after = json.loads((folder / "config.json").read_text())
    assert after.pop("exit_threshold") == chosen["exit_threshold"]
    assert after.pop("prune_thresholds") == pytest.approx([chosen["factor"] * x for x in before["prune_thresholds"]])
    record = after.pop("tuned_for")
    assert (record["exit_threshold"], record["texts"]) == (chosen["exit_threshold"], 300)
    assert record["goal"][options[0].removeprefix("--").replace("-", "_")] == options[1]
    assert after.pop("depth", None) == chosen["depth"] == record["depth"]
    assert "--depth" in options or chosen["depth"] is None
    chosen_anew = ("exit_threshold", "prune_thresholds", "tuned_for", "depth")
    assert after == {name: x for name, x in before.items() if name not in chosen_anew}

    accuracy, executed = accuracy_of(folder, validation)
    tested_on_half = "--confidence" in options and "--factors" in options
    if not tested_on_half:
        assert chosen["accuracy"] == pytest.approx(accuracy)
        assert chosen["executed_gflops"] == pytest.approx(executed)
    if options[0] == "--max-drop":
        assert accuracy >= document["accuracy_without_exits"] - options[1] / 100 - 0.02
    if options[0] == "--speedup":
        assert chosen["speed_up"] >= options[1]
    if options[0] == "--latency":
        assert 0 < document["seconds"] < 1
    curve = document["curve"]
    assert [x["executed_gflops"] for x in curve] == sorted((x["executed_gflops"] for x in curve), reverse=True)


def test_a_depth_is_written_and_can_be_given_up(folder: Path, validation: str) -> None:
    """The lower exits are surely wrong, so that no threshold may open them; the third answers as the model does."""

    def mislead(weights: dict[str, torch.Tensor]) -> None:
        for layer in (0, 1):
            for part in ("weight", "bias"):
                weights[f"exits.{layer}.classifier.{part}"].mul_(-5)

    change_weights(folder, mislead)
    before = json.loads((folder / "config.json").read_text())
    without = invoke("tune", validation, "--model", folder, "--max-drop", 1, "--json")
    result = invoke("tune", validation, "--model", folder, "--max-drop", 1, "--depth")
    assert result.exit_code == 0, result.output
    assert "; everybody leaves by layer 2; written to" in result.stdout
    after = json.loads((folder / "config.json").read_text())
    assert after["depth"] == 2
    accuracy, executed = accuracy_of(folder, validation)
    assert accuracy >= json.loads(without.stdout)["accuracy_without_exits"] - 0.01
    assert executed < json.loads(without.stdout)["chosen"]["executed_gflops"]
    assert len(Classifier.load(folder).model.base_model.stack) == 2
    measured = invoke("evaluate", validation, "--model", folder, "--json")
    assert measured.exit_code == 0, measured.output
    (own, *_) = json.loads(measured.stdout.splitlines()[-1])["evaluations"]
    assert own["accuracy"] == pytest.approx(accuracy)
    assert own["executed_gflops"] == pytest.approx(executed)
    assert sum(own["exits"][:2]) + own["exits"][2] == 300
    again = invoke("tune", validation, "--model", folder, "--max-drop", 1)
    assert again.exit_code == 0, again.output
    changed = json.loads((folder / "config.json").read_text())
    assert changed["depth"] is None
    assert changed["exit_threshold"] == json.loads(without.stdout)["chosen"]["exit_threshold"]
    assert before.get("depth") is None


def test_a_dry_run_writes_nothing_and_prints_the_curve(folder: Path, validation: str) -> None:
    before = (folder / "config.json").read_bytes()
    result = invoke("tune", validation, "--model", folder, "--max-drop", 5, "--dry-run")
    assert result.exit_code == 0, result.output
    assert (folder / "config.json").read_bytes() == before
    assert "The trade-off, slowest first" in result.stdout
    points = r"[\d.]+ points (lost|gained)"
    said = f"times less work; {points} on these \\d+ texts, {points} expected on others; not written"
    assert re.search(said, result.stdout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give one goal out of --max-drop, --speedup, --latency, --max-disagreement; got none"),
        (["--max-drop", 1, "--speedup", 2], "got --max-drop and --speedup"),
        (["--speedup", 2, "--confidence", 0.9], "it goes with --max-drop"),
        (["--speedup", 2, "--counted"], "it goes with --max-drop or --max-disagreement, without --confidence"),
        (
            ["--max-drop", 1, "--confidence", 0.9, "--counted"],
            "it goes with --max-drop or --max-disagreement, without --confidence",
        ),
        (["--speedup", 1e9], "the highest speed-up that this model reaches is"),
        (["--latency", 1e-9], "the fastest setting of this model takes"),
        (["--max-drop", 0.5, "--confidence", 0.9], "it takes at least 460 texts"),
        (["--max-drop", 1, "--factors", "a"], "--factors must be numbers with commas between them; got 'a'"),
        (["--max-drop", 1, "--factors", "-1"], "--factors must be 0 or more"),
    ],
)
def test_goals_that_cannot_be_met(options: list, message: str, folder: Path, validation: str) -> None:
    before = (folder / "config.json").read_bytes()
    result = invoke("tune", validation, "--model", folder, *options)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert (folder / "config.json").read_bytes() == before


def test_factors_need_thresholds(folder: Path, validation: str) -> None:
    model = PyramidBertForSequenceClassification.from_pretrained(folder)
    model.config.prune_thresholds = None
    model.save_pretrained(folder)
    result = invoke("tune", validation, "--model", folder, "--max-drop", 1, "--factors", "2")
    assert "this model has none; fit it with a recipe that prunes" in str(result.exception)


def test_evaluate(folder: Path, validation: str, tmp_path: Path) -> None:
    invoke("tune", validation, "--model", folder, "--max-drop", 2)
    report = tmp_path / "report"
    arguments = ["evaluate", validation, "--model", folder, "--exit-thresholds", "0.2,0.9", "--buckets", "10,20"]
    result = invoke(*arguments, "--output", report, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert json.loads((report / "evaluation.json").read_text()) == document
    own, *sweep = document["evaluations"]
    assert [x["exit_threshold"] for x in sweep] == [None, 0.2, 0.9]
    accuracy, executed = accuracy_of(folder, validation)
    assert (own["accuracy"], own["executed_gflops"]) == (pytest.approx(accuracy), pytest.approx(executed))
    assert sum(own["exits"]) == sum(bucket["texts"] for bucket in own["buckets"]) == 300
    assert document["padded_bert_seconds"] == document["padded_bert"]["seconds"] > 0
    assert document["padded_bert"]["executed_gflops"] >= document["padded_bert"]["gflops"] == own["dense_gflops"]
    assert all(x["seconds"] > 0 for x in document["evaluations"])
    assert sorted(path.name for path in report.glob("*.png")) == [
        "exits.png",
        "lengths.png",
        "tokens.png",
        "trade_off.png",
    ]

    printed = invoke(*arguments, "--no-time")
    assert printed.exit_code == 0, printed.output
    for words in ("300 texts", "By length", "21 or more", "By layer", f"{accuracy:.2%}"):
        assert words in printed.stdout
    assert "padded" not in printed.stdout


@situation(
    "run",
    "evaluate in int8 or bfloat16",
    "accuracy beside that of float32 on the same texts, and the share of answers that differ",
)
@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
@pytest.mark.usefixtures("able_processor")
def test_a_precision_beside_float32(folder: Path, validation: str, precision: str) -> None:
    change_json(folder / "config.json", exit_threshold=0.5)
    texts, labels = rows(300, 1)
    answers = {
        name: [answer.label for answer in Classifier.load(folder, name)(texts)] for name in ("float32", precision)
    }
    accuracy = {
        name: sum(label == NAMES[right] for label, right in zip(given, labels, strict=True)) / 300
        for name, given in answers.items()
    }
    differing = sum(map(str.__ne__, answers["float32"], answers[precision])) / 300
    assert differing > 0
    arguments = ["evaluate", validation, "--model", folder, "--precision", precision, "--exit-thresholds", "0.9"]
    document = json.loads(invoke(*arguments, "--no-time", "--json").stdout)
    assert document["precision"] == precision
    assert document["evaluations"][0]["accuracy"] == pytest.approx(accuracy[precision])
    assert document["float32"] == {
        "accuracy": pytest.approx(accuracy["float32"]),
        "differing": pytest.approx(differing),
    }
    printed = invoke(*arguments, "--rounds", 1)
    assert printed.exit_code == 0, printed.exception
    assert printed.stdout.splitlines()[-1] == (
        f"As it is set, in {precision}: accuracy {accuracy[precision]:.2%}, in float32 {accuracy['float32']:.2%}; "
        f"{differing:.2%} of the answers differ"
    )


@pytest.mark.usefixtures("able_processor")
def test_weights_that_are_int8_have_no_float32(folder: Path, validation: str) -> None:
    Classifier.load(folder, "int8").model.save_pretrained(folder)
    document = json.loads(invoke("evaluate", validation, "--model", folder, "--no-time", "--json").stdout)
    assert (document["precision"], document["float32"]) == ("int8", None)


@situation(
    "run",
    "evaluate or tune with a table that is missing or broken, or an output that cannot be written",
    "one line, before the model is loaded",
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "missing.tsv"], "missing.tsv: no such file"),
        (["evaluate", "broken.tsv"], "row 1 has no label"),
        (["evaluate", "whole.tsv", "--output", "whole.tsv/report"], "is a file, where a folder is needed"),
        (["tune", "missing.tsv", "--max-drop", 1], "missing.tsv: no such file"),
        (["tune", "broken.tsv", "--max-drop", 1], "row 1 has no label"),
    ],
)
def test_tables_and_outputs_come_before_the_model(
    arguments: list, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Classifier, "load", loaded)
    Path("broken.tsv").write_text("label\ttext\n\ta\n")
    Path("whole.tsv").write_text("label\ttext\nyes\ta\n")
    result = invoke(*arguments, "--model", folder)
    assert isinstance(result.exception, ValueError | OSError)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--buckets", "a"], "--buckets must be numbers"),
        (["--buckets", "70,35"], "rising positive bounds"),
        (["--exit-thresholds", "2"], r"exit_threshold must lie in [0, 1]"),
        (["--model", "nowhere"], "--model must be a folder of a saved model"),
    ],
)
def test_refused_evaluations(options: list, message: str, folder: Path, validation: str) -> None:
    result = invoke("evaluate", validation, "--model", folder, "--no-time", *options)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_labels_of_another_task(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.tsv").write_text("label\ttext\nsport\ta\n")
    for command, options in (("evaluate", ["--no-time"]), ("tune", ["--max-drop", 1])):
        result = invoke(command, tmp_path / "other.tsv", "--model", folder, *options)
        assert "has the label 'sport', which the classifier was not trained for; expected one of 'no', 'yes'" in str(
            result.exception
        )


# Uncertainty


@pytest.fixture
def with_confidence(folder: Path) -> Path:
    """The same model with confidence heads, which learned from other texts than those it is tuned on."""
    model = PyramidBertForSequenceClassification.from_pretrained(folder).eval()
    texts, _ = rows(600, 2)
    learn_confidences(model, length_sorted_batches(encode(wordpiece.tokenizer(), texts, 64), 32, 0))
    model.save_pretrained(folder)
    return folder


def test_tune_takes_the_uncertainty_that_saves_more(with_confidence: Path, validation: str) -> None:
    folder, documents = with_confidence, {}
    for kind in ("entropy", "disagreement", "auto"):
        result = invoke("tune", validation, "--model", folder, "--max-drop", 2, "--uncertainty", kind, "--json")
        assert result.exit_code == 0, result.output
        documents[kind] = json.loads(result.stdout)
        config = json.loads((folder / "config.json").read_text())
        chosen = documents[kind]["chosen"]
        assert config["exit_threshold"] == chosen["exit_threshold"]
        assert config.get("exit_uncertainty", "entropy") == chosen["exit_uncertainty"]
        assert config["tuned_for"]["exit_uncertainty"] == chosen["exit_uncertainty"]
        right, _ = accuracy_of(folder, validation)
        assert right == pytest.approx(chosen["accuracy"])
    work = {kind: documents[kind]["chosen"]["executed_gflops"] for kind in documents}
    assert work["auto"] == min(work["entropy"], work["disagreement"])
    assert set(documents["auto"]["tried"]) == {"entropy", "disagreement"}
    assert set(documents["entropy"]["tried"]) == {"entropy"}
    *layers, mean = documents["auto"]["told_apart"]
    assert [row["layer"] for row in layers] == [0, 1, 2, 3]
    assert mean["layer"] is None
    assert all(0.5 < mean["auroc"][kind] <= 1 for kind in ("entropy", "disagreement"))

    result = invoke("tune", validation, "--model", folder, "--max-drop", 2, "--dry-run")
    other = ({"entropy", "disagreement"} - {documents["auto"]["chosen"]["exit_uncertainty"]}).pop()
    assert re.search(rf"; by {documents['auto']['chosen']['exit_uncertainty']} \([\d.]+ by {other}\)", result.stdout)
    assert "how well" in result.stdout
    evaluated = invoke("evaluate", validation, "--model", folder, "--no-time", "--json")
    assert json.loads(evaluated.stdout)["told_apart"] == documents["auto"]["told_apart"]


def test_max_disagreement(with_confidence: Path, validation: str) -> None:
    """A share and a percentage are the same; two kinds of uncertainty share the error that a bound allows."""
    common = ["tune", validation, "--model", with_confidence, "--dry-run", "--json", "--max-disagreement"]
    percent, share = (json.loads(invoke(*common, given).stdout) for given in ("12%", "0.12"))
    assert percent["chosen"] == share["chosen"]
    assert percent["confidence"] == 0.9
    tried = percent["tried"]
    for kind, outcome in tried.items():
        alone = json.loads(invoke(*common, "12%", "--uncertainty", kind, "--confidence", 0.95).stdout)
        assert alone["chosen"] == outcome
        assert outcome["disagreement"] <= 0.12
    level = json.loads(invoke(*common[:-3], "--json", "--max-disagreement", "12%").stdout)
    document = json.loads((with_confidence / "config.json").read_text())
    tuned, *_ = document["tuned_for"]["levels"]
    assert (tuned["name"], tuned["disagreement"]) == ("tuned", level["chosen"]["disagreement"])
    assert document["tuned_for"]["goal"] == {"max_disagreement": "12%"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-disagreement", "1"], "must be a share above 0 and below 1, such as 0.01, or 1%; got '1'"),
        (["--max-disagreement", "few"], "must be a share above 0 and below 1, such as 0.01, or 1%; got 'few'"),
        (["--max-disagreement", "1%", "--max-drop", "1"], "give one goal out of"),
        (["--max-disagreement", "0.1%"], "nothing can be guaranteed at 0.1 % of other answers and confidence 0.9"),
        (["--speedup", "2", "--counted"], "it goes with --max-drop or --max-disagreement"),
        (["--max-drop", "1", "--uncertainty", "disagreement"], "is told by confidence heads, and this model has none"),
        (["--max-drop", "1", "--uncertainty", "margin"], "must be one of entropy, disagreement, auto; got 'margin'"),
    ],
)
def test_goals_of_agreement_that_cannot_be_followed(options: list, said: str, folder: Path, validation: str) -> None:
    before = (folder / "config.json").read_text()
    result = invoke("tune", validation, "--model", folder, *options)
    assert said in str(result.exception)
    assert (folder / "config.json").read_text() == before
