"""Engines on the workers of a cluster, whichever library it is of."""
