"""Diffusion models: the process, the bottleneck, training, and pipelines in and out."""
