"""Check that the engine samples from the adapter that the trainer just published, in two independent ways (DESIGN 7).

`checksum`: does the engine hold the published tensors? Exact, but it cannot see kernels that do not use them.
`verdict`: do the engine's log-probs change as the trainer's do? It tests the whole path, within the noise.
Before any adapter, `require_same_base` compares the two on text of the run's own data.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from trapo_lite.core.errors import EngineError
from trapo_lite.core.types import Problem

MIN_PROBE_TOKENS = 512
NOISE_FACTOR = 4.0  # effects below this many times the noise are not judged by their size
MIN_CHANGE = 0.5  # least change of the trainer's log-probs by new rounding, as a share of the noise
# Without an adapter, engine and trainer may differ by this share of the spread of the log-probs, or by these nats.
# Measured in bfloat16: 0.0035 of the spread for the tiny base, about 0.015 for Qwen2.5-7B; a rotary base of twice the
# right one is 0.13, a layer without its norm 0.2 to 1.3.
BASE_TOLERANCE = {torch.float32: 0.003, torch.bfloat16: 0.1}
BASE_FLOOR = {torch.float32: 2e-3, torch.bfloat16: 0.1}
PEFT_PREFIX = "base_model.model."

ParityKind = Literal["applied", "no_op", "stale", "wrong", "cannot_tell"]


@dataclass(frozen=True)
class ParityResult:
    """Hold the verdict and the numbers behind it.

    projection: of (engine - base) on (trainer - base): 1 applied, 0 no-op, up to 2 the adapter twice over
    effect:     root mean square change of a token's log-prob by the adapter, in nats
    noise:      root mean square difference of engine and trainer without an adapter
    mismatch:   the same with the adapter
    """

    kind: ParityKind
    projection: float
    effect: float
    noise: float
    mismatch: float
    num_tokens: int


def checksum(adapter_dir: str | Path, *, dtype: torch.dtype) -> str:
    """Return what `engine.adapter_checksum()` must return after `engine.publish(adapter_dir, ...)`, bit for bit.

    dtype: the engine's type for adapters (that of its base). A and B are cast to it, then B is multiplied by alpha / r
    in it. These are the operations of vLLM and PEFT.
    """
    adapter_dir = Path(adapter_dir)
    config = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(adapter_dir / "adapter_model.safetensors")
    pairs = {}
    for name, b in tensors.items():
        if name.endswith(".lora_B.weight"):
            a = tensors[name.replace(".lora_B.", ".lora_A.")]
            module = name.removeprefix(PEFT_PREFIX).removesuffix(".lora_B.weight")
            pairs[module] = (a.to(dtype), b.to(dtype) * scaling_of(config, module))
    return checksum_of_pairs(pairs)


def scaling_of(adapter_config: Mapping, module: str) -> float:
    """Return alpha / r (or alpha / sqrt(r), rsLoRA) of one adapter. Raise EngineError for per-module patterns."""
    if adapter_config.get("rank_pattern") or adapter_config.get("alpha_pattern"):
        raise EngineError(f"{module}: adapters with rank_pattern or alpha_pattern are not supported; train with one r")
    rank, alpha = adapter_config["r"], adapter_config["lora_alpha"]
    return alpha / math.sqrt(rank) if adapter_config.get("use_rslora") else alpha / rank


def checksum_of_pairs(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Return the SHA-256 over (A (r, in), scaled B (out, r)) by module name, every bit of every weight.

    The padding of engines does not count: ranks beyond the last non-zero one in A or B are dropped, and so are modules
    that are all zero.

    >>> a, b = torch.ones(2, 3), torch.ones(4, 2)
    >>> padded = (torch.nn.functional.pad(a, (0, 0, 0, 6)), torch.nn.functional.pad(b, (0, 6)))
    >>> checksum_of_pairs({"q": (a, b)}) == checksum_of_pairs({"q": padded, "k": (0 * a, 0 * b)})
    True
    >>> checksum_of_pairs({"q": (a, b)}) == checksum_of_pairs({"q": (a, 2 * b)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(pairs):
        a, b = pairs[name]
        used = torch.nonzero(a.ne(0).any(dim=1) | b.ne(0).any(dim=0))
        if used.numel() == 0:
            continue
        rank = int(used.max()) + 1
        for tensor in (a[:rank], b[:, :rank]):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def text_sequences(problems: Sequence[Problem], *, num_tokens: int, max_length: int) -> list[list[int]]:
    """Return prompts with their first expert solutions, for `num_tokens` log-probs or as many as the data has.

    max_length: as in `probe_sequences`.

    >>> problems = [Problem("a", (1, 2), "5", ((3, 4, 5),)), Problem("b", (6,), "7"), Problem("c", (7, 8), "9")]
    >>> text_sequences(problems, num_tokens=5, max_length=5)
    [[1, 2, 3, 4], [7, 8]]
    """
    sequences: list[list[int]] = []
    missing = num_tokens
    for problem in problems:
        if missing <= 0:
            break
        token_ids = [*problem.prompt_ids, *(problem.expert_ids[0] if problem.expert_ids else ())]
        token_ids = token_ids[: min(max_length - 1, missing + 1)]
        if len(token_ids) > 1:  # the first token of a sequence has no score
            sequences.append(token_ids)
            missing -= len(token_ids) - 1
    return sequences


def measured_noise(engine_base: Sequence[float] | Tensor, trainer_base: Sequence[float] | Tensor) -> float:
    """Return the root mean square difference, in nats, of engine and trainer on the same tokens without any adapter.

    Measure it before the first publish.
    """
    difference = _float64(engine_base) - _float64(trainer_base)
    return float(difference.square().mean().sqrt())


def largest_noise(
    trainer_base: Sequence[float] | Tensor, *, dtype: torch.dtype, tolerance: float | None = None
) -> float:
    """Return the largest `measured_noise` that rounding explains, in nats, on text with these scores of the trainer.

    It is a share of the standard deviation of the log-probs, because rounding scales with the logits, but has a floor.
    tolerance: that share; None: BASE_TOLERANCE of the type the base computes in
    """
    spread = float(_float64(trainer_base).std(unbiased=False))
    return max((BASE_TOLERANCE[dtype] if tolerance is None else tolerance) * spread, BASE_FLOOR[dtype])


def require_same_base(noise: float, *, limit: float) -> None:
    """Raise EngineError if engine and trainer differ by more than `limit` nats (root mean square), without adapter."""
    if not noise <= limit:
        raise EngineError(
            f"parity: without any adapter, engine and trainer differ by {noise:.2g} nats a token on text of the data "
            f"(root mean square; expected at most {limit:.2g}), so they do not hold the same base; check that "
            "model.name, model.dtype, model.quantize and model.config_overrides reach both. If they do, and this model "
            "is that sensitive to rounding, raise rollout.base_tolerance"
        )


def verdict(
    *,
    engine: Sequence[float] | Tensor,
    base: Sequence[float] | Tensor,
    trainer: Sequence[float] | Tensor,
    previous: Sequence[float] | Tensor | None,
    engine_base: Sequence[float] | Tensor | None = None,
    engine_previous: Sequence[float] | Tensor | None = None,
    noise: float,
) -> ParityResult:
    """Judge what the engine serves, from log-probs of the same probe tokens.

    engine:   the engine's scores            base:     the trainer's, with the adapter disabled
    trainer:  with the current adapter       previous: with the adapter published before, None: there was none
    engine_base, engine_previous: the engine's without an adapter, and with the one before; None: not measured
    noise:    from `measured_noise`

    The hypothesis nearest to `engine` wins, if it explains it to a quarter of the adapter's effect. Whenever the
    weights change, rounding moves a model's log-probs by as much as the noise, in the trainer as in the engine. So an
    effect below four times the noise may be rounding alone, and the verdict is "cannot_tell". One failure is visible
    even then: an engine that does not use the new adapter returns the numbers without an adapter, or of the one before,
    to the last bit, while the trainer's have changed.
    """
    engine, base, trainer = _float64(engine), _float64(base), _float64(trainer)
    previous = None if previous is None else _float64(previous)
    if engine.numel() < MIN_PROBE_TOKENS:
        raise ValueError(f"parity: found {engine.numel()} probe tokens; use at least {MIN_PROBE_TOKENS}")
    effect = trainer - base
    projection, effect_rms = _projection(engine - base, effect), _rms(effect)

    def result(kind: ParityKind) -> ParityResult:
        return ParityResult(kind, projection, effect_rms, noise, _rms(engine - trainer), engine.numel())

    if not bool(torch.isfinite(engine).all()):
        return result("wrong")

    if _is_frozen(engine, engine_base, trainer - base, noise):
        return result("no_op")
    if previous is not None and _is_frozen(engine, engine_previous, trainer - previous, noise):
        return result("stale")

    expected: dict[ParityKind, Tensor] = {"applied": trainer}
    has_effect = _is_seen(effect, noise)
    if has_effect:
        expected["no_op"] = base
    if previous is not None:
        # Rounding of the adapter itself (bf16 in the engine) is not in `noise`; the best fit's residual shows it.
        residual = min(_rms(engine - trainer), _rms(engine - previous))
        is_moved = _is_seen(trainer - previous, max(noise, residual))
        if is_moved and _is_seen(previous - base, noise):  # otherwise the previous one equals the base, a no-op
            expected["stale"] = previous
    kind = min(expected, key=lambda name: _rms(engine - expected[name]))
    if _rms(engine - expected[kind]) > max(NOISE_FACTOR * noise, 0.25 * effect_rms):
        kind = "wrong"
    return result("cannot_tell" if kind == "applied" and not has_effect else kind)


def require_applied(result: ParityResult, *, version: int) -> None:
    """Raise EngineError unless the verdict is "applied" or "cannot_tell" (which the caller counts)."""
    if result.kind in ("applied", "cannot_tell"):
        return
    problem, cure = {
        "no_op": (
            "the engine samples from the bare base",
            "compare the adapter's module names with the engine's; with rollout.merge, set it to never",
        ),
        "stale": ("the engine still samples from the previous adapter", "give each version its own id and path"),
        "wrong": (
            "the engine samples from something else",
            "compare base, config_overrides, dtype and lora.alpha / lora.r; with rollout.merge, set it to never",
        ),
    }[result.kind]
    after = f"after publishing adapter version {version}"
    sizes = f"effect {result.effect:.2g}, noise {result.noise:.2g}, mismatch {result.mismatch:.2g} nats"
    raise EngineError(
        f"parity: {after}, {problem} (projection {result.projection:.3f}; where the effect is far above the noise, "
        f"1 is right and up to 2 is the adapter twice over; {sizes}); {cure}. The run stops, because every rollout "
        "would come from another policy than the one that is trained"
    )


def require_checksum(found: str | None, *, expected: str, version: int) -> None:
    """Raise EngineError if the engine holds other tensors than the published ones."""
    if found != expected:
        raise EngineError(
            f"parity: after publishing adapter version {version} the engine does not hold the published tensors "
            f"(checksum {(found or 'none')[:12]}, expected {expected[:12]}): it was not loaded, or in part, or in "
            "another dtype; compare model.dtype and the adapter's modules with the engine's log"
        )


def _is_frozen(
    engine: Tensor, engine_then: Sequence[float] | Tensor | None, trainer_change: Tensor, noise: float
) -> bool:
    """Return whether the engine's scores are what they were, to the last bit, although the trainer's have changed."""
    has_moved = _rms(trainer_change) > MIN_CHANGE * noise
    return has_moved and engine_then is not None and torch.equal(engine, _float64(engine_then))


def _is_seen(difference: Tensor, noise: float) -> bool:
    return _rms(difference) > NOISE_FACTOR * noise


def _projection(vector: Tensor, direction: Tensor) -> float:
    return float(vector @ direction / (direction @ direction)) if bool(direction.any()) else math.nan


def _rms(vector: Tensor) -> float:
    return float(vector.square().mean().sqrt())


def _float64(values: Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).detach().flatten().cpu()
