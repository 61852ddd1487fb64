"""Every recipe learns, a fit that was killed goes on to the same model, and what cannot be followed is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.command_line import app
from mp_model.command_line import fit as fit_command
from mp_model.data.tables import TableError
from mp_model.training import RECIPES, Settings, Summary, fit, load_task
from mp_model.training.objectives import (
    HeadsOnFeatures,
    JointExits,
    SoftPruningObjective,
    distillation_loss,
    half_of,
)
from mp_model.training.preparing import why_untrainable_in_bfloat16
from mp_model.training.recipes import PASSES, falling_shares
from mp_model.training.running import LossNotFiniteError, complete_checkpoint, parameter_groups
from mp_model.training.tasks import EncodedTexts
from support import tiny, wordpiece
from support.fits import QUICK
from support.situations import situation


def run(checkpoint: Path, files: tuple[Path, Path], output: Path, recipe: str, **changes: Any) -> Summary:
    settings = Settings(**{**vars(QUICK), **changes})
    return fit(str(checkpoint), load_task(*files), output, recipe, settings, max_drop=0.02, quiet=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns(recipe: str, checkpoint: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    summary = run(checkpoint, files, tmp_path / "fit", recipe)
    assert summary.validation_accuracy > 0.8  # half of the labels are "yes"
    assert list(summary.stages) == list(RECIPES[recipe].stages)
    assert json.loads((tmp_path / "fit" / "summary.json").read_text())["recipe"] == recipe

    model = PyramidBertForSequenceClassification.from_pretrained(tmp_path / "fit" / "model").eval()
    assert model.config.id2label == {0: "no", 1: "yes"}
    data = EncodedTexts(wordpiece.tokenizer(), load_task(*files).validation, 64)
    inputs = tiny.Batch(*([torch.tensor(row[name]) for row in data.rows] for name in ("input_ids", "token_type_ids")))
    with torch.no_grad():
        output = model(**inputs.padded())
    right = (output.logits.argmax(-1) == torch.tensor(data.labels)).double().mean().item()
    expected = summary.validation_accuracy if summary.exits_accuracy is None else summary.exits_accuracy
    assert right == pytest.approx(expected)
    if recipe in ("ltp", "mp", "pyramid", "power"):
        entered = torch.tensor([len(row["input_ids"]) for row in data.rows])
        reached = output.tokens_per_layer[:, 1] > 0
        assert (output.tokens_per_layer[:, 1] < entered)[reached].double().mean() > 0.2
    if recipe in ("mp", "pyramid"):
        assert (output.exit_layer < 4).any()
        assert summary.exits_accuracy >= summary.validation_accuracy - 0.02
    if recipe == "distilbert":
        assert model.config.num_hidden_layers == 2


def test_exit_heads_learn_under_a_backbone_that_stays(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    run(checkpoint, files, tmp_path / "fit", "mp")
    stages = tmp_path / "fit" / "stages"
    before, after = (
        PyramidBertForSequenceClassification.from_pretrained(stages / name / "model").state_dict()
        for name in ("3-hard", "4-exits")
    )
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) != name.startswith("exits."), name


@pytest.fixture(scope="module")
def finished(checkpoint: Path, files: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that was fine-tuned and has no exits."""
    output = tmp_path_factory.mktemp("finished") / "fit"
    run(checkpoint, files, output, "bert")
    return output / "model"


def test_stages_one_at_a_time(finished: Path, files: tuple, tmp_path: Path) -> None:
    """Each stage starts from the model that the one before it left."""
    task, previous = load_task(*files), finished
    for number, stage in enumerate(("soft", "hard", "exits")):
        output = tmp_path / stage
        summary = fit(str(previous), task, output, "mp", QUICK, stages=[stage], quiet=True)
        assert list(summary.stages) == [stage]
        previous = output / "model"
        thresholds = PyramidBertForSequenceClassification.from_pretrained(previous).config.prune_thresholds
        if number == 0:
            learned = thresholds
        assert thresholds == learned
        assert max(learned) > 0
    assert summary.validation_accuracy > 0.8
    assert summary.exits_accuracy >= summary.validation_accuracy - 0.005


