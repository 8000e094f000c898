"""Give a real engine a stale, a no-op, a doubled and a wrong-rank adapter, and require each one's own error.

Part of benchmarks/rollout.py.
"""

import json
from pathlib import Path

import torch
from worlds import TINY

from trapo_lite.core.errors import EngineError
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.parity import text_sequences
from trapo_lite.model.policy import Policy
from trapo_lite.rollout.publisher import Publisher
from trapo_lite.training.inputs import read_inputs


class Injecting:
    """Wrap an engine that loads `folder` instead of what is published from now on."""

    def __init__(self, engine: object) -> None:
        self.engine = engine
        self.folder: Path | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def publish(self, adapter_dir: Path, version: int) -> None:
        self.engine.publish(self.folder or adapter_dir, version)  # type: ignore[attr-defined]


PHRASES = {
    "stale": "still samples from the previous adapter",
    "no_op": "samples from the bare base",
    "doubled": "samples from something else",
    "wrong_rank": "has rank 16, the engine was started for 32",
}


def wrong_adapters(engine: RolloutEngine, folder: Path) -> dict[str, object]:
    """Return the error that stops a stale, a no-op, a doubled and a wrong-rank adapter in the step that published it.

    The engine must serve the tiny world's bare base; the doubled adapter stays in it.
    """
    config = TINY.config()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = Policy.load(config.model, config.lora, device=device)
    other_rank = Policy.load(config.model, config.lora.model_copy(update={"r": 16}), device=device)
    messages = {}
    injecting = Injecting(engine)
    publisher = Publisher(
        injecting,  # type: ignore[arg-type]
        policy,
        scratch=folder / "scratch",
        text=text_sequences(read_inputs(config).problems, num_tokens=512, max_length=512),
        vocab_size=policy.model.config.vocab_size,
        num_tokens=512,
        max_length=512,
    )
    folders = {kind: folder / kind for kind in ("stale", "no_op", "doubled", "wrong_rank")}
    policy.adapter.save(folders["no_op"])  # B is still 0
    other_rank.adapter.save(folders["wrong_rank"])
    version = 0
    for kind, adapter in folders.items():
        version += 1
        injecting.folder = None
        move(policy, seed=version)
        publisher.publish(version)
        if kind == "stale":
            policy.adapter.save(adapter)
        move(policy, seed=version + 100)
        if kind == "doubled":
            save_doubled(policy, adapter)
        injecting.folder = adapter
        version += 1
        try:
            publisher.publish(version)
        except EngineError as error:
            messages[kind] = str(error)[:160]
    print("\n".join(f"{kind}: {message}" for kind, message in messages.items()))
    named = [kind for kind, phrase in PHRASES.items() if phrase in messages.get(kind, "")]
    return {"wrong_adapters_stopped": f"{len(messages)} of 4", "wrong_adapters_named": f"{len(named)} of 4"}


def move(policy: Policy, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def save_doubled(policy: Policy, folder: Path) -> None:
    policy.adapter.save(folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
