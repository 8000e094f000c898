"""The release of the engine's KV cache, on vLLM's own scheduler; the CPU build has no memory to give back."""

import json
import os
import subprocess
import sys

import pytest
from conftest import TINY_MAX_LEN, TINY_RANK

from trapo_lite.engines.vllm.engine import child_environment

# is_cpu and what moves memory on a card are replaced. Scheduler, pause and the refusal to release are vLLM's own. On a
# card vLLM schedules the next step ahead, on the CPU it never does: its platform is made to leave that on.
SCRIPT = """
import json, sys
from pathlib import Path
from trapo_lite.engines.base import SampleRequest
from trapo_lite.engines.vllm.options import VLLMOptions
from trapo_lite.engines.vllm.worker import VLLMWorker

model, adapter, max_len, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if sys.argv[5] == "ahead":
    from vllm.platforms.cpu import CpuPlatform

    on_cpu = CpuPlatform.check_and_update_config.__func__

    def on_card(cls, config):
        on_cpu(cls, config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(on_card)
worker = VLLMWorker(VLLMOptions(model, max_len, rank, dtype="float32", kv_cache_gib=0.01))
core = worker.engine.engine_core.engine_core
calls = []
core.model_executor.discard = lambda tags: calls.append(["discard", list(tags)])
core.model_executor.wake_up = lambda tags: calls.append(["wake_up", tags])
core.model_executor.sleep = lambda level: calls.append(["sleep", level])
worker.is_cpu = False

def request(name, max_tokens):
    return SampleRequest(name, tuple(range(10, 40)), 7, max_tokens)

def draw(name):
    worker.submit(request(name, 12))
    done = []
    while not done:
        done = worker.poll()
    return list(done[0].token_ids)

def round_trip(name):
    held = core.scheduler.has_requests()
    worker.release()
    worker.release()
    left = core.scheduler.has_requests()
    worker.resume()
    worker.resume()
    worker.release()  # nothing has happened since
    worker.resume()
    return {"held": held, "left": left, "tokens": draw(name + "-after"), "scores": worker.score(tuple(range(10, 20)))}

worker.publish(adapter, 1)
found = {"before": {"tokens": draw("first"), "scores": worker.score(tuple(range(10, 20)))}}
draw("last before the release")
found["finished"] = round_trip("finished")

worker.submit(request("running", 300)); worker.poll(); worker.abort("running")
worker.submit(request("waiting", 300)); worker.abort("waiting")
found["aborted"] = round_trip("aborted")

worker.score(tuple(range(10, 20)))
found["scored"] = round_trip("scored")
type(worker).can_release_cache_alone = property(lambda self: False)  # as before vLLM 0.31
found["whole"] = round_trip("whole")
found["calls"] = calls
found["ahead"] = core.batch_queue is not None
print("FOUND " + json.dumps(found), flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("scheduling", ["ahead", "step by step"])
def test_a_drained_engine_releases_its_cache_and_serves_the_same_afterwards(
    tmp_path, tiny_model_dir, tiny_adapter_dir, scheduling
):
    """Whatever ended last: a completion, an aborted request or a score. Before, vLLM's scheduler still held its id."""
    arguments = [str(tiny_model_dir), str(tiny_adapter_dir), str(TINY_MAX_LEN), str(TINY_RANK), scheduling]
    environment = child_environment(1, None, tmp_path) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=300, env=environment
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-4000:]
    found = json.loads(lines[0].removeprefix("FOUND "))
    before = found["before"]
    assert found["ahead"] == (scheduling == "ahead")
    for name in ("finished", "aborted", "scored", "whole"):
        assert found[name]["held"], f"{name}: nothing was left in the scheduler, so the test shows nothing"
        assert not found[name]["left"]
        assert found[name]["tokens"] == before["tokens"] and found[name]["scores"] == before["scores"]
    cache_alone = [["discard", ["kv_cache"]], ["wake_up", ["kv_cache"]]]
    assert found["calls"] == 6 * cache_alone + 2 * [["sleep", 1], ["wake_up", None]]
