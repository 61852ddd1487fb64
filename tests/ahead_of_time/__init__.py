"""Compilation of the Triton kernels for GPUs that this machine need not have."""
