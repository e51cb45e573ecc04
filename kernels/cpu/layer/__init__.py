"""What a layer does to rows before and behind its products: the norm, and the rotation of queries and keys."""
