"""What a reader of the output folder sees."""
