"""The miniature world: small enough to train on two CPU cores, complete enough to measure everything exactly."""
