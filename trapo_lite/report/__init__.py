"""Show runs to people: a page with curves, evaluations and rollouts."""
