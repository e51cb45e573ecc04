"""What a layer does between its products: norms, the gate, rounding to 8 bits."""
