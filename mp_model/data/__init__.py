"""Texts on their way in: tables, data sets, labels, batches, and the samples that the demo ships with."""
