"""The first day of a GPU: everything that it must show, in steps of their own processes, kept in one JSON."""
