"""The version of the engine's arithmetic."""

# Counted up with every change after which the engine answers a request otherwise than before by more than the order of
# its sums does: another formula, another rounding of weights or keys, a mended fault. Results of another version are
# then never taken for this one's (`tasks.storage.run.Run.decisive`). `tests/engine/test_numerics.py` holds a model's
# answers to those of this version.
NUMERICS = 2
