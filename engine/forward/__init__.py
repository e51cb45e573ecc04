"""A step on a model: layers, attention, KV cache, sampling."""
