"""Run vLLM in this process: `python -m trapo_lite.engines.vllm FD PARENT_PID SCRATCH`.

It imports nothing heavy before it is sure that it ends, and that SCRATCH is removed, when its parent ends.
"""

import sys
from multiprocessing.connection import Connection
from pathlib import Path

from trapo_lite.engines.child import die_with_parent

if __name__ == "__main__":
    socket_fd, parent_pid, scratch = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    die_with_parent(socket_fd, parent_pid, scratch)

    from trapo_lite.engines.vllm.serving import serve

    serve(Connection(socket_fd))
