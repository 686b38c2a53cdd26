"""From data to parameters: maximum a posteriori fits, training, Bayesian calibration."""
