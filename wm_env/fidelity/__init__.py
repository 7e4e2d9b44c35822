"""How true a world's dream is: `python -m wm_env fidelity`, in report.py.

policy_suite.py has the policies, drives.py their real episodes, and a module each compares these
with the dream: open_loop.py, calibration.py and replay.py (of failures).
"""
