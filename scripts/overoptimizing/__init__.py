"""What `scripts/overoptimization.py` is made of: the arms, the work of one, what came out, and the picture."""
