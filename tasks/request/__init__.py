"""From a row to a request: prompt, tokens, labels, name."""
