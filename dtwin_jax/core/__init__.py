"""What numbers and data mean: quantities, priors, units, signals, records and predictors."""
