"""What noisy measurements say of a noisy body: filters and smoothers of models with a diffusion."""
