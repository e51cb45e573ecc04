"""Processes that end with whoever started them, and the frames that go there and back."""
