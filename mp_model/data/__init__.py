"""Texts on their way in: tables, data sets, labels, batches, tokens, and the demo's samples."""
