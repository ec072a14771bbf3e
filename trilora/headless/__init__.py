"""The other host: diffusers and accelerate, and the command line `python -m trilora`."""
