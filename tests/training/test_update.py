"""One step's update: optimizers that can be saved, memory that runs out, work dealt out evenly."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import random_rollouts, rollout, tiny_qwen2
from dense_attention import dense_mask

from trapo_lite.config import AlgorithmSection, LoraSection, validate
from trapo_lite.core.algorithm import Algorithm, count_normalizers, make_group
from trapo_lite.core.batching import by_prompt, num_tokens
from trapo_lite.core.errors import UpdateError
from trapo_lite.core.tree import PackedBatch, pack
from trapo_lite.core.types import Group
from trapo_lite.model import tree_attention
from trapo_lite.model.policy import Policy
from trapo_lite.run.processes import Ranks
from trapo_lite.training.checkpoint import find_checkpoint, restore_checkpoint, save_checkpoint
from trapo_lite.training.update import Updater, accumulate_gradient

TRAPO = AlgorithmSection(tis_cap=2.0).build()
CLIPPED = AlgorithmSection(completion_loss="ppo_clip").build()


def make_policy(*, r: int = 4, offload_activations: bool = False) -> Policy:
    torch.manual_seed(0)
    return Policy(
        tiny_qwen2(),
        LoraSection(r=r, alpha=8),
        attention="sdpa",
        gradient_checkpointing=offload_activations,
        offload_activations=offload_activations,
    )


def some_groups(algorithm: Algorithm = TRAPO, *, seed: int = 0, num: int = 4) -> list[Group]:
    rng = random.Random(seed)
    return [make_group(algorithm, random_rollouts(rng, problem_id=str(i))) for i in range(num)]


def make_updater(
    policy: Policy, *, algorithm: Algorithm = TRAPO, tokens_per_batch: int = 10_000, **optim: object
) -> Updater:
    train = {"max_steps": 10, "tokens_per_batch": tokens_per_batch, "check_packing": False}
    config = validate({"optim": {"lr": 1e-2, "grad_clip": None} | optim, "train": train})
    return Updater(config, policy, lambda step: algorithm, Ranks())


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.adapter.parameters]).clone()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit", "sgd"])
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_every_optimizer_learns_and_goes_on_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    def start() -> tuple[Policy, Updater]:
        policy = make_policy(r=64)  # bitsandbytes keeps states of less than 4096 elements in float32
        return policy, make_updater(policy, name=name)

    policy, updater = start()
    before = weights(policy)
    for step in (0, 1):
        updater.update(step, some_groups(seed=step))
    optimizer = updater.optimizer
    assert not torch.equal(weights(policy), before)
    kept = {value.dtype for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)}
    assert (torch.uint8 in kept) == name.endswith("8bit")
    save_checkpoint(
        tmp_path, policy=policy, optimizer=optimizer, rng_states=[torch.get_rng_state()], state={"step": 2}, keep=1
    )
    updater.update(2, some_groups(seed=2))
    other, other_updater = start()
    checkpoint, _ = find_checkpoint(tmp_path)
    assert checkpoint is not None
    restore_checkpoint(checkpoint, policy=other, optimizer=other_updater.optimizer, rank=0)
    other_updater.update(2, some_groups(seed=2))
    assert torch.equal(weights(other), weights(policy))


def with_two_prompts(groups: list[Group]) -> list[Group]:
    """Show every other rollout a longer prompt, as POPE does."""
    return [
        replace(
            group,
            rollouts=tuple(
                replace(rollout, prompt_ids=(*rollout.prompt_ids, 7, 8, 9), num_shown=2) if slot % 2 else rollout
                for slot, rollout in enumerate(group.rollouts)
            ),
        )
        for group in groups
    ]


@pytest.mark.slow
def test_a_problem_may_have_several_prompts_and_its_gradient_is_the_same_however_the_step_is_cut() -> None:
    """It is that of each rollout as a group of its own, with the advantages and normalisers of the whole."""
    groups = with_two_prompts(some_groups())
    assert len(by_prompt(groups)) == 2 * len(groups)
    alone = make_policy()
    one_by_one = [group.subset([member]) for group in groups for member in range(len(group.rollouts))]
    batches = [alone.prepare([part]) for part in one_by_one]
    accumulate_gradient(alone, TRAPO, batches, count_normalizers(TRAPO, groups), temperature=1.0)
    expected = alone.adapter.flat_gradient()
    assert expected.norm() > 0
    for budget in (10_000, 60, 1):
        policy = make_policy()
        metrics = make_updater(policy, name="sgd", tokens_per_batch=budget).update(0, groups)
        found = policy.adapter.flat_gradient()
        assert (found - expected).norm() / expected.norm() < 1e-5
        assert metrics["train/skipped_groups"] == 0


@pytest.mark.slow
def test_offloaded_activations_give_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.Tensor] = []

    class Recorded(torch.autograd.graph.save_on_cpu):
        def __init__(self, **options) -> None:
            super().__init__(**options)
            to_host = self.pack_hook
            self.pack_hook = lambda tensor: (moved.append(tensor), to_host(tensor))[1]

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Recorded)
    results = []
    for offload in (False, True):
        policy = make_policy(offload_activations=offload)
        make_updater(policy, name="sgd").update(0, some_groups())
        results.append(weights(policy))
    assert torch.equal(*results)
    base = policy.model.get_base_model()
    num_layers, hidden = base.config.num_hidden_layers, base.config.hidden_size
    assert sum(tensor.shape[-1] == hidden and tensor.ndim == 3 for tensor in moved) >= num_layers
    frozen = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters() if parameter.ndim > 1}
    assert not frozen & {tensor.untyped_storage().data_ptr() for tensor in moved}


# ----- memory that runs out


class Forgetful:
    """Stands for a device with memory for so many tokens a forward pass, at most, from the n-th pass on."""

    def __init__(self, policy: Policy, *, limit: int, start: int = 0) -> None:
        self.sizes: list[int] = []
        compute = policy.token_logprobs

        def token_logprobs(batch: PackedBatch, *, temperature: float):
            self.sizes.append(batch.num_tokens)
            if batch.num_tokens > limit and len(self.sizes) > start:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return compute(batch, temperature=temperature)

        policy.token_logprobs = token_logprobs  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("num_updates", [1, 2])
def test_a_step_without_memory_is_done_again_in_smaller_batches(num_updates: int) -> None:
    algorithm = TRAPO if num_updates == 1 else CLIPPED
    groups = some_groups(algorithm)
    total = sum(map(num_tokens, groups))
    results = []
    for limit in (10**9, total // 2 + 1):
        policy = make_policy()
        device = Forgetful(policy, limit=limit)
        updater = make_updater(policy, algorithm=algorithm, updates_per_batch=num_updates)
        metrics = updater.update(0, groups)
        results.append((weights(policy), metrics, device))
    (whole, fits, _), (again, lowered, device) = results
    torch.testing.assert_close(again, whole, rtol=0, atol=0.2 * 1e-2)  # AdamW amplifies rounding
    assert fits["train/out_of_memory"] == 0 and lowered["train/out_of_memory"] >= 1
    assert lowered["train/tokens_per_batch"] < total and device.sizes[-1] <= lowered["train/tokens_per_batch"]
    for name in ("loss/completion", "loss/prefix", "train/padded_tokens"):
        one, other = fits[name], lowered[name]
        assert getattr(one, "value", one) == pytest.approx(getattr(other, "value", other), abs=1e-4)


@pytest.mark.slow
def test_no_memory_after_the_policy_has_moved_is_one_error() -> None:
    """Two of four passes make the old log-probs and two the first update; the fifth finds no memory."""
    policy = make_policy()
    groups = some_groups(CLIPPED, num=2)
    longest = max(map(num_tokens, groups))
    Forgetful(policy, limit=1, start=4)
    updater = make_updater(policy, algorithm=CLIPPED, updates_per_batch=2, tokens_per_batch=longest)
    before = weights(policy)
    with pytest.raises(UpdateError, match=rf"resume from the newest checkpoint with .*={longest // 2}"):
        updater.update(0, groups)
    assert not torch.equal(weights(policy), before)


@pytest.mark.slow
def test_no_memory_for_a_single_rollout_says_what_to_do() -> None:
    policy = make_policy()
    Forgetful(policy, limit=3)
    before = weights(policy)
    with pytest.raises(UpdateError, match=r"single rollout a forward pass.*gradient_checkpointing"):
        make_updater(policy).update(0, some_groups())
    assert torch.equal(weights(policy), before)


@pytest.mark.slow
def test_other_errors_are_not_taken_for_missing_memory() -> None:
    policy = make_policy()

    def token_logprobs(*_: object, **__: object):
        raise RuntimeError("shapes do not match")

    policy.token_logprobs = token_logprobs  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        make_updater(policy).update(0, some_groups())


REAL = """
import resource, sys
sys.path[:0] = {paths!r}
import torch
from test_update import *
torch.set_num_threads(1)
policy = make_policy()
members = [rollout([1], [], [2 + slot] * 400, reward=float(slot % 2), slot=slot) for slot in range(24)]
groups = [make_group(TRAPO, members)]
updater = make_updater(policy, tokens_per_batch=100_000)
updater.update(0, some_groups())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room} * 2**20, resource.RLIM_INFINITY))
metrics = updater.update(1, groups)
print(metrics["train/out_of_memory"], metrics["train/tokens_per_batch"])
"""


@pytest.mark.long
def test_a_process_that_really_has_no_more_memory_goes_on_with_less() -> None:
    """A limit of the address space: torch's allocator fails as it does when a machine is full."""
    found = {}
    for room in (100_000, 60):
        here = Path(__file__).resolve()
        paths = [str(folder) for folder in (here.parent, here.parents[1], here.parents[2] / "benchmarks")]
        program = REAL.format(paths=paths, room=room)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        found[room] = [int(word) for word in done.stdout.splitlines()[-1].split()]
    assert found[100_000] == [0, 100_000]
    assert found[60][0] >= 1 and found[60][1] < 9601


