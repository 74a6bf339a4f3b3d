"""The commands: one module each, with its function `run`."""
