"""transformers' own tests of models and configurations, for stock BERT and for the pyramid side by side.

Run in a process of its own, whose warnings are its own affair, beside the folder ``tests`` of transformers' source:

    python suite.py FOLDER OUTCOMES

FOLDER holds that folder, OUTCOMES is written: a JSON object by model, of the outcome of each test.
"""

from __future__ import annotations

import json
import sys
import types
import unittest
from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "type_vocab_size": 16,
}
BATCH, WIDTH = 13, 7


def stand_in(module: str, **names: Any) -> None:
    """A module of transformers' tests that its source distribution leaves out, with the names that others import."""
    package = module.rpartition(".")[0]
    sys.modules.setdefault(f"tests.{package}", types.ModuleType(f"tests.{package}"))
    sys.modules[f"tests.{module}"] = types.ModuleType(f"tests.{module}")
    vars(sys.modules[f"tests.{module}"]).update(names)


def cases() -> dict[str, type[unittest.TestCase]]:
    """The tests of each model."""
    stand_in("exporters.test_export", ExportTesterMixin=object)
    stand_in("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stand_in("utils.test_configuration_utils", config_common_kwargs={})
    from transformers import BertConfig, BertForSequenceClassification, BertModel
    from transformers.models.auto import modeling_auto

    from mp_model import PyramidBert, PyramidBertConfig, PyramidBertForSequenceClassification
    from tests import test_configuration_common, test_modeling_common

    # By the names that these tables list the tests tell encoders from classifiers.
    modeling_auto.MODEL_MAPPING_NAMES["pyramid_bert"] = PyramidBert.__name__
    names = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    names["pyramid_bert"] = PyramidBertForSequenceClassification.__name__

    class Tester:
        """What the tests ask to know of a model."""

        is_training = True
        batch_size, seq_length, num_labels = BATCH, WIDTH, 3

        def __init__(self, config_class: Any, settings: dict[str, Any]) -> None:
            vars(self).update(SIZES)
            self.config_class, self.settings = config_class, settings

        def get_config(self) -> Any:
            return self.config_class(**SIZES, **self.settings)

        def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
            draw = test_modeling_common.ids_tensor
            inputs = {
                "input_ids": draw([BATCH, WIDTH], SIZES["vocab_size"]),
                "token_type_ids": draw([BATCH, WIDTH], SIZES["type_vocab_size"]),
                "attention_mask": test_modeling_common.random_attention_mask([BATCH, WIDTH]),
            }
            return self.get_config(), inputs

    def tests_of(config_class: Any, encoder: Any, classifier: Any, **settings: Any) -> type[unittest.TestCase]:
        class Tests(test_modeling_common.ModelTesterMixin, unittest.TestCase):
            all_model_classes = (encoder, classifier)
            test_can_init_all_missing_weights_before_2023 = True  # else skipped, since BERT is older

            def setUp(self) -> None:
                self.model_tester = Tester(config_class, settings)

            def test_config(self) -> None:
                test_configuration_common.ConfigTester(self, config_class, hidden_size=36).run_common_tests()

        return Tests

    return {
        "bert": tests_of(BertConfig, BertModel, BertForSequenceClassification),
        "pyramid": tests_of(PyramidBertConfig, PyramidBert, PyramidBertForSequenceClassification, exit_layers=[]),
    }


def outcomes(tests: type[unittest.TestCase]) -> dict[str, str]:
    """``"passed"``, ``"skipped: ..."`` or ``"failed: ..."`` for each test, by its name."""
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(tests)
    found = {test._testMethodName: "passed" for test in suite}  # type: ignore[union-attr]
    result = unittest.TestResult()
    suite.run(result)
    told = [("skipped", result.skipped), ("failed", result.failures), ("failed", result.errors)]
    for what, tellings in told:
        for test, message in tellings:
            name = getattr(test, "test_case", test)._testMethodName
            found[name] = f"{what}: {message}"
    return found


if __name__ == "__main__":
    folder, path = sys.argv[1:]
    sys.path.insert(0, folder)
    Path(path).write_text(json.dumps({name: outcomes(tests) for name, tests in cases().items()}))