# ----- what is counted


@pytest.mark.slow
@pytest.mark.parametrize("num_updates", [1, 3])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_that_teaches_nothing_is_as_if_it_had_not_been(name: str, num_updates: int) -> None:
    """AdamW would move the weights by its momentum, and forget how large gradients are."""
    solved = make_group(TRAPO, [rollout([1], [], [2], reward=1.0, slot=slot) for slot in range(2)])
    policies = []
    for between in ([], [[solved], [], [solved]]):
        policy = make_policy()
        updater = make_updater(policy, name=name, updates_per_batch=num_updates, weight_decay=0.1)
        updater.update(0, some_groups(seed=1))
        before = weights(policy)
        for groups in between:
            assert updater.update(1, groups)["optim/grad_norm"] == 0.0
            assert torch.equal(weights(policy), before)
        updater.update(2, some_groups(seed=2))
        assert not torch.equal(weights(policy), before)
        policies.append(policy)
    assert torch.equal(*map(weights, policies))


@pytest.mark.slow
def test_the_counts_of_a_step() -> None:
    shared = rollout([1, 2], [3, 4, 5], [6], reward=1.0)
    group = make_group(TRAPO, [shared, rollout([1, 2], [3, 4, 5], [7, 7, 7], slot=1)])
    solved = make_group(TRAPO, [rollout([1], [], [2], reward=1.0, slot=slot) for slot in range(2)])
    policy = make_policy()
    metrics = make_updater(policy).update(0, [group, solved])
    assert (metrics["train/tokens"], metrics["train/padded_tokens"]) == (2 + 3 + 1 + 3, 16)
    assert metrics["train/skipped_groups"] == 1
    assert metrics["train/shared"].value == pytest.approx((6 + 8 - 9) / 14)  # type: ignore[union-attr]
    assert metrics["train/batches"] == 1 and metrics["train/padding"].value == 0.0  # type: ignore[union-attr]


