"""Pure tensor functions: kl, returns, losses, whitening, overoptimization. No state."""
