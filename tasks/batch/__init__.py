"""OpenAI batch files: their lines to rows of a table, and its results to lines again."""
