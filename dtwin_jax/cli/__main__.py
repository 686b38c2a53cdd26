"""`python -m dtwin_jax.cli`."""

from dtwin_jax.cli import main

main()
