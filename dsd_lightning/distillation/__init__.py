"""Makes paired data by self-distillation: captions, prompts, grids, panels, verdicts, shards."""
