"""A checkpoint's files: what they hold is kept, and what they lack is refused."""
