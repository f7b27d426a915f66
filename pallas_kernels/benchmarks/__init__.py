"""Measure the kernels: `python -m pallas_kernels.benchmarks.decode`, `python -m pallas_kernels.benchmarks.tune`."""
