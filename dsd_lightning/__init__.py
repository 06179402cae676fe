"""Diffusion Self-Distillation: data, training, ablations, use and evaluation on FLUX."""
