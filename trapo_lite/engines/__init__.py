"""Implement rollout engines: one protocol (`base`), several implementations."""
