"""The ground: schema, randomness, geometry, plan, manifest. NumPy and the standard library only."""
