"""The other host: diffusers, and the command line `python -m trilora`."""
