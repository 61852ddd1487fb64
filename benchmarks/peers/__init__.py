"""Speed and memory beside other engines on a CPU: the same weights, the same texts, in turns; ``python -m peers``."""
