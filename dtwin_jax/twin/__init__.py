"""Using a twin: forecasts, and how good they are."""
