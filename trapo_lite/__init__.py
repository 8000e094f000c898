"""TRAPO (Trust-Region Adaptive Policy Optimization, arXiv:2512.17636) with LoRA, on one node."""

__version__ = "0.1.0"
