"""Measure how much of an adapter's effect is rounding: probe scores in bfloat16 and float32, by the adapter's size.

    python benchmarks/parity_noise.py --model SmolLM2-135M-Instruct --steps 1 2 3 10 20

B is 2e-4 times the number of steps, of random sign, as AdamW leaves it at that learning rate. In nats (root mean square
over 512 random tokens) it prints the true effect, in float32; the trainer's difference with and without the adapter;
and the engine against trainer and base. Then come the verdicts: on the engine, on one that still serves the adapter
before, and on one that serves the bare base.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from worlds import MAX_MODEL_LEN, World, start

from trapo_lite.engines import parity
from trapo_lite.model.logprobs import probe_sequences
from trapo_lite.model.policy import Policy

STEP = 2e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 10, 20], help="increasing adapter sizes")
    args = parser.parse_args()
    world = World((f"model.name={args.model}", "model.dtype=bfloat16", "run.deterministic=false"))
    with tempfile.TemporaryDirectory() as folder, start(world, Path(folder)) as engine:
        measure(world, engine, Path(folder), args.steps)


def measure(world: World, engine, folder: Path, sizes: list[int]) -> None:
    config = world.config()
    policy = Policy.load(config.model, config.lora, device="cpu")
    exact = Policy.load(config.model.model_copy(update={"dtype": "float32"}), config.lora, device="cpu")
    vocabulary = policy.model.config.vocab_size
    probe = probe_sequences(vocab_size=vocabulary, num_tokens=512, max_length=MAX_MODEL_LEN)

    def scores(score) -> torch.Tensor:
        return torch.tensor([logprob for ids in probe for logprob in score(ids)], dtype=torch.float64)

    engine_base = scores(engine.score)
    with policy.reference(), exact.reference():
        base, exact_base = scores(policy.score), scores(exact.score)
    noise = parity.measured_noise(engine_base, base)
    print(f"without an adapter: engine - trainer {noise:.4f}, trainer - float32 {rms(base - exact_base):.4f}")
    print("| steps | true effect | trainer's | engine - trainer | engine - base | applied | stale | unused |")
    previous = engine_previous = None
    for steps in sizes:
        set_size(policy, exact, STEP * steps)
        policy.adapter.save(folder / "adapter", dtype=torch.bfloat16)
        engine.publish(folder / "adapter", steps)
        trainer, served = scores(policy.score), scores(engine.score)
        verdicts = [
            "" if found is None else parity.verdict(
                engine=found, base=base, trainer=trainer, previous=previous,
                engine_base=engine_base, engine_previous=engine_previous, noise=noise,
            ).kind
            for found in (served, engine_previous, engine_base)
        ]  # fmt: skip
        sizes_in_nats = (scores(exact.score) - exact_base, trainer - base, served - trainer, served - base)
        figures = [f"{rms(difference):.4f}" for difference in sizes_in_nats]
        print("| " + " | ".join([str(steps), *figures, *verdicts]) + " |", flush=True)
        previous, engine_previous = trainer, served


@torch.no_grad()
def set_size(policy: Policy, exact: Policy, size: float) -> None:
    """Give both the same adapter: A as in the first policy, B of this size and random sign."""
    generator = torch.Generator().manual_seed(5)
    into = exact.adapter.state()
    for name, tensor in policy.adapter.state().items():
        if "lora_B" in name:
            tensor.copy_(torch.where(torch.rand(tensor.shape, generator=generator) < 0.5, -size, size))
        into[name].copy_(tensor)


def rms(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())


if __name__ == "__main__":
    main()
