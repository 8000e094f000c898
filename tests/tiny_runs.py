"""The algorithms that tests of whole runs train with: TRAPO and its neighbours, with few rollouts."""

GRPO = {"name": "grpo", "schedule": [{"num_rollouts": 4}], "prefix_loss": "none"}
SFT = {
    "name": "sft",
    "schedule": [{"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}],
    "prefix_loss": "nll",
}
LUFFY = {
    "name": "luffy",
    "schedule": [{"num_rollouts": 3}, {"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}],
    "prefix_loss": "luffy",
}
TRAPO = {
    "name": "trapo",
    "schedule": [
        {"num_rollouts": 2},
        {"num_rollouts": 2, "prefix_ratio": 0.5, "help_below": 0.5, "num_trained": 1},
        {"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": 1.0},
    ],
}
