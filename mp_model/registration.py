"""Makes the models known to transformers' Auto classes; importing them through :mod:`mp_model` comes by here."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from . import families
from .configuration import PyramidConfig
from .modelling import PyramidForSequenceClassification, PyramidModel

__all__ = ["PyramidConfig", "PyramidForSequenceClassification", "PyramidModel", "families"]

for encoder, classifier in zip(
    PyramidModel.kinds.values(), PyramidForSequenceClassification.kinds.values(), strict=True
):
    AutoConfig.register(encoder.config_class.model_type, encoder.config_class)
    AutoModel.register(encoder.config_class, encoder)
    AutoModelForSequenceClassification.register(encoder.config_class, classifier)
