"""Makes the models known to transformers' Auto classes; importing them through :mod:`mp_model` comes by here."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .configuration import PyramidBertConfig
from .modelling import PyramidBert, PyramidBertForSequenceClassification, PyramidOutput

__all__ = ["PyramidBert", "PyramidBertConfig", "PyramidBertForSequenceClassification", "PyramidOutput"]

AutoConfig.register(PyramidBertConfig.model_type, PyramidBertConfig)
AutoModel.register(PyramidBertConfig, PyramidBert)
AutoModelForSequenceClassification.register(PyramidBertConfig, PyramidBertForSequenceClassification)
