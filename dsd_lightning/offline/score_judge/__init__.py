"""score_judge."""
