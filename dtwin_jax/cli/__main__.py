"""`python -m dtwin_jax.cli`."""

from dtwin_jax.cli import main

if __name__ == "__main__":
    main()
