"""Checks of a machine and of what a configuration needs of it, for scripts/doctor.py.

`facts` collects, `machine` and `configuration` judge, `command` prints. Only `configuration` imports packages: the
other modules also run where packages are missing.
"""
