"""`python -m kinetics_jax.cli` is `kinetics`."""

from kinetics_jax.cli import main

main()