@pytest.mark.parametrize("recipe", ["pyramid", "mp", "fastbert"])
def test_a_finished_classifier_gets_exits_and_keeps_its_backbone(
    recipe: str, finished: Path, files: tuple, tmp_path: Path
) -> None:
    summary = fit(str(finished), load_task(*files), tmp_path / "fit", recipe, QUICK, freeze_backbone=True, quiet=True)
    assert list(summary.stages) == (["exits"] if recipe == "fastbert" else ["soft", "exits"])
    before, after = (
        PyramidBertForSequenceClassification.from_pretrained(folder)
        for folder in (finished, tmp_path / "fit" / "model")
    )
    weights = after.state_dict()
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert any(name.startswith("exits.") for name in weights)
    assert summary.validation_accuracy > 0.8
    if recipe != "fastbert":
        assert max(after.config.prune_thresholds) > 0


@situation(
    "checkpoint",
    "`fit --exit-epochs 0`, which trains no exits",
    "they are known as untrained, and stay closed",
)
def test_exits_that_no_pass_has_trained(finished: Path, files: tuple, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, soft_epochs=0, exit_epochs=0)
    output = tmp_path / "fit"
    summary = fit(str(finished), load_task(*files), output, "mp", settings, freeze_backbone=True, quiet=True)
    assert summary.stages["exits"]["steps"] == 0
    assert summary.exits_accuracy is summary.exit_threshold is None
    with pytest.raises(ValueError, match="no trained exits at layers 1, 2, 3"):
        Classifier.load(output / "model")(["the rate"], exit_threshold=0.5)


@pytest.mark.parametrize(
    ("accuracy", "threshold", "precision", "said"),
    [
        (None, None, "float32", "validation accuracy 91.2%"),
        (0.912, None, "float32", "validation accuracy 91.2%; exits stay closed, for no threshold meets --max-drop"),
        (0.908, 0.25, "float32", "validation accuracy 91.2%, 90.8% with exits at 0.25"),
        (0.908, 0.25, "int8", "validation accuracy 91.2%, 90.8% with exits at 0.25 in int8"),
    ],
)
def test_the_last_line_of_a_fit(accuracy: float | None, threshold: float | None, precision: str, said: str) -> None:
    known = {"validation_accuracy": 0.912, "exits_accuracy": accuracy, "exit_threshold": threshold}
    others = {field.name: None for field in dataclasses.fields(Summary)}
    assert fit_command._sentence(Summary(**{**others, **known, "precision": precision})) == said


