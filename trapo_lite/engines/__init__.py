"""Rollout engines: one protocol (`base`), several implementations."""
