"""Tables and standards in: files become records in the units of a model."""
