"""Check a machine, and what a configuration needs of it, for the command doctor.

`facts` collects; `machine`, `packages` and `configuration` (with `named_inputs`) judge and return `findings`; `command`
prints. Only `configuration` and `named_inputs` import packages: the others also run where packages are missing.
"""
