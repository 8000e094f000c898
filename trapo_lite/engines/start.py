"""Start the engine a configuration asks for."""

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trapo_lite.config import Config
from trapo_lite.core.errors import EngineError
from trapo_lite.engines.base import EngineDied, RolloutEngine
from trapo_lite.model.threads import engine_threads

if TYPE_CHECKING:
    from trapo_lite.engines.vllm.options import VLLMOptions

logger = logging.getLogger(__name__)


def start_engine(
    config: Config,
    *,
    max_model_len: int,
    log_path: Path,
    device_index: int | None = None,
    num_engines: int = 1,
    most_sequences: int | None = None,
    notify: Callable[[str], None] = logger.info,
) -> RolloutEngine:
    """Start one rank's engine, as `rollout` and `model` say.

    max_model_len: the longest prompt + response, in tokens
    log_path:      log of the engine's process (vllm)
    device_index:  the rank's card among the visible ones; None: the CPU, or the first card
    num_engines:   number of engines on this machine, one per rank
    most_sequences: most requests that can be in flight; the engine is made for no more (on CUDA, graphs are captured
                   for each size), and for no more than rollout.max_num_seqs
    notify:        told what is waited for, and of an engine that died and was restarted

    On the CPU the vllm engine returns as soon as vLLM has accepted the model's class, and loads in the background; its
    first call waits for it.
    """
    if config.rollout.engine == "vllm":
        return _start_vllm(
            config,
            max_model_len=max_model_len,
            log_path=log_path,
            device_index=device_index,
            num_engines=num_engines,
            max_num_seqs=min(config.rollout.max_num_seqs, most_sequences or config.rollout.max_num_seqs),
            notify=notify,
        )
    if config.rollout.engine == "server":
        return _connect_servers(config, max_model_len=max_model_len, num_engines=num_engines, notify=notify)

    from trapo_lite.engines.transformers.engine import TransformersEngine

    return TransformersEngine(
        config.model.name,
        max_model_len=max_model_len,
        dtype=config.model.dtype,
        quantize=config.model.quantize,
        max_num_seqs=config.rollout.max_num_seqs,
        config_overrides=config.model.config_overrides,
        device="cpu" if device_index is None else f"cuda:{device_index}",
    )


def check_served(config: Config) -> None:
    """Raise EngineError, before a weight is read, for what the engine is known not to serve.

    vLLM judges the model's class itself, in its own process, when it is started or asked (`ask_vllm`).
    """
    if config.rollout.engine == "transformers":
        from trapo_lite.engines.transformers.served import check_class

        check_class(config.model)
    from trapo_lite.model.base import multimodal_type

    if config.rollout.engine == "server" and (kind := multimodal_type(config.model.name)) is not None:
        raise EngineError(
            f"rollout.engine: {config.model.name} is multimodal ({kind}), and `vllm serve` names its layers otherwise "
            "than the trained language model does; set it to vllm or transformers"
        )


def ask_vllm(config: Config, *, notify: Callable[[str], None] = logger.info) -> str:
    """Return a line on whether the vLLM installed here has the model's class. Raise EngineError if it does not.

    This takes vLLM's process some seconds. No weight is read.   notify: told from time to time what is waited for
    """
    from trapo_lite.engines.supervised import never_answered
    from trapo_lite.engines.vllm.engine import VLLMEngine, require_card, require_vllm
    from trapo_lite.engines.vllm.language_model import require_unquantised

    options = _vllm_options(config, max_model_len=config.longest_sequence, max_num_seqs=1, num_engines=1)
    require_unquantised(options)
    options = replace(options, quantize="none")  # the class is the same, and NF4 asks for a plug-in and a card
    try:
        require_vllm(quantize=options.quantize)
        require_card(on_cuda=torch.cuda.is_available())
    except EngineError as error:
        return f"vLLM was not asked whether it serves this model: {error}"
    folder = Path(tempfile.mkdtemp(prefix="trapo-lite-vllm-"))
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        engine = VLLMEngine(options, log_path=folder / "vllm.log", notify=notify)
        undo.callback(engine.close)
        try:
            engine.wait_for_class()
        except EngineDied as death:
            undo.pop_all()  # the error names the log
            engine.close()
            raise never_answered(death) from None
    return "vLLM has a class for this model that takes adapters; what else it needs shows when it starts"


