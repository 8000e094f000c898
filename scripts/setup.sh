#!/bin/sh
# Finds a Python the stack runs on and hands over to setup_env.py, which makes .venv.
#   PYTHON=/path/to/python   takes that one instead of searching
#   DEVICE=cpu | cuda        takes that build instead of looking for an NVIDIA GPU
set -eu
trap 'echo "setup: interrupted; run make again" >&2; exit 130' INT
scripts=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# Says "ok" or what is wrong; runs on any Python, however old.
probe='
import sys
found = "%d.%d.%d" % sys.version_info[:3]
newest = (3, 99) if sys.argv[1:] == ["any"] else (3, 13)
try:
    import ensurepip, venv
    has_venv = True
except ImportError:
    has_venv = False
if not (3, 11) <= sys.version_info[:2] <= newest:
    print(found + " is too " + ("old" if sys.version_info < (3, 11) else "new"))
elif not has_venv:
    print(found + " lacks venv; on Debian or Ubuntu: sudo apt install python%d.%d-venv" % sys.version_info[:2])
else:
    print("ok")
'

report=''
try() {  # try NAME [any]: starts the set-up with this Python, or notes why not and returns
    command -v "$1" >/dev/null 2>&1 || { report="$report
  $1: not found"; return 0; }
    verdict=$("$1" -c "$probe" ${2:+"$2"} 2>/dev/null) || verdict='does not run'
    [ "$verdict" != ok ] || exec "$1" "$scripts/setup_env.py" ${DEVICE:+--device "$DEVICE"}
    report="$report
  $1: $verdict"
}

if [ -n "${PYTHON:-}" ]; then
    try "$PYTHON" any
    advice='name another by PYTHON=/path/to/python, or leave PYTHON out to have one searched for'
else
    for name in python3 python3.12 python3.11 python3.13; do try "$name"; done
    advice='install Python 3.12 with its venv module, or name one: make setup PYTHON=/path/to/python3.12'
fi
printf 'setup: no suitable Python (3.11 to 3.13 with venv); found:%s\n%s\n' "$report" "$advice" >&2
exit 1
