"""How is one training step divided among devices, and what is kept or recomputed within it?"""
