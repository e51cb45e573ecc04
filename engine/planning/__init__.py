"""From requests to a plan: shared prefixes, order, shards, cost. Needs numpy alone."""
