"""Showing what was measured: plots, and texts shaded by how far each word went."""
