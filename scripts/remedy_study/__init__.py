"""What `scripts/remedies.py` is made of: the remedies with their settings, their runs, the table, the picture."""