@pytest.mark.slow
def test_operations_are_what_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention by plain products over all pairs, which torch can count."""
    from torch.utils.flop_counter import FlopCounterMode

    def plain_products(batch: PackedBatch) -> tree_attention.TreeLayout:
        mask = dense_mask(batch)

        def attend(query, key, value, how):
            scores = (query @ key.transpose(2, 3) * how.scaling).masked_fill(~mask, -torch.inf)
            return scores.softmax(-1) @ value

        return tree_attention.TreeLayout(attend)

    monkeypatch.setattr(tree_attention, "chain_layout", plain_products)
    policy = make_policy()
    members = [rollout([1], range(2, 34), [7] * 7, reward=1.0), rollout([1], [], [5], slot=1)]
    batch = policy.prepare([make_group(TRAPO, members)])
    with FlopCounterMode(display=False) as counter:
        logprobs, entropy = policy.token_logprobs(batch, temperature=1.0)
        (logprobs.sum() + entropy.sum()).backward()
    shape, num_tokens, num_trained = policy.shape, batch.num_tokens, len(batch.trained)
    logits_again = 2 * shape.hidden_size * shape.vocab_size * num_trained
    every_pair = shape.training_flop(num_tokens=num_tokens, num_visible=num_tokens**2, num_trained=num_trained)
    # The first layer's input has no gradient, which is 6 % of this small model.
    assert counter.get_total_flops() - logits_again == pytest.approx(every_pair, rel=0.08)
    visible = sum(int(position) + 1 for position in batch.position)
    assert shape.batch_flop(batch) == every_pair - 12 * shape.attention_width * 2 * (num_tokens**2 - visible)
    padded = pack([make_group(TRAPO, members)], pad_to=100)
    assert shape.batch_flop(padded) == shape.batch_flop(batch)
