"""Mixtures: several sources joined, and the order in which a training reads them."""
