"""Isometric diffusion, as a course: the geometry of diffusion latents, run, checked and questioned.

Importing the package is light: torch, diffusers and matplotlib are imported by the modules that use them.
"""

__version__ = "0.1.0"
