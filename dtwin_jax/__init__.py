"""Digital twins of patients in JAX."""
