"""Runs before a frozen program: `program -c CODE` and `program -m MODULE` do as Python does.

Drivers are tried in a child (`lfm2_deploy.child`), which is started as `sys.executable -c`. In a
frozen program that is the program itself, and it would open a second window.
"""

import sys

if sys.argv[1:2] == ["-c"]:
    _code = sys.argv[2]
    sys.argv[:] = ["-c", *sys.argv[3:]]
    exec(_code, {"__name__": "__main__"})
    raise SystemExit
if sys.argv[1:2] == ["-m"]:
    import runpy

    _module = sys.argv[2]
    sys.argv[:] = sys.argv[2:]
    runpy.run_module(_module, run_name="__main__", alter_sys=True)
    raise SystemExit
