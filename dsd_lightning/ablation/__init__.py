"""Reports of a sweep of training runs: `python -m dsd_lightning.ablation SWEEP`; see docs/ablation.md."""
