"""A laboratory for test-time scaling in JAX: price it, run it, measure it, and find the best way to spend a budget."""

__version__ = "0.1.0"
