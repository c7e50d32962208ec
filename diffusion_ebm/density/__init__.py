"""Densities: what the energies are once they are normalised."""
