"""How does a teacher make the pairs that its student learns from? Stages over records on disk (paper, Section 3.1)."""
