"""A generation in the formats that other tools read, with scores, provenance and a card."""
