"""A model's files: their shape, weights' dtypes and tokenizer."""
