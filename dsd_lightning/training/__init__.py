"""Training: a run from its configuration, its module, its optimizer, its W&B workspace."""
