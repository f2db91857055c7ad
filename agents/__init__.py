assert __name__ == "rlhf_gym.agents", f"import this package as rlhf_gym.agents, not as {__name__}"
