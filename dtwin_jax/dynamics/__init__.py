"""How a body moves: models as bundles of functions, and their solution over time."""
