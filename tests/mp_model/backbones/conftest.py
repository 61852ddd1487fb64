"""Transformers' own BERT, to compare the forms of a layer with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import BertConfig, BertForSequenceClassification

from mp_model import PyramidBertForSequenceClassification

StockOf = Callable[[PyramidBertForSequenceClassification], BertForSequenceClassification]


@pytest.fixture(scope="session")
def stock_of() -> StockOf:
    """Makes transformers' classifier with the same weights, its own copies."""

    def make(model: PyramidBertForSequenceClassification) -> BertForSequenceClassification:
        known = BertConfig().to_dict()
        settings = {name: value for name, value in model.config.to_dict().items() if name in known}
        stock = BertForSequenceClassification(BertConfig(**{**settings, "model_type": "bert"}))
        own = {name: weight for name, weight in model.state_dict().items() if not name.startswith("exits.")}
        stock.load_state_dict(own)
        return stock.eval()

    return make
