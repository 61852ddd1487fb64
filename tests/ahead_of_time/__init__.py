"""Compiling the Triton kernels for GPUs that need not be here."""