@situation(
    "checkpoint",
    "an encoder without a classifier, `fit --freeze-backbone --train-head`",
    "the head is trained first, on the frozen backbone, and then exits learn from it",
)
def test_a_checkpoint_without_a_classifier_gets_one_on_its_frozen_backbone(
    checkpoint: Path, files: tuple, tmp_path: Path
) -> None:
    """The checkpoint's classifier is for three labels, so it does not count."""
    settings = dataclasses.replace(QUICK, soft_epochs=0, exit_epochs=40)
    options = {"freeze_backbone": True, "train_head": True, "quiet": True}
    summary = fit(str(checkpoint), load_task(*files), tmp_path / "fit", "pyramid", settings, **options)
    assert list(summary.stages) == ["head", "soft", "exits"]
    before, after = (
        PyramidBertForSequenceClassification.from_pretrained(folder).state_dict()
        for folder in (checkpoint, tmp_path / "fit" / "model")
    )
    for name, weight in after.items():
        if not name.startswith(("exits.", "classifier.")):
            assert torch.equal(weight, before[name]) != name.startswith("bert.pooler."), name
    assert summary.validation_accuracy > 0.6  # a coin has half: all that a random backbone gives
    assert summary.prune_thresholds == pytest.approx([0.0125, 0.025, 0.0375, 0.05])  # where they start


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("mp", {"stages": ["bake"]}, "stages must be out of fine-tune, .*; got bake"),
        ("mp", {"stages": []}, "stages must be out of .*; got none"),
        ("ltp", {"stages": ["exits"]}, "'ltp' has no exits that the stage 'exits' could train"),
        ("fastbert", {"stages": ["joint"]}, "'fastbert' has no exits that the stage 'joint' could train"),
        ("mp", {"stages": ["exits"], "freeze_backbone": True}, "not both"),
        ("mp", {"exit_training": "both"}, "exit training must be 'joint' or 'frozen'; got 'both'"),
        ("bert", {"exit_training": "joint"}, "exit training can be chosen where"),
        ("pyramid", {"exit_training": "joint", "freeze_backbone": True}, "do not leave it frozen"),
        ("bert", {"freeze_backbone": True}, "trains nothing but the backbone"),
        ("mp", {"train_head": True}, "a head by itself is trained on a frozen backbone; give --freeze-backbone too"),
        ("mp", {"stages": ["exits"], "train_head": True}, "not both"),
    ],
)
def test_stages_that_make_no_sense(
    recipe: str, options: dict, message: str, checkpoint: Path, files: tuple, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(str(checkpoint), load_task(*files), tmp_path / "fit", recipe, QUICK, quiet=True, **options)
    assert not (tmp_path / "fit").exists()


def test_planned_stages() -> None:
    assert RECIPES["pyramid"].planned_stages("frozen") == ("fine-tune", "soft", "hard", "exits")
    assert RECIPES["mp"].planned_stages("joint") == ("fine-tune", "soft", "joint", "exits")
    assert RECIPES["mp"].planned_stages() == RECIPES["mp"].stages
    assert RECIPES["mp"].planned_stages(freeze_backbone=True, train_head=True) == ("head", "soft", "exits")
    assert RECIPES["bert"].planned_stages(freeze_backbone=True, train_head=True) == ("head",)


# What another process runs: a fit by a recipe, with settings as JSON; its stages are left beside it, by rank.
PROGRAM = """
import json, os, sys, pathlib
from mp_model.training import Settings, fit, load_task
train, validation, checkpoint, output = map(pathlib.Path, sys.argv[1:5])
recipe, settings = sys.argv[5], Settings(**json.loads(sys.argv[6]))
summary = fit(str(checkpoint), load_task(train, validation), output, recipe, settings, quiet=True)
(output.parent / f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(summary.stages))
"""


def test_killed_and_resumed_is_the_same_model(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    undisturbed = run(checkpoint, files, whole, "bert", epochs=12)
    settings = json.dumps({**vars(QUICK), "epochs": 12})
    command = [sys.executable, "-c", PROGRAM, *map(str, (*files, checkpoint, cut)), "bert", settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stage = cut / "stages" / "1-fine-tune"
    deadline = time.monotonic() + 120
    while not list(stage.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = complete_checkpoint(stage) / "trainer_state.json"
    document = json.loads(state.read_text())
    document["stateful_callbacks"]["Stopwatch"]["args"]["seconds"] += 1000  # as if the first run had been slow
    state.write_text(json.dumps(document))
    assert not (stage / "model").exists()
    (stage / "checkpoint-999999").mkdir()  # as a kill in the middle of writing leaves one

    resumed = run(checkpoint, files, cut, "bert", epochs=12)
    assert resumed.stages["fine-tune"]["steps"] == undisturbed.stages["fine-tune"]["steps"]
    assert undisturbed.stages["fine-tune"]["seconds"] < 1000 < resumed.stages["fine-tune"]["seconds"]
    states = [PyramidBertForSequenceClassification.from_pretrained(f / "model").state_dict() for f in (whole, cut)]
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], atol=1e-4, rtol=1e-3)


def test_two_processes_share_the_steps(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    """Started by ``torchrun``, as for several devices: each takes half of every batch of steps, one of them writes."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [*map(str, (*files, checkpoint, tmp_path / "fit")), "pyramid", json.dumps(vars(QUICK))]
    ended = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["fine-tune"]["steps"] == 28  # 400 texts, 2 x 32 a step, 4 passes
    summary = json.loads((tmp_path / "fit" / "summary.json").read_text())
    assert list(summary["stages"]) == ["fine-tune", "soft", "joint", "exits"]
    assert summary["validation_accuracy"] > 0.7
    PyramidBertForSequenceClassification.from_pretrained(tmp_path / "fit" / "model")


def test_a_full_disk_leaves_nothing_that_looks_finished(
    checkpoint: Path, files: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(PyramidBertForSequenceClassification, "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            run(checkpoint, files, tmp_path / "fit", "bert")
    assert not list((tmp_path / "fit").rglob("model"))
    assert not (tmp_path / "fit" / "summary.json").exists()
    assert run(checkpoint, files, tmp_path / "fit", "bert").validation_accuracy > 0.8


def test_settings_by_the_number_of_texts(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    """Never more passes over a larger set, always those that were asked for; and what cannot be is refused."""
    sizes = (2, 5_000, 5_001, 100_000, 100_001, 10**9)
    passes = [[getattr(Settings().for_texts(size), name) for name in PASSES] for size in sizes]
    for smaller, larger in itertools.pairwise(passes):
        assert all(a >= b > 0 for a, b in zip(smaller, larger, strict=True))
    assert passes[0] == passes[1] > passes[2] == passes[3] > passes[4] == passes[5]
    asked = Settings(epochs=7.0, penalty=0.5).for_texts(10**9)
    assert (asked.epochs, asked.penalty, asked.exit_epochs) == (7.0, 0.5, passes[-1][-1])
    for name in (*PASSES, "penalty", "exit_weight"):
        with pytest.raises(ValueError, match=f"{name} must be 0 or more; got -1"):
            Settings(**{name: -1})
    summary = fit(str(checkpoint), load_task(*files), tmp_path / "fit", "bert", stages=["fine-tune"], quiet=True)
    assert summary.settings == dataclasses.asdict(Settings().for_texts(400))


def test_training_in_bfloat16(able_processor: None, checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    """Products of the training steps are in bfloat16, in every stage; weights stay float32, and it learns as well."""
    seen: dict[bool, set[torch.dtype]] = {False: set(), True: set()}

    def seeing(linear: torch.nn.Linear, _: Any, output: torch.Tensor) -> None:
        if linear.training and torch.is_grad_enabled():
            seen[wanted].add(output.dtype)

    for wanted in seen:
        with torch.nn.modules.module.register_module_forward_hook(
            lambda module, *rest: seeing(module, *rest) if type(module) is torch.nn.Linear else None
        ):
            summary = run(checkpoint, files, tmp_path / str(wanted), "pyramid", bfloat16=wanted)
        assert summary.validation_accuracy > 0.8
    assert seen == {False: {torch.float32}, True: {torch.bfloat16}}
    model = PyramidBertForSequenceClassification.from_pretrained(tmp_path / "True" / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_bfloat16_is_refused_where_it_is_slow(
    checkpoint: Path, files: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody trains several times as long without a word; nothing is written."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"bfloat16 is refused: this processor lacks AVX-512 BF16.*without --bfloat16"):
        run(checkpoint, files, tmp_path / "fit", "bert", bfloat16=True)
    assert not (tmp_path / "fit").exists()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert why_untrainable_in_bfloat16() is None


def test_learning_rates() -> None:
    """Exit heads and thresholds have their own, with the backbone and without; biases and norms do not decay."""
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 1])
    for make in (
        lambda: JointExits(model, 0.3, 0.5),
        lambda: HeadsOnFeatures(model.exits, 0.5),
        lambda: SoftPruningObjective(model, 1e-3, 0.1, 0.01),
    ):
        module = make()
        groups = parameter_groups(module, 1.0, 2.0, 3.0)
        settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            rate = 2.0 if name == "thresholds" else 3.0 if name.startswith(("heads.", "model.exits.")) else 1.0
            assert settings.pop(id(parameter)) == (rate, 0.01 if parameter.dim() > 1 else 0.0), name
        assert not settings


def test_the_models_own_head_may_have_a_learning_rate() -> None:
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 1])
    module = JointExits(model, 0.3, 0.5)
    groups = parameter_groups(module, 1.0, 2.0, 3.0, 4.0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        own = name.startswith(("model.classifier.", "model.bert.pooler."))
        assert rates[id(parameter)] == (4.0 if own else 3.0 if "exits" in name else 1.0), name
    of_heads = parameter_groups(HeadsOnFeatures(model.exits, 0.5), 1.0, 2.0, 3.0, 4.0)
    assert {group["lr"] for group in of_heads} == {3.0}
    with pytest.raises(ValueError, match="head_learning_rate must be positive; got 0"):
        Settings(head_learning_rate=0)


def test_pruned_layers_are_layers(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pruned_layers must be 1 or more; got 0"):
        Settings(pruned_layers=0)
    with pytest.raises(ValueError, match=r"pruned_layers must not exceed the model's \d+ layers; got 99"):
        run(checkpoint, files, tmp_path / "fit", "ltp", pruned_layers=99)


def test_finished_stages_are_not_run_again(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    first = run(checkpoint, files, tmp_path / "fit", "bert")
    saved = (tmp_path / "fit" / "stages" / "1-fine-tune" / "model" / "model.safetensors").stat().st_mtime_ns
    again = run(checkpoint, files, tmp_path / "fit", "bert")
    assert (tmp_path / "fit" / "stages" / "1-fine-tune" / "model" / "model.safetensors").stat().st_mtime_ns == saved
    assert again.validation_accuracy == first.validation_accuracy
    with pytest.raises(ValueError, match="made from something else: epochs is 5, before 4"):
        run(checkpoint, files, tmp_path / "fit", "bert", epochs=5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no fit"):
        run(checkpoint, files, tmp_path / "other", "bert")


def test_unfinished_checkpoints_are_passed_over(tmp_path: Path) -> None:
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global'), (15, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert complete_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5"]
    assert complete_checkpoint(tmp_path / "nothing") is None


def test_diverged_training_stops_with_its_step_and_batch(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    with pytest.raises(LossNotFiniteError, match=r"the loss is nan at step \d+ of stage 'fine-tune'; the batch is"):
        run(checkpoint, files, tmp_path / "fit", "bert", learning_rate=1e30)
    assert not (tmp_path / "fit" / "model").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("label\ttext\n", "no rows"),
        ("label\ttext\n1\ta\n1\tb\n", "expected two labels or more; all 2 rows have '1'"),
        ("text\na\nb\n", "has no label; expected a column 'label'"),
        ("label\ttext\n1\ta\n\tb\n", "row 2 has no label"),
        ("label\twords\n1\ta\n", "has no text"),
    ],
)
def test_refused_training_files(rows: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text(rows)
    with pytest.raises(TableError, match=message):
        load_task(tmp_path / "train.tsv")


def test_a_tenth_is_held_out_and_labels_are_in_order(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("label\ttext_a\ttext_b\n" + "".join(f"{n % 11}\ta{n}\tb{n}\n" for n in range(110)))
    task = load_task(path)
    assert task.held_out
    assert (len(task.train), len(task.validation)) == (99, 11)
    assert task.label_names == [str(n) for n in range(11)]
    assert not set(task.train.texts) & set(task.validation.texts)
    assert all(pair == (f"a{pair[0][1:]}", f"b{pair[0][1:]}") for pair in task.train.texts)


def test_long_texts_are_cut_and_counted() -> None:
    from mp_model.training import LabelledTexts

    data = EncodedTexts(wordpiece.tokenizer(), LabelledTexts(["a " * n for n in (3, 6, 7, 40)], [0, 1, 0, 1]), 8)
    assert [len(row["input_ids"]) for row in data.rows] == [5, 8, 8, 8]
    assert data.truncated == 2


def test_objectives_by_hand() -> None:
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p, q = torch.softmax(teacher, -1), torch.softmax(student, -1)
    assert distillation_loss(teacher, student).item() == pytest.approx((p * (p / q).log()).sum().item())
    assert distillation_loss(teacher, student, reverse=True).item() == pytest.approx((q * (q / p).log()).sum().item())
    shares = falling_shares(0.4, 3)
    assert [shares[0], shares[0] * shares[1], shares[0] * shares[1] * shares[2]] == pytest.approx([0.8, 0.6, 0.4])
    whole = tiny.classifier()
    half = half_of(whole)
    torch.testing.assert_close(
        half.bert.encoder.layer[1].output.dense.weight, whole.bert.encoder.layer[2].output.dense.weight
    )


def test_command(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    train, validation = map(str, files)
    options = ["--model", str(checkpoint), "--output", str(tmp_path / "fit"), "--validation", validation]
    quick = ["--recipe", "bert", "--epochs", "1", "--learning-rate", "1e-3", "--json"]
    result = CliRunner().invoke(app, ["fit", train, *options, *quick])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["train_texts"] == 400
    for wrong, message in (
        (["--recipe", "nothing"], "recipe must be one of pyramid, mp"),
        (["--importance-normalizer", "x"], "importance_normalizer must be alive, input or a number; got 'x'"),
        (["--temperature", "0"], "temperature must be positive"),
    ):
        refused = CliRunner().invoke(app, ["fit", train, *options, *wrong])
        assert isinstance(refused.exception, ValueError)
        assert message in str(refused.exception)
