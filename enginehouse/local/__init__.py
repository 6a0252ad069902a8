"""A local stack: the three services as processes of this machine, which `enginehouse up` and `down` start and stop."""
