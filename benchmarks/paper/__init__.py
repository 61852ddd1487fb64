"""The paper's experiments, Tables 2 and 3 and Figure 1, on the corpora at hand. ``python -m paper --help``."""
