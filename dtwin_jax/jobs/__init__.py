"""Work described in files: job files, plans, and what they ask to be done."""
