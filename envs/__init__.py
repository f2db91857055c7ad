assert __name__ == "rlhf_gym.envs", f"import this package as rlhf_gym.envs, not as {__name__}"
