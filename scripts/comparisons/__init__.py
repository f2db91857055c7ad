"""What `scripts/compare_agents.py` is made of: where agents learn, agents with their settings, results, drawings."""