def _vllm_options(config: Config, *, max_model_len: int, max_num_seqs: int, num_engines: int) -> "VLLMOptions":
    from trapo_lite.engines.vllm.options import VLLMOptions

    return VLLMOptions(
        model_path=config.model.name,
        max_model_len=max_model_len,
        lora_rank=config.lora.r,
        dtype=config.model.dtype,
        quantize=config.model.quantize,
        max_num_seqs=max_num_seqs,
        kv_cache_gib=config.rollout.kv_cache_gib,
        gpu_memory_fraction=config.rollout.gpu_memory_fraction,
        num_threads=engine_threads(config, num_engines=num_engines),
        config_overrides=config.model.config_overrides,
        can_merge=config.rollout.merge != "never",
    )


def _start_vllm(
    config: Config,
    *,
    max_model_len: int,
    log_path: Path,
    device_index: int | None,
    num_engines: int,
    max_num_seqs: int,
    notify: Callable[[str], None],
) -> RolloutEngine:
    """Start vLLM in a process of its own, and again when that process dies."""
    from trapo_lite.engines.adapter_folder import AdapterFolder
    from trapo_lite.engines.supervised import SupervisedEngine
    from trapo_lite.engines.vllm.engine import VLLMEngine

    options = _vllm_options(config, max_model_len=max_model_len, max_num_seqs=max_num_seqs, num_engines=num_engines)
    folder = AdapterFolder(room=_folder_room(config, num_engines), notify=notify)  # outlives an engine that dies

    def start() -> RolloutEngine:
        engine = VLLMEngine(options, log_path=log_path, device_index=device_index, folder=folder, notify=notify)
        try:
            engine.wait_for_class()  # before the trainer reads weights
            if device_index is not None:
                engine.wait()  # it measures the card's free memory, so that nothing else may load meanwhile
        except EngineError:
            engine.close()
            raise
        return engine

    with contextlib.ExitStack() as undo:
        undo.callback(folder.close)
        engine = SupervisedEngine(
            start, folder=folder.path / "served", scratch=folder.scratch, notify=notify, on_close=folder.close
        )
        undo.pop_all()
    return engine


def _connect_servers(
    config: Config, *, max_model_len: int, num_engines: int, notify: Callable[[str], None]
) -> RolloutEngine:
    """Connect to the `vllm serve` endpoints of `rollout.servers`."""
    from trapo_lite.engines.server.command import start_command
    from trapo_lite.engines.server.engine import ServerEngine
    from trapo_lite.engines.vllm.options import round_up_lora_rank
    from trapo_lite.model.base import model_config
    from trapo_lite.model.positions import longest_with_one_rope

    shared = config.rollout.server_adapter_dir
    command = start_command(
        max_model_len,
        model=config.model.name,
        rank=round_up_lora_rank(config.lora.r),
        dtype=config.model.dtype,
        overrides=json.dumps(config.model.config_overrides) if config.model.config_overrides else "",
    )
    return ServerEngine(
        config.rollout.servers,
        max_model_len=max_model_len,
        most_model_len=longest_with_one_rope(model_config(config.model)),
        dtype=getattr(torch, config.model.dtype),
        adapter_dir=None if shared is None else Path(shared),
        command=command,
        folder_room=0 if shared is not None else _folder_room(config, num_engines),
        notify=notify,
    )


def _folder_room(config: Config, num_engines: int) -> int:
    """Return the bytes that must be free in memory to keep this run's adapters there."""
    from trapo_lite.engines.adapter_folder import room_for
    from trapo_lite.model.base import model_shape

    return room_for(
        getattr(torch, config.model.dtype).itemsize * model_shape(config).adapter_parameters, num_engines=num_engines
    )
