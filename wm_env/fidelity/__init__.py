"""How true a world's dream is: `python -m wm_env fidelity`, in report.py.

policy_suite.py has the policies, drives.py their real episodes, which kept_drives.py reads again.
driven_dream.py lets them drive in any world with the M that they are at home in, dreams.py does it.
A module each compares real and dreamt: open_loop.py, calibration.py and replay.py (of failures);
result.py holds what was found.
"""
