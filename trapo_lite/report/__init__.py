"""Show runs to people: a page with curves, evaluations and rollouts, and the same page while a run works."""
