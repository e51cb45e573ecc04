"""Products with packed weights, and what is done to rows before and behind them."""
