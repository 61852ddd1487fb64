"""Answering texts: the loaded classifier."""
